"""What state-space models share: the parts of a Mamba 2 mixer, and where they lie.

A mixer's ``in_proj`` makes z, x, B, C and dt at once. Hugging Face stores it as one tensor, and so does
Megatron in memory, where each rank holds its heads of each; in a checkpoint Megatron keeps the five apart.

Source: megatron/core/ssm/mamba_mixer.py (``sharded_state_dict``), transformers/models/mamba2 and nemotron_h,
nemo/collections/llm/gpt/model/ssm.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ...errors import UnsupportedConfig
from ..blocks.names import Names
from ..blocks.place import Place
from ..hf.fields import Value
from ..rules import same
from ..table import Module, Part, Rule

#: the layers that have a mixer
LAYERS: Final = "mamba"
_INNER: Final = "(mamba_heads mamba_head_dim)"
#: part of a mixer -> (factors of its rows, the one that ranks divide, where they begin in in_proj and conv1d)
_PARTS: Final = {
    "z": (_INNER, "mamba_heads", "mamba_z", None),
    "x": (_INNER, "mamba_heads", "mamba_x", "mamba_z"),
    "B": ("(mamba_groups mamba_state)", "mamba_groups", "mamba_b", "mamba_conv_b"),
    "C": ("(mamba_groups mamba_state)", "mamba_groups", "mamba_c", "mamba_conv_c"),
    "dt": ("mamba_heads", "mamba_heads", "mamba_dt", None),
}
_LENGTHS: Final = {
    "z": "mamba_inner",
    "x": "mamba_inner",
    "B": "mamba_bc",
    "C": "mamba_bc",
    "dt": "mamba_heads",
}
NAMES: Final = {
    "layer": "backbone.layers.{layer}.",
    "embedding": "backbone.embeddings",
    "final_norm": "",
    "mixer_norm": "norm",
    "mixer": "mixer",
}
#: Hugging Face files by the classes that came with the models, or by transformers' own
SPELLINGS: Final = ((r"^backbone\.embedding\.weight$", "backbone.embeddings.weight"),)
FINAL_NORM: Final = same(
    "decoder.final_norm.weight",
    "backbone.norm_f.weight",
    "hidden",
    other_names=("decoder.final_layernorm.weight",),
)
#: unlike its models of attention, Megatron's keep an ``_extra_state`` of the output layer
MODULES: Final = (
    *(Module(f"decoder.layers.{{layer}}.mixer.{name}", LAYERS) for name in ("in_proj", "out_proj")),
    Module("decoder.final_norm"),
    Module("output_layer"),
)


@dataclass(frozen=True, slots=True)
class Mixer:
    """A Mamba 2 mixer, for the layers of the set ``on``."""

    on: str = LAYERS

    def rules(self, names: Names, at: Place) -> Iterator[Rule]:
        """The norm before it, vectors, the parts of projection and convolution, its norm, its output."""
        for rule in self._rules(names, at):
            yield replace(rule, layers=self.on)

    def _rules(self, names: Names, at: Place) -> Iterator[Rule]:
        nemo, hf = at.layer + "mixer.", names.the("mixer") + "."
        yield same(nemo + "in_proj.layer_norm_weight", names.the("mixer_norm") + ".weight", "hidden")
        for name in ("A_log", "D", "dt_bias"):
            rule = same(nemo + name, hf + name, "mamba_heads", cut="mamba_heads")
            yield replace(rule, keeps_dtype=True)
        for part, (rows, cut, first, conv) in _PARTS.items():
            for name, start, whole, rest in (
                ("in_proj.weight", first, "mamba_rows", " hidden"),
                ("conv1d.weight", conv, "mamba_conv_rows", " one mamba_kernel"),
                ("conv1d.bias", conv, "mamba_conv_rows", ""),
            ):
                if start is not None:
                    held = Part(hf + name, rows + rest, window=((0, start, _LENGTHS[part], whole),))
                    yield Rule(f"{nemo}{name}.{part}", rows + rest, (held,), cut=cut)
        yield same(nemo + "norm.weight", hf + "norm.weight", _INNER, cut="mamba_heads")
        yield same(nemo + "out_proj.weight", hf + "out_proj.weight", f"hidden {_INNER}", cut="mamba_heads")

    def sizes(self, config: Mapping[str, Value]) -> dict[str, int]:
        """Of heads, groups and states, and of the rows of the parts."""
        heads, groups = config["mamba_num_heads"], config["mamba_num_groups"]
        if heads % groups:
            raise UnsupportedConfig(f"mamba_num_heads={heads} is not a multiple of mamba_num_groups={groups}")
        inner, bc = heads * config["mamba_head_dim"], groups * config["mamba_state_dim"]
        return {
            "one": 1,
            "mamba_heads": heads,
            "mamba_head_dim": config["mamba_head_dim"],
            "mamba_groups": groups,
            "mamba_state": config["mamba_state_dim"],
            "mamba_kernel": 4,
            "mamba_inner": inner,
            "mamba_bc": bc,
            "mamba_z": 0,
            "mamba_x": inner,
            "mamba_b": 2 * inner,
            "mamba_c": 2 * inner + bc,
            "mamba_dt": 2 * inner + 2 * bc,
            "mamba_rows": 2 * inner + 2 * bc + heads,
            "mamba_conv_b": inner,
            "mamba_conv_c": inner + bc,
            "mamba_conv_rows": inner + 2 * bc,
        }
