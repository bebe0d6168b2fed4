"""What the graph of an architecture is made of, which follows from its names and blocks.

Sizes, windows and scales are in the model config, which every mapping table reads into the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ....errors import NemoconvError, UnsupportedArchitecture
from ....mappings import architectures, described, load_table
from ....mappings.blocks.attention import Attention, Latent
from ....mappings.blocks.mlp import Mixture
from ....mappings.blocks.mlp import Mlp as DenseMlp
from ....mappings.blocks.names import Names
from ....mappings.blocks.place import RMS, Norm
from ....mappings.blocks.stack import Stack
from ....mappings.families.speech import SpeechTable
from ....mappings.hf.fields import Value
from . import projections
from .blocks import Gated, PackedGated, Plain
from .experts import Experts, Mlp, Router, ScaledExperts, StackedExperts
from .projections import Packed, Projections, Separate

_HINT: Final = "docs/onnx.md lists the architectures that have one"
LLAMA_PROJECTIONS, LLAMA_MLP = Separate(), Gated()
#: the kinds that onnxruntime-genai knows by name
_GENAI: Final = frozenset(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 nemotron ernie4_5 smollm3".split()
)


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder; the defaults are a Llama. Names are Hugging Face's, those in a layer without its prefix.

    ``activation`` None stands for the config's ``hidden_act``. ``positions`` is a learned table, in place
    of rotation. ``whole_every``: every so many layers, one sees all tokens where the others have a window;
    a number or a config field; None: all layers have the window, if the config has one. ``local_rope``:
    layers with a window are rotated by ``rotary_base_local``; ``neighbours``: rotation pairs neighbouring
    elements, not halves. ``sinks``: a logit per head that takes part in the softmax and in nothing else.
    ``dense``: the MLP of layers that ``layer_sets`` (the mapping table's) calls dense. ``chunked``: layers
    that are rotated see only their chunk of ``attention_chunk_size`` tokens and normalize heads afterwards,
    and every ``nope_layer_interval``-th does neither. ``genai``: the kind that onnxruntime-genai
    is told; "decoder" is any. ``generates``: with a cache and a head; else attention goes both ways.
    ``score``: weighs the states of a row, pooled.
    """

    embedding: str = "model.embed_tokens"
    positions: str | None = None
    layer: str = "model.layers.{}."
    final_norm: str = "model.norm"
    head: str = "lm_head"

    norm: Norm = RMS
    attention_norm: str = "input_layernorm"
    projections: Projections = LLAMA_PROJECTIONS
    heads_norms: tuple[str, str] | None = None
    sinks: str | None = None
    attention_output: str = "self_attn.o_proj"
    attention_output_norm: str | None = None
    mlp_norm: str = "post_attention_layernorm"
    mlp: Mlp = LLAMA_MLP
    dense: Mlp | None = None
    layer_sets: Callable[[Mapping[str, Value]], Mapping[str, frozenset[int]]] | None = None
    mlp_output_norm: str | None = None
    activation: str | None = "silu"

    whole_every: int | str | None = None
    local_rope: bool = False
    neighbours: bool = False
    chunked: bool = False
    scaled_embedding: bool = False
    transposed_weights: bool = False
    genai: str = "decoder"
    generates: bool = True
    score: str = ""

    def mlp_of(self, config: Mapping[str, Value], layer: int) -> Mlp:
        """The MLP of a layer."""
        dense = self.layer_sets(config)["dense"] if self.layer_sets is not None else ()
        return self.dense if self.dense is not None and layer in dense else self.mlp

    def has_window(self, config: Mapping[str, Value], layer: int) -> bool:
        """Whether a layer sees a window only, in a model that has one."""
        every = config[self.whole_every] if isinstance(self.whole_every, str) else self.whole_every
        return every is None or (layer + 1) % every != 0


def decoder(name: str, stack: Stack) -> Decoder:
    """The graph of a decoder, by its names and blocks. Raises UnsupportedArchitecture for one without."""
    names, blocks = stack.names, stack.blocks
    attention, mixture = blocks.attention, blocks.mixture
    if not isinstance(attention, Attention | Latent) or not isinstance(blocks.mlp, DenseMlp):
        raise _refuse(name, "it has layers of another kind")
    dense = _dense(names)
    return Decoder(
        embedding=names.embedding,
        positions=names.positions or None,
        layer=names.layer.replace("{layer}", "{}"),
        final_norm=names.final_norm,
        head=names.head or "lm_head",
        norm=blocks.norm,
        attention_norm=names.input_norm,
        projections=_projections(names, attention),
        heads_norms=(names.query_norm, names.key_norm) if names.query_norm else None,
        sinks=names.sinks or None,
        attention_output=names.attention_output,
        attention_output_norm=names.attention_output_norm or None,
        mlp_norm=names.mlp_norm,
        mlp=_mixture(name, names, mixture) if mixture else dense,
        dense=dense if blocks.layer_sets else None,
        layer_sets=blocks.layer_sets,
        mlp_output_norm=names.mlp_output_norm or None,
        activation=blocks.activation,
        whole_every=blocks.whole_every,
        local_rope=blocks.local_rope,
        neighbours=blocks.neighbours,
        chunked=blocks.chunked,
        scaled_embedding=blocks.scaled_embedding,
        transposed_weights=blocks.transposed,
        genai=name if name in _GENAI else "decoder",
        generates=blocks.generates,
        score=names.score,
    )


def _projections(names: Names, attention: Attention | Latent) -> Projections:
    if isinstance(attention, Latent):
        low = (names.query_down, names.query_down_norm, names.query_up)
        return projections.Latent(names.query, *low, names.latent_down, names.latent_norm, names.latent_up)
    if names.packed:
        return Packed(names.query, attention.by_group)
    return Separate(names.query, names.key, names.value)


def _dense(names: Names) -> Mlp:
    if names.gate and names.gate == names.up:
        return PackedGated(names.up, names.down)
    return Gated(names.gate, names.up, names.down) if names.gate else Plain(names.up, names.down)


def _mixture(name: str, names: Names, mixture: Mixture) -> Mlp:
    router = Router(names.router, mixture.scores, names.correction, mixture.normalized)
    shared = None
    if names.shared_up:
        shared = Gated(names.shared_gate, names.shared_up, names.shared_down)
    if not mixture.stacked:
        before, _, gate = names.expert_gate.partition("{expert}.")
        one = Gated(gate, *(each.rpartition("{expert}.")[2] for each in (names.expert_up, names.expert_down)))
        return Experts(router, before + "{}.", one, shared, names.shared_scale)
    if mixture.scaled_inputs and shared:
        return ScaledExperts(router, names.expert_up, names.expert_down, shared)
    if mixture.biases:
        return StackedExperts(router, names.expert_up, names.expert_down)
    raise _refuse(name, "its experts are of another kind")


@dataclass(frozen=True, slots=True)
class Encoder:
    """A BERT, by its names; it generates nothing."""

    names: Names
    generates: bool = False


@dataclass(frozen=True, slots=True)
class Speech:
    """A speech model of several graphs, see :mod:`nemoconv.converters.onnx.graph.speech`; ``head`` is what
    makes text of its encoder's states, ``nemo`` NeMo's class. It generates tokens, but not with one graph and
    a cache."""

    head: str
    nemo: str
    generates: bool = False


def find(name: str) -> Decoder | Encoder | Speech:
    """The graph of an architecture. Raises UnsupportedArchitecture, naming those there are."""
    table, architecture = load_table(name), described(name)
    if isinstance(table, SpeechTable):
        return Speech(table.head, table.nemo.model)
    if architecture is None or not architecture.follows:
        raise _refuse(name, "it has parts that no block describes")
    stack = architecture.main
    if not stack.names.token_types:
        return decoder(architecture.name, stack)
    if stack.names.input_norm:
        raise _refuse(name, "its norms come before attention and MLP")
    return Encoder(stack.names)


def known() -> dict[str, Decoder | Encoder | Speech]:
    """The graphs of all registered architectures that have one."""
    found = {}
    for name in architectures():
        try:
            found[name] = find(name)
        except NemoconvError:
            continue
    return found


def _refuse(name: str, why: str) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(f"there is no ONNX graph for {name!r}: {why}", hint=_HINT)
