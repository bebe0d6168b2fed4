"""YaRN on whole attention heads (gpt-oss): config.json's rope dictionary <-> NeMo's ``yarn_*`` fields.

Sources: transformers/modeling_rope_utils.py (``_compute_yarn_parameters``), megatron/core/models/common/
embeddings/yarn_rotary_pos_embedding.py, nemo/collections/llm/gpt/model/gpt_oss.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedConfig
from ..hf.fields import Value
from ..hf.rope import Rope
from ..nemo2.fields import text


@dataclass(frozen=True, slots=True)
class YarnRope(Rope):
    """:class:`Rope` with YaRN or without; ``default_scaling`` is what transformers takes for none given.

    The normal form says ``beta_fast`` and ``beta_slow`` always, ``truncate`` where it is off, and the two
    mscale factors where both are set, since transformers reads them together only.
    """

    default_scaling: tuple[tuple[str, Value], ...] = ()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        if hf.get("rope_parameters") is None and hf.get("rope_scaling") is None and self.default_scaling:
            hf = {**hf, "rope_scaling": dict(self.default_scaling)}
        Rope.read(self, hf, config)
        scaling = config["rope_scaling"]
        if scaling is None:
            return
        original = scaling.get("original_max_position_embeddings")
        if scaling["rope_type"] != "yarn" or "attention_factor" in scaling or original is None:
            raise UnsupportedConfig(
                f"config.json: the rotary scaling {dict(scaling)} has no counterpart for this architecture; "
                "it must be yarn with original_max_position_embeddings and without attention_factor"
            )
        normal = {
            "rope_type": "yarn",
            "beta_fast": scaling.get("beta_fast") or 32.0,
            "beta_slow": scaling.get("beta_slow") or 1.0,
            "factor": scaling["factor"],
            "original_max_position_embeddings": original,
        }
        if not scaling.get("truncate", True):
            normal["truncate"] = False
        if scaling.get("mscale") and scaling.get("mscale_all_dim"):
            normal |= {key: scaling[key] for key in ("mscale", "mscale_all_dim")}
        config["rope_scaling"] = normal


@dataclass(frozen=True, slots=True)
class YarnFields:
    """``position_embedding_type`` "yarn" with NeMo's ``yarn_*`` fields, or "rope".

    Without both mscale factors megatron-core stretches attention by ``0.1 ln(factor) + 1``, as
    transformers does. NeMo's own class has 1 for both, which stretches nothing: so they are always set.
    """

    names = frozenset(
        """position_embedding_type seq_len_interpolation_factor yarn_rotary_scaling_factor
        yarn_original_max_position_embeddings yarn_beta_fast yarn_beta_slow yarn_mscale yarn_mscale_all_dim
        yarn_correction_range_round_to_int""".split()
    )

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        kind = fields["position_embedding_type"]
        if kind not in ("rope", "yarn") or fields.get("seq_len_interpolation_factor") is not None:
            raise UnsupportedConfig(
                f"the NeMo config says position_embedding_type={text(kind)}, seq_len_interpolation_factor="
                f"{text(fields.get('seq_len_interpolation_factor'))}, which has no counterpart"
            )
        config["rope_scaling"] = None
        if kind == "rope":
            return
        config["rope_scaling"] = {
            "rope_type": "yarn",
            "beta_fast": float(fields["yarn_beta_fast"]),
            "beta_slow": float(fields["yarn_beta_slow"]),
            "factor": float(fields["yarn_rotary_scaling_factor"]),
            "original_max_position_embeddings": fields["yarn_original_max_position_embeddings"],
        }
        if not fields["yarn_correction_range_round_to_int"]:
            config["rope_scaling"]["truncate"] = False
        one, all_dim = fields["yarn_mscale"], fields["yarn_mscale_all_dim"]
        if one and all_dim:
            config["rope_scaling"] |= {"mscale": float(one), "mscale_all_dim": float(all_dim)}
        elif None not in (one, all_dim) and (one, all_dim) != (1, 0):
            raise UnsupportedConfig(
                f"the NeMo config says yarn_mscale={one}, yarn_mscale_all_dim={all_dim}: no counterpart"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        scaling = config["rope_scaling"]
        if scaling is None:
            fields["position_embedding_type"] = "rope"
            return
        fields |= {
            "position_embedding_type": "yarn",
            "yarn_rotary_scaling_factor": scaling["factor"],
            "yarn_original_max_position_embeddings": scaling["original_max_position_embeddings"],
            "yarn_beta_fast": scaling["beta_fast"],
            "yarn_beta_slow": scaling["beta_slow"],
            "yarn_mscale": scaling.get("mscale"),
            "yarn_mscale_all_dim": scaling.get("mscale_all_dim"),
            "yarn_correction_range_round_to_int": scaling.get("truncate", True),
        }
