"""Stacks of layers: names and blocks, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from ..hf.fields import Value
from ..rules import same, vocabulary
from ..sizes import base_sizes
from ..table import Module, Rule, holes
from .attention import Attention
from .mlp import DENSE, SPARSE, Mixture, Mlp
from .mtp import Mtp, mtp_modules
from .names import Names
from .place import RMS, Block, Norm, Place

_UNTIED: Final = (("share_embeddings_and_output_weights", False),)
#: what Megatron's names of a decoder's layers begin with
DECODER_LAYER: Final = "decoder.layers.{layer}."
#: the factors that a stack with ``sizes`` of its own has
VARYING_FACTORS: Final = frozenset(
    """
    hidden ffn group heads_per_group value_head head query_head head_dim q_rows k_rows v_first qkv_rows
    """.split()
)


@dataclass(frozen=True, slots=True)
class Blocks:
    """What the parts of a stack compute and how they are stored, as far as names and config do not say.

    ``mixer``: a state-space mixer; ``attention`` and ``mlp`` are None for layers without. ``mixture``:
    experts, in place of the MLP or, with ``layer_sets``, on some layers. ``mtp``: layers of multi-token
    prediction. ``heads``: what comes behind the layers beside the head for the next token. ``activation``
    None stands for the config's ``hidden_act``. ``tied``: the head is absent where the config ties it to the
    embedding. ``transposed``, ``respelled``: see :class:`~nemoconv.mappings.blocks.place.Place`.

    ``neighbours``: rotation pairs neighbouring elements of a head, not halves. ``whole_every``: every so many
    layers, one sees all tokens where the others have a window; a number or a config field; None: all layers
    have the window, if the config has one. ``local_rope``: layers with a window are rotated by
    ``rotary_base_local``. ``chunked``: layers that are rotated see only their chunk of
    ``attention_chunk_size`` tokens and normalize heads afterwards, and every ``nope_layer_interval``-th does
    neither. ``scaled_embedding``: embeddings are multiplied by the root of their width. ``generates``: tokens
    see those before them only; else attention goes both ways.
    """

    norm: Norm = RMS
    attention: Block | None = field(default_factory=Attention)
    mlp: Block | None = field(default_factory=Mlp)
    mixture: Mixture | None = None
    mtp: Mtp | None = None
    mixer: Block | None = None
    heads: Block | None = None
    activation: str | None = "silu"
    tied: bool = True
    transposed: bool = False
    respelled: bool = True
    neighbours: bool = False
    whole_every: int | str | None = None
    local_rope: bool = False
    chunked: bool = False
    scaled_embedding: bool = False
    generates: bool = True

    @property
    def layer_sets(self) -> Callable[[Mapping[str, Value]], Mapping[str, frozenset[int]]] | None:
        """The sets of layers that differ, where some have experts and others do not."""
        return self.mixture.layer_sets if self.mixture else None


@dataclass(frozen=True, slots=True)
class Stack:
    """A decoder, an encoder or a tower. ``megatron`` is what Megatron's names of its layers begin with;
    ``sizes`` the suffix of its sizes, where a model of several stacks has others for each."""

    names: Names = field(default_factory=Names)
    blocks: Blocks = field(default_factory=Blocks)
    megatron: str = "decoder."
    sizes: str = ""

    @property
    def _within(self) -> str:
        """What Megatron's names of the whole model begin with, the stack among them."""
        return (
            self.megatron.rpartition(".")[0].rpartition(".")[0] + "." if self.megatron.count(".") > 1 else ""
        )

    @property
    def place(self) -> Place:
        """Where the blocks of a layer stand."""
        hole = holes(self.names.layer)[0]
        blocks = self.blocks
        layer = f"{self.megatron}layers.{{{hole}}}."
        return Place(layer, blocks.norm, blocks.transposed, blocks.respelled)

    def rules(self) -> tuple[Rule, ...]:
        """Hugging Face <-> Megatron: what comes before the layers, the layers in the order in which they
        compute, what comes after them, and layers of multi-token prediction."""
        layers = tuple(self._layers())
        found = (*self._before(), *layers, *self._after(), *self._mtp(layers))
        return tuple(rule.of_kind(self.sizes, VARYING_FACTORS) for rule in found)

    def _before(self) -> Iterator[Rule]:
        names, at = self.names, self._within + "embedding."
        if names.embedding:
            yield vocabulary(at + "word_embeddings.weight", names.embedding + ".weight")
        if names.positions:
            yield same(at + "position_embeddings.weight", names.positions + ".weight", "positions hidden")
        if names.token_types:
            yield same(
                at + "tokentype_embeddings.weight", names.token_types + ".weight", "token_types hidden"
            )
        if names.embedding_norm:
            yield from self.place.norms(self.megatron + "initial_layernorm.", names.embedding_norm)

    def _layers(self) -> Iterator[Rule]:
        names, blocks, place = self.names, self.blocks, self.place
        if blocks.mixer:
            yield from blocks.mixer.rules(names, place)
        if blocks.attention:
            yield from blocks.attention.rules(names, place)
        if blocks.mlp and (blocks.mixture is None or blocks.layer_sets):
            dense = DENSE if blocks.layer_sets else ""
            for rule in blocks.mlp.rules(names, place):
                yield replace(rule, layers=rule.layers or dense)
        if blocks.mixture:
            yield from blocks.mixture.rules(names, place)

    def _after(self) -> Iterator[Rule]:
        names = self.names
        if names.final_norm:
            yield from self.place.norms(self.megatron + "final_layernorm.", names.final_norm)
        if names.head:
            when = _UNTIED if self.blocks.tied else ()
            yield vocabulary(self._within + "output_layer.weight", names.head + ".weight", when=when)
        if names.score:
            yield same("score.weight", names.score + ".weight", "score hidden", cut="score")
        if self.blocks.heads:
            yield from self.blocks.heads.rules(names, self.place)

    def _mtp(self, layers: Iterable[Rule]) -> Iterator[Rule]:
        if self.blocks.mtp:
            yield from self.blocks.mtp.rules(self.names, layers, SPARSE)

    def modules(self) -> Iterator[Module]:
        """Megatron's modules that keep an ``_extra_state``."""
        blocks = self.blocks
        rules = [rule for rule in self.rules() if not rule.nemo.startswith("mtp.")]
        attention = blocks.attention
        stateless = isinstance(attention, Attention) and attention.stateless
        found = [
            each for each in keeping_state(rules) if not (stateless and each.name.endswith("core_attention"))
        ]
        yield from found
        if blocks.mtp:
            yield from mtp_modules(found, SPARSE)

    def model_sizes(self, config: Mapping[str, Value]) -> dict[str, int]:
        """Sizes of the factors and holes that the rules name."""
        blocks, names = self.blocks, self.names
        sizes = base_sizes(config)
        for block in (blocks.mixer, blocks.attention, blocks.mlp, blocks.mixture, blocks.mtp, blocks.heads):
            sizes |= block.sizes(config) if block else {}
        sizes |= {"positions": config["seq_length"]} if names.positions else {}
        sizes |= {"token_types": config["num_tokentypes"]} if names.token_types else {}
        return sizes | ({"score": 1} if names.score else {})

    def tied(self) -> tuple[tuple[str, str], ...]:
        """(copy, original) on either side of a model that ties its head."""
        names, at = self.names, self._within
        pairs = [(at + "output_layer.weight", at + "embedding.word_embeddings.weight")]
        if names.head:
            pairs.insert(0, (f"{names.head}.weight", f"{names.embedding}.weight"))
        return tuple(pairs)


def keeping_state(rules: Iterable[Rule]) -> list[Module]:
    """The modules of TransformerEngine's among those that hold these tensors: linear layers, norms that stand
    alone, and the attention between two of its linear layers. Those of one module by name."""
    found: dict[Module, str] = {}
    for rule in rules:
        owner, _, tensor = rule.nemo.rpartition(".")
        where, _, last = owner.rpartition(".")
        if last in ("core_attention", "initial_layernorm"):
            continue
        if last in ("linear_qkv", "linear_kv_up_proj"):
            found[Module(where + ".core_attention", rule.layers)] = where
        if last.startswith("linear_") or last.endswith("layernorm"):
            bias = tensor == "bias" and last.startswith("linear_")
            found[Module(owner, rule.layers, () if bias else rule.when)] = where
    wheres = list(dict.fromkeys(found.values()))
    return sorted(found, key=lambda module: (wheres.index(found[module]), module.name))
