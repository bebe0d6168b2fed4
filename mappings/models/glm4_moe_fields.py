"""GLM-4.5: what config.json says, and the fields of NeMo's plain ``GPTConfig`` that say it.

Source: transformers/models/glm4_moe, nemo/collections/llm/gpt/model/base.py.
"""

from types import MappingProxyType

from ...formats.text.fiddle import Symbol
from ..hf.fields import Dtype, Field, Fixed, HeadDim
from ..hf.fields_moe import Aliased, DenseFirst, ExpertGroups, SharedExperts
from ..hf.rope import PartialRope
from ..mtp import FurtherFields, FurtherLayers
from ..nemo2.configs_moe import config_class
from ..nemo2.fields import Count, NemoClasses, Same, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields_moe import MOE_DECODER, LayerFreq, ScalingFactor, SetTo, WrittenBlockSpec

SILU = Symbol("torch.nn.functional", "silu")
#: of GPTConfig: what differs from the classes that config_class describes
GPT_CONFIG = config_class(
    seq_length=1024,
    position_embedding_type="learned_absolute",
    rotary_base=10000,
    normalization="LayerNorm",
    activation_func=Symbol("torch.nn.functional", "gelu"),
    gated_linear_unit=False,
    add_bias_linear=True,
    share_embeddings_and_output_weights=True,
    attention_dropout=0.1,
)
CLASSES = NemoClasses(
    module="nemo.collections.llm.gpt.model.base",
    model="GPTModel",
    config="GPTConfig",
    defaults=MappingProxyType({"GPTConfig": GPT_CONFIG}),
    rules=with_rules(
        MOE_DECODER,
        NemoFixed("position_embedding_type", "rope", written=True),
        NemoFixed("normalization", "RMSNorm", written=True),
        NemoFixed("activation_func", SILU, written=True),
        NemoFixed("moe_router_score_function", "sigmoid", written=True),
        NemoFixed("moe_router_enable_expert_bias", True, written=True),
        NemoFixed("moe_router_pre_softmax", False, written=True),
        Same("rotary_percent"),
        Same("add_qkv_bias"),
        Same("qk_layernorm"),
        Same("moe_router_num_groups"),
        Same("moe_router_group_topk"),
        Count("moe_shared_expert_intermediate_size"),
        LayerFreq(),
        ScalingFactor(),
        WrittenBlockSpec(),
        FurtherFields(),
        SetTo("hidden_dropout", 0.0),
        SetTo("moe_router_dtype", "fp32"),
    ),
    marks=(
        ("num_moe_experts", True),
        ("moe_router_enable_expert_bias", True),
        ("multi_latent_attention", False),
    ),
)
FIELDS = (
    Field("num_hidden_layers", "num_layers", 46),
    Field("hidden_size", "hidden_size", 4096),
    Field("intermediate_size", "ffn_hidden_size", 10944),
    Field("num_attention_heads", "num_attention_heads", 96),
    Field("num_key_value_heads", "num_query_groups", 8),
    HeadDim(),
    Field("vocab_size", "vocab_size", 151552),
    Field("max_position_embeddings", "seq_length", 131072),
    Field("rms_norm_eps", "layernorm_epsilon", 1e-5, kind=float),
    Field("initializer_range", "init_method_std", 0.02, kind=float),
    Field("attention_dropout", "attention_dropout", 0.0, kind=float),
    Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
    Field("attention_bias", "add_qkv_bias", False, kind=bool),
    Field("use_qk_norm", "qk_layernorm", False, kind=bool),
    Field("moe_intermediate_size", "moe_ffn_hidden_size", 1408),
    Aliased(("n_routed_experts", "num_local_experts"), "num_moe_experts", 128),
    Field("num_experts_per_tok", "moe_router_topk", 8),
    Field("routed_scaling_factor", "moe_router_topk_scaling_factor", 1.0, kind=float),
    Field("router_aux_loss_coef", "moe_aux_loss_coeff", 0.0, kind=float),
    ExpertGroups((1, 1), ranked_by=2),
    SharedExperts(1),
    DenseFirst(1),
    Fixed("norm_topk_prob", True),
    Fixed("hidden_act", "silu"),
    FurtherLayers(),
    PartialRope(default_factor=0.5),
    Dtype(),
)
