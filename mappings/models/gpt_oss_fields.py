"""gpt-oss: what config.json says, and the fields of NeMo's class that say it.

Source: transformers/models/gpt_oss, nemo/collections/llm/gpt/model/gpt_oss.py (NeMo 2.6 and newer).
"""

from ..families.yarn import YarnFields, YarnRope
from ..hf.fields import AlternatingWindow, Dtype, Field, Fixed, Unread
from ..hf.fields_moe import Aliased, AlsoCalled
from ..nemo2.configs_gpt_oss import GPT_OSS_DEFAULTS, QUICK_GELU
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields import NemoClasses, Same, with_rules
from ..nemo2.fields_moe import MOE_DECODER, EverySecondWindow, OneOfSymbols, Repeated

YARN: tuple[tuple[str, object], ...] = (
    ("rope_type", "yarn"),
    ("factor", 32.0),
    ("beta_fast", 32.0),
    ("beta_slow", 1.0),
    ("truncate", False),
    ("original_max_position_embeddings", 4096),
)
CLASSES = NemoClasses(
    module="nemo.collections.llm.gpt.model.gpt_oss",
    model="GPTOSSModel",
    config="GPTOSSConfig",
    defaults=GPT_OSS_DEFAULTS,
    rules=with_rules(
        MOE_DECODER,
        NemoFixed("add_bias_linear", True, written=True),
        Repeated("moe_ffn_hidden_size", "ffn_hidden_size"),
        NemoFixed("moe_router_pre_softmax", False, written=True),
        NemoFixed("softmax_type", "learnable", written=True),
        NemoFixed("glu_linear_offset", 1.0, written=True),
        OneOfSymbols("activation_func", QUICK_GELU),
        Same("activation_func_clamp_value"),
        EverySecondWindow(),
        YarnFields(),
    ),
)
FIELDS = (
    Field("num_hidden_layers", "num_layers", 36),
    Field("hidden_size", "hidden_size", 2880),
    Field("intermediate_size", "ffn_hidden_size", 2880),
    Field("num_attention_heads", "num_attention_heads", 64),
    Field("num_key_value_heads", "num_query_groups", 8, default_from="num_attention_heads"),
    Field("head_dim", "kv_channels", 64),
    Field("vocab_size", "vocab_size", 201088),
    Field("max_position_embeddings", "seq_length", 131072),
    Field("rms_norm_eps", "layernorm_epsilon", 1e-5, kind=float),
    Field("initializer_range", "init_method_std", 0.02, kind=float),
    Field("attention_dropout", "attention_dropout", 0.0, kind=float),
    Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
    Aliased(("num_local_experts", "num_experts"), "num_moe_experts", 128),
    Field("num_experts_per_tok", "moe_router_topk", 4),
    AlsoCalled("experts_per_token", "moe_router_topk"),
    Field("router_aux_loss_coef", "moe_aux_loss_coeff", 0.001, kind=float),
    Field("swiglu_limit", "activation_func_clamp_value", 7.0, kind=float),
    Fixed("swiglu_alpha", 1.702),
    Fixed("hidden_act", "silu"),
    Fixed("attention_bias", True),
    AlternatingWindow(128),
    Unread(("initial_context_length",)),
    YarnRope(150000.0, YARN),
    Dtype(),
)
