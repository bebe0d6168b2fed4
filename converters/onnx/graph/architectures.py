"""What the graph of an architecture is made of, which follows from its names and blocks.

Sizes, windows and scales are in the model config, which every mapping table reads into the same words. Every
field of it is accounted for: a graph that follows from blocks must not leave out what the config says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ....errors import NemoconvError, UnsupportedArchitecture, UnsupportedConfig, some
from ....mappings import architectures, described, load_table
from ....mappings.blocks.attention import Attention, Latent
from ....mappings.blocks.mlp import Mixture, Mlp
from ....mappings.blocks.names import Names
from ....mappings.blocks.stack import Blocks, Stack
from ....mappings.families.speech import SpeechTable
from ....mappings.hf.fields import Value
from ....mappings.table import Table
from .attention import LatentProjections, PackedProjections, Projections, SeparateProjections
from .mlp import Experts, Gated, MlpGraph, PackedGated, Plain, Router, ScaledExperts, StackedExperts

_HINT: Final = "docs/onnx.md lists the architectures that have one"
#: the kinds that onnxruntime-genai knows by name
_GENAI: Final = frozenset(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 nemotron ernie4_5 smollm3".split()
)


#: of training; the type of the tensors, which they say themselves; how long texts may be
_NO_COMPUTATION: Final = frozenset(
    "attention_dropout hidden_dropout init_method_std moe_aux_loss_coeff params_dtype seq_length".split()
)


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder by its names and blocks, and what attention and MLP are built of. ``dense``: the MLP of
    layers that the blocks' ``layer_sets`` calls dense. ``genai``: the kind that onnxruntime-genai is told;
    "decoder" is any."""

    names: Names
    blocks: Blocks
    projections: Projections
    mlp: MlpGraph
    dense: MlpGraph
    genai: str = "decoder"

    @property
    def generates(self) -> bool:
        """Whether it has a cache and a head; else attention goes both ways."""
        return self.blocks.generates

    def mlp_of(self, config: Mapping[str, Value], layer: int) -> MlpGraph:
        """The MLP of a layer."""
        dense = self.blocks.layer_sets(config)["dense"] if self.blocks.layer_sets else ()
        return self.dense if layer in dense else self.mlp

    def has_window(self, config: Mapping[str, Value], layer: int) -> bool:
        """Whether a layer sees a window only, in a model that has one."""
        every = self.blocks.whole_every
        every = config[every] if isinstance(every, str) else every
        return every is None or (layer + 1) % every != 0


def decoder(name: str, stack: Stack) -> Decoder:
    """The graph of a decoder, by its names and blocks. Raises UnsupportedArchitecture for one without."""
    names, blocks = stack.names, stack.blocks
    attention, mixture = blocks.attention, blocks.mixture
    if not isinstance(attention, Attention | Latent) or not isinstance(blocks.mlp, Mlp):
        raise _refuse(name, "it has layers of another kind")
    dense = _dense(names)
    mlp = _mixture(name, names, mixture) if mixture else dense
    genai = name if name in _GENAI else "decoder"
    return Decoder(names, blocks, _projections(names, attention), mlp, dense, genai)


def _projections(names: Names, attention: Attention | Latent) -> Projections:
    if isinstance(attention, Latent):
        low = (names.query_down, names.query_down_norm, names.query_up)
        down, norm, up = names.latent_down, names.latent_norm, names.latent_up
        return LatentProjections(names.query, *low, down, norm, up)
    if names.packed:
        return PackedProjections(names.query, attention.by_group)
    return SeparateProjections(names.query, names.key, names.value)


def _dense(names: Names) -> MlpGraph:
    if names.gate and names.gate == names.up:
        return PackedGated(names.up, names.down)
    return Gated(names.gate, names.up, names.down) if names.gate else Plain(names.up, names.down)


def _mixture(name: str, names: Names, mixture: Mixture) -> MlpGraph:
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
class SpeechModel:
    """A speech model of several graphs, see :mod:`nemoconv.converters.onnx.graph.speech`; ``head`` is what
    makes text of its encoder's states, ``nemo`` NeMo's class. It generates tokens, but not with one graph and
    a cache."""

    head: str
    nemo: str
    generates: bool = False


def find(name: str) -> Decoder | Encoder | SpeechModel:
    """The graph of an architecture. Raises UnsupportedArchitecture, naming those there are."""
    table, architecture = load_table(name), described(name)
    if isinstance(table, SpeechTable):
        return SpeechModel(table.head, table.nemo.model)
    if architecture is None or not architecture.follows:
        raise _refuse(name, "it has parts that no block describes")
    stack = architecture.main
    if not stack.names.token_types:
        return decoder(architecture.name, stack)
    if stack.names.input_norm:
        raise _refuse(name, "its norms come before attention and MLP")
    return Encoder(stack.names)


def known() -> dict[str, Decoder | Encoder | SpeechModel]:
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


class Reading(Mapping[str, Value]):
    """A model config that knows which of its fields were read."""

    def __init__(self, config: Mapping[str, Value]) -> None:
        self._config = config
        self.read: set[str] = set()

    def __getitem__(self, field: str) -> Value:
        self.read.add(field)
        return self._config[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)


def check_read(table: Table, kind: Decoder | Encoder, config: Reading) -> None:
    """Raise UnsupportedConfig for fields that the graph built from ``config`` did not read, by name, unless a
    condition of a tensor, a size or a set of layers says what they say. None says nothing."""
    for ask in (table.sizes, table.layer_sets, table.uniform_layers):
        if ask:
            ask(config)
    conditions = {name for rule in table.rules for name, _ in (*rule.when, *rule.hf_when)}
    known = config.read.union(conditions, _NO_COMPUTATION, _of_some_layers(kind))
    said = frozenset().union(*(rule.fields for rule in table.fields)) & config.keys()
    left = [f"{name}={config[name]!r}" for name in sorted(said - known) if config[name] is not None]
    if left:
        raise UnsupportedConfig(
            f"the ONNX graph of {table.architecture!r} leaves out what the config says: {some(left)}",
            hint="convert to another format, or ask for a graph that computes it",
        )


def _of_some_layers(kind: Decoder | Encoder) -> Iterator[str]:
    """Fields that a graph reads for layers that a model need not have, and those of a head that it lacks."""
    yield "sliding_window"
    if not kind.generates:
        yield "share_embeddings_and_output_weights"
    elif isinstance(kind, Decoder):
        yield from ["rotary_base_local"] * kind.blocks.local_rope
        yield from ["attention_chunk_size"] * kind.blocks.chunked
