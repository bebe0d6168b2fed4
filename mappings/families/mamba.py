"""What the tables of state-space models share: the parts of a Mamba 2 mixer, and where they lie.

A mixer's ``in_proj`` makes z, x, B, C and dt at once. Hugging Face stores it as one tensor, and so does
Megatron in memory, where each rank holds its heads of each; in a checkpoint Megatron keeps the five apart.

Source: megatron/core/ssm/mamba_mixer.py (``sharded_state_dict``), transformers/models/mamba2 and nemotron_h,
nemo/collections/llm/gpt/model/ssm.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...errors import UnsupportedConfig
from ..blocks import NEMO
from ..hf.fields import Value
from ..rules import same, vocabulary
from ..table import Module, Part, Rule

HF = "backbone.layers.{layer}."
#: part of a mixer -> (factors of its rows, the one that ranks divide, where they begin in in_proj and conv1d)
_PARTS = {
    "z": ("(mamba_heads mamba_head_dim)", "mamba_heads", "mamba_z", None),
    "x": ("(mamba_heads mamba_head_dim)", "mamba_heads", "mamba_x", "mamba_z"),
    "B": ("(mamba_groups mamba_state)", "mamba_groups", "mamba_b", "mamba_conv_b"),
    "C": ("(mamba_groups mamba_state)", "mamba_groups", "mamba_c", "mamba_conv_c"),
    "dt": ("mamba_heads", "mamba_heads", "mamba_dt", None),
}
_LENGTHS = {"z": "mamba_inner", "x": "mamba_inner", "B": "mamba_bc", "C": "mamba_bc", "dt": "mamba_heads"}


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of the factors of :func:`mixer`, and the rows of its parts."""
    heads, groups = config["mamba_num_heads"], config["mamba_num_groups"]
    if heads % groups:
        raise UnsupportedConfig(f"mamba_num_heads={heads} is not a multiple of mamba_num_groups={groups}")
    inner, bc = heads * config["mamba_head_dim"], groups * config["mamba_state_dim"]
    return {
        "layers": config["num_layers"],
        "hidden": config["hidden_size"],
        "vocab": config["vocab_size"],
        "true_vocab": config["vocab_size"],
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


def mixer(layers: str = "") -> tuple[Rule, ...]:
    """The tensors of a Mamba 2 mixer, and the norm before it, for the layers of a set."""
    nemo, hf = NEMO + "mixer.", HF + "mixer."
    rules = [
        same(nemo + "in_proj.layer_norm_weight", HF + "norm.weight", "hidden"),
        *(replace(_vector(name, nemo, hf), keeps_dtype=True) for name in ("A_log", "D", "dt_bias")),
    ]
    for part, (rows, cut, first, conv) in _PARTS.items():
        for name, start, whole, rest in (
            ("in_proj.weight", first, "mamba_rows", " hidden"),
            ("conv1d.weight", conv, "mamba_conv_rows", " one mamba_kernel"),
            ("conv1d.bias", conv, "mamba_conv_rows", ""),
        ):
            if start is not None:
                window = ((0, start, _LENGTHS[part], whole),)
                held = Part(hf + name, rows + rest, window=window)
                rules.append(Rule(f"{nemo}{name}.{part}", rows + rest, (held,), cut=cut))
    inner = "(mamba_heads mamba_head_dim)"
    rules.append(same(nemo + "norm.weight", hf + "norm.weight", inner, cut="mamba_heads"))
    rules.append(same(nemo + "out_proj.weight", hf + "out_proj.weight", f"hidden {inner}", cut="mamba_heads"))
    return tuple(replace(rule, layers=layers) for rule in rules)


def _vector(name: str, nemo: str, hf: str) -> Rule:
    return same(nemo + name, hf + name, "mamba_heads", cut="mamba_heads")


EMBEDDING = vocabulary("embedding.word_embeddings.weight", "backbone.embeddings.weight")
FINAL_NORM = same(
    "decoder.final_norm.weight", "backbone.norm_f.weight", "hidden", also=("decoder.final_layernorm.weight",)
)
#: Hugging Face files by the classes that came with the models, or by transformers' own
SPELLINGS = ((r"^backbone\.embedding\.weight$", "backbone.embeddings.weight"),)
TIED = (
    ("lm_head.weight", "backbone.embeddings.weight"),
    ("output_layer.weight", "embedding.word_embeddings.weight"),
)


def modules(layers: str = "") -> tuple[Module, ...]:
    return tuple(Module(f"{NEMO}mixer.{name}", layers=layers) for name in ("in_proj", "out_proj"))


#: after the layers; unlike its models of attention, Megatron's keep an ``_extra_state`` of the output layer
END = (Module("decoder.final_norm"), Module("output_layer"))
