"""Qwen2.5-VL: a ``Qwen2_5_VLForConditionalGeneration``, whose tower has RMSNorms, gated MLPs and windows."""

from ..blocks.place import RMS
from ..families.qwen_vl import nemo_parts, qwen_vl, tower_classes, tower_fields
from ..hf.fields import Field
from ..hf.fields_tower import FullAttentionBlocks
from ..hf.fields_vision import Must
from ..nemo2 import classes
from ..nemo2.fields import Same

QWEN2_5_VL = qwen_vl(
    "qwen2_5_vl",
    "Qwen2_5_VLForConditionalGeneration",
    tower_fields(
        Field("hidden_size", "hidden_size", 3584),
        Field("out_hidden_size", "out_hidden_size", 3584),
        Field("intermediate_size", "ffn_hidden_size", 3420),
        FullAttentionBlocks(),
        Must("hidden_act", "silu", "silu"),
        Must("window_size", 112, 112),
        Must("tokens_per_second", 2, 4),
    ),
    norm=RMS,
    sample={"vision_config": {"tokens_per_second": 2}},
    mlp={},
    nemo2=nemo_parts(
        tower_classes("Qwen25VLVisionConfig", Same("fullatt_block_indexes")),
        classes.family("Qwen2VLConfig", *(f"Qwen25VLConfig{size}B" for size in (3, 7, 32, 72))),
        "qwen25-vl",
    ),
)
