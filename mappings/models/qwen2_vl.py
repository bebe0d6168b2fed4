"""Qwen2-VL: a ``Qwen2VLForConditionalGeneration`` of a tower, an MLP and a Qwen 2."""

from ..blocks.place import LAYER
from ..families.qwen_vl import nemo_parts, qwen_vl, tower_classes, tower_fields
from ..hf.fields import Field
from ..hf.fields_tower import MlpRatio
from ..hf.fields_vision import Must
from ..nemo2 import classes

QWEN2_VL = qwen_vl(
    "qwen2_vl",
    "Qwen2VLForConditionalGeneration",
    tower_fields(
        Field("embed_dim", "hidden_size", 1280),
        Field("hidden_size", "out_hidden_size", 3584),
        MlpRatio(),
        Must("hidden_act", "quick_gelu", "quick_gelu"),
    ),
    norm=LAYER,
    mlp={"gate": "", "up": "mlp.fc1", "down": "mlp.fc2"},
    nemo2=nemo_parts(
        tower_classes("Qwen2VLVisionConfig"),
        classes.family("Qwen2VLConfig", *(f"Qwen2VLConfig{size}B" for size in (2, 7, 72))),
        "qwen2-vl",
    ),
)
