"""The vision tower of CLIP inside a larger model, which NeMo keeps as transformers' own ``CLIPVisionModel``.

Its tensors have transformers' names on both sides, one for each layer, whole on every rank.
Source: transformers/models/clip, nemo/collections/vlm/vision/base.py.
"""

from ..hf.fields import Field
from ..hf.fields_tower import VisionHeads
from ..hf.fields_vision import Must
from ..nemo2.configs_vision import CLIP_DEFAULTS, VISION_BASE
from ..nemo2.fields import NemoClasses, Unused
from ..nemo2.fields_vision import ClipTower
from ..rules import same
from ..table import Rule
from .vision import tower_rules

HF, NEMO = "vision_tower.vision_model.", "vision_model.vision_model."
LAYER = "encoder.layers.{block}."


def clip(name: str, axes: str) -> Rule:
    return same(NEMO + name, HF + name, axes)


def pair(name: str, axes: str) -> tuple[Rule, Rule]:
    return clip(name + ".weight", axes), clip(name + ".bias", axes.split()[0])


RULES = tower_rules(
    clip("embeddings.class_embedding", "hidden"),
    clip("embeddings.patch_embedding.weight", "hidden channels patch patch_too"),
    clip("embeddings.position_embedding.weight", "positions hidden"),
    *pair("pre_layrnorm", "hidden"),
    *(
        rule
        for name in ("k", "v", "q", "out")
        for rule in pair(LAYER + f"self_attn.{name}_proj", "hidden q_rows")
    ),
    *pair(LAYER + "layer_norm1", "hidden"),
    *pair(LAYER + "mlp.fc1", "ffn hidden"),
    *pair(LAYER + "mlp.fc2", "hidden ffn"),
    *pair(LAYER + "layer_norm2", "hidden"),
    *pair("post_layernorm", "hidden"),
)
FIELDS = (
    Field("hidden_size", "hidden_size", 768),
    Field("intermediate_size", "ffn_hidden_size", 3072),
    Field("num_hidden_layers", "num_layers", 12),
    Field("num_attention_heads", "num_attention_heads", 12),
    Field("image_size", "image_size", 224),
    Field("patch_size", "patch_dim", 32),
    VisionHeads(),
    Must("num_channels", 3, 3),
    Must("hidden_act", "quick_gelu", "quick_gelu"),
    Must("layer_norm_eps", 1e-5, 1e-5),
)
#: keys of the tower's config that nothing reads in a larger model at inference
KEPT = ("attention_dropout", "initializer_factor", "initializer_range", "projection_dim", "vocab_size")
#: derived at load time
IGNORED = (HF + "embeddings.position_ids",)
CLASSES = NemoClasses(
    module=VISION_BASE,
    model="",
    config="HFCLIPVisionConfig",
    defaults=CLIP_DEFAULTS,
    rules=(ClipTower(), Unused(("class_token_len", "num_image_embeddings_per_tile"))),
)
