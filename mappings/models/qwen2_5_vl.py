"""Qwen2.5-VL: a ``Qwen2_5_VLForConditionalGeneration``, whose tower has RMSNorms, gated MLPs and windows."""

from ..families.qwen_vl import BLOCKS, COMMON, nemo_parts, rules_of, tower_classes
from ..families.qwen_vl_fields import fields, tower_fields
from ..families.vision import TOWER
from ..hf.fields import Field
from ..hf.fields_tower import FullAttentionBlocks
from ..hf.fields_vision import Must
from ..nemo2.configs_vision import QWEN2_5_VL_DEFAULTS, QWEN2_5_VL_TOWER
from ..nemo2.fields import Same
from ..rules import gated, same
from ..table import Table

FC1, GATE, UP = TOWER + "mlp.linear_fc1.", BLOCKS + "mlp.gate_proj.", BLOCKS + "mlp.up_proj."

TABLE = Table(
    architecture="qwen2_5_vl",
    hf_class="Qwen2_5_VLForConditionalGeneration",
    nemo=nemo_parts(
        tower_classes("Qwen25VLVisionConfig", QWEN2_5_VL_TOWER, Same("fullatt_block_indexes")),
        QWEN2_5_VL_DEFAULTS,
        "qwen25-vl",
    ),
    fields=fields(
        "qwen2_5_vl",
        tower_fields(
            Field("hidden_size", "hidden_size", 3584),
            Field("out_hidden_size", "out_hidden_size", 3584),
            Field("intermediate_size", "ffn_hidden_size", 3420),
            FullAttentionBlocks(),
            Must("hidden_act", "silu", "silu"),
            Must("window_size", 112, 112),
            Must("tokens_per_second", 2, 4),
        ),
    ),
    rules=rules_of(
        ("weight",),
        gated(FC1 + "weight", GATE + "weight", UP + "weight"),
        gated(FC1 + "bias", GATE + "bias", UP + "bias", bias=True),
        same(TOWER + "mlp.linear_fc2.weight", BLOCKS + "mlp.down_proj.weight", "hidden ffn", cut="ffn"),
        same(TOWER + "mlp.linear_fc2.bias", BLOCKS + "mlp.down_proj.bias", "hidden"),
    ),
    **COMMON,
    verified=("bit-equal", "transformers logits", "real NeMo logits", "real NeMo import and export"),
)
