"""gpt-oss 20B and 120B: attention sinks, windows on every second layer, experts with biases.

config.json may say that the experts are in MXFP4: they are decoded as they are read. Plain ones are stored
[experts, in, out] with gate and up alternating.

Sources: transformers/models/gpt_oss, modeling_rope_utils.py (``_compute_yarn_parameters``);
megatron/core/transformer/dot_product_attention.py, moe/experts.py and models/common/embeddings/
yarn_rotary_pos_embedding.py; nemo/collections/llm/gpt/model/gpt_oss.py (NeMo 2.6 and newer).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedConfig
from ..blocks.attention import Attention
from ..blocks.mlp import Mixture
from ..blocks.place import ALWAYS
from ..blocks.stack import Blocks
from ..hf.fields import AlternatingWindow, Field, Fixed, Unread, Value
from ..hf.fields_moe import Aliased, AlsoCalled
from ..hf.rope import Rope
from ..llama_like import llama_like
from ..nemo2.entry import Nemo2
from ..nemo2.fields import NemoFixed, Same, text
from ..nemo2.fields_moe import EverySecondWindow, OneOfSymbols, RepeatedField
from ..nemo2.symbols import CORE_QUICK_GELU

YARN: tuple[tuple[str, object], ...] = (
    ("rope_type", "yarn"),
    ("factor", 32.0),
    ("beta_fast", 32.0),
    ("beta_slow", 1.0),
    ("truncate", False),
    ("original_max_position_embeddings", 4096),
)


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


GPT_OSS = llama_like(
    "gpt_oss",
    "GptOssForCausalLM",
    names={
        "sinks": "self_attn.sinks",
        "router": "mlp.router",
        **dict.fromkeys(("expert_gate", "expert_up"), "mlp.experts.gate_up_proj"),
        "expert_down": "mlp.experts.down_proj",
    },
    blocks=Blocks(
        attention=Attention(bias=ALWAYS, output_bias=ALWAYS),
        mixture=Mixture("moe_ffn half", biases=True, whole=True),
        whole_every=2,
    ),
    defaults={
        "num_hidden_layers": 36,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
    },
    config=(
        Aliased(("num_local_experts", "num_experts"), "num_moe_experts", 128),
        Field("num_experts_per_tok", "moe_router_topk", 4),
        AlsoCalled("experts_per_token", "moe_router_topk"),
        Field("router_aux_loss_coef", "moe_aux_loss_coeff", 0.001, kind=float),
        Field("swiglu_limit", "activation_func_clamp_value", 7.0, kind=float),
        Fixed("swiglu_alpha", 1.702),
        Fixed("attention_bias", True),
        AlternatingWindow(128),
        Unread(("initial_context_length",)),
        YarnRope(150000.0, YARN),
    ),
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.gpt_oss",
        "GPTOSSModel",
        "GPTOSSConfig",
        (
            RepeatedField("moe_ffn_hidden_size", "ffn_hidden_size"),
            NemoFixed("moe_router_pre_softmax", False, written=True),
            NemoFixed("softmax_type", "learnable", written=True),
            NemoFixed("glu_linear_offset", 1.0, written=True),
            OneOfSymbols("activation_func", CORE_QUICK_GELU),
            Same("activation_func_clamp_value"),
            EverySecondWindow(),
            YarnFields(),
        ),
    ),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "transformers' own MXFP4 decoding",
    ),
)
