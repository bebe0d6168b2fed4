"""Qwen2-VL: a ``Qwen2VLForConditionalGeneration`` of a tower, an MLP and a Qwen 2."""

from ..families.qwen_vl import BLOCKS, COMMON, nemo_parts, rules_of, tower_classes
from ..families.qwen_vl_fields import fields, tower_fields
from ..families.vision import TOWER
from ..hf.fields import Field
from ..hf.fields_tower import MlpRatio
from ..hf.fields_vision import Must
from ..nemo2.configs_vision import QWEN2_VL_DEFAULTS, QWEN2_VL_TOWER
from ..rules import same
from ..table import Table

TABLE = Table(
    architecture="qwen2_vl",
    hf_class="Qwen2VLForConditionalGeneration",
    nemo=nemo_parts(tower_classes("Qwen2VLVisionConfig", QWEN2_VL_TOWER), QWEN2_VL_DEFAULTS, "qwen2-vl"),
    fields=fields(
        "qwen2_vl",
        tower_fields(
            Field("embed_dim", "hidden_size", 1280),
            Field("hidden_size", "out_hidden_size", 3584),
            MlpRatio(),
            Must("hidden_act", "quick_gelu", "quick_gelu"),
        ),
    ),
    rules=rules_of(
        ("weight", "bias"),
        same(TOWER + "mlp.linear_fc1.weight", BLOCKS + "mlp.fc1.weight", "ffn hidden", cut="ffn"),
        same(TOWER + "mlp.linear_fc1.bias", BLOCKS + "mlp.fc1.bias", "ffn", cut="ffn"),
        same(TOWER + "mlp.linear_fc2.weight", BLOCKS + "mlp.fc2.weight", "hidden ffn", cut="ffn"),
        same(TOWER + "mlp.linear_fc2.bias", BLOCKS + "mlp.fc2.bias", "hidden"),
    ),
    **COMMON,
    verified=("bit-equal", "transformers logits", "real NeMo logits", "real NeMo import and export"),
)
