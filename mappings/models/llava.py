"""LLaVA 1.5: a ``LlavaForConditionalGeneration`` of a CLIP tower, an MLP and a Llama.

NeMo keeps transformers' own CLIP tower, with its names: they are the same on both sides, one tensor for each
layer, whole on every rank.

Source: transformers/models/{llava,clip}, nemo/collections/vlm/{neva/model,vision}.
"""

from dataclasses import replace

from ..architecture import Architecture
from ..blocks.names import Names
from ..families.vision import (
    DECODER,
    PROCESSOR_FILES,
    VISION_BASE,
    outer_rules,
    projector_classes,
    projector_rules,
    tower_rules,
    vision_sizes,
)
from ..hf.fields import Dtype, Field, Fixed, Unread
from ..hf.fields_projector import FeatureLayer, Projector, SelectStrategy
from ..hf.fields_tower import VisionHeads
from ..hf.fields_vision import INNER_INERT, Carried, InnerConfig, Must, TiedEmbeddings
from ..nemo2 import classes
from ..nemo2.fields import NemoClasses, Same, Unused
from ..nemo2.fields_vision import (
    LANGUAGE,
    PROJECTION,
    VISION,
    ClipTower,
    DropClassToken,
    MultiPartClasses,
    PartConfig,
)
from ..rules import same
from ..table import Rule
from .llama import LLAMA

HF, NEMO = "vision_tower.vision_model.", "vision_model.vision_model."
CLIP_LAYER = "encoder.layers.{block}."
#: what transformers takes for a vision_config that is not there
LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def clip(name: str, axes: str) -> Rule:
    return same(NEMO + name, HF + name, axes)


def pair(name: str, axes: str) -> tuple[Rule, Rule]:
    return clip(name + ".weight", axes), clip(name + ".bias", axes.split()[0])


CLIP_RULES = tower_rules(
    clip("embeddings.class_embedding", "hidden"),
    clip("embeddings.patch_embedding.weight", "hidden channels patch patch_too"),
    clip("embeddings.position_embedding.weight", "positions hidden"),
    *pair("pre_layrnorm", "hidden"),
    *(
        rule
        for name in ("k", "v", "q", "out")
        for rule in pair(CLIP_LAYER + f"self_attn.{name}_proj", "hidden q_rows")
    ),
    *pair(CLIP_LAYER + "layer_norm1", "hidden"),
    *pair(CLIP_LAYER + "mlp.fc1", "ffn hidden"),
    *pair(CLIP_LAYER + "mlp.fc2", "hidden ffn"),
    *pair(CLIP_LAYER + "layer_norm2", "hidden"),
    *pair("post_layernorm", "hidden"),
)
CLIP_FIELDS = (
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
CLIP_KEPT = ("attention_dropout", "initializer_factor", "initializer_range", "projection_dim", "vocab_size")
CLIP_CLASSES = NemoClasses(
    module=VISION_BASE,
    model="",
    config="HFCLIPVisionConfig",
    defaults=classes.family("HFCLIPVisionConfig"),
    rules=(ClipTower(), Unused(("class_token_len", "num_image_embeddings_per_tile"))),
)
PROJECTOR = tuple(
    (f"vision_projection.{n}", (), f"multi_modal_projector.linear_{n // 2 + 1}") for n in (0, 2)
)
TOKENS = (("image_token_index", 32000), ("image_seq_length", 576))
LAYER = "language_model.model.layers.{layer}."

LLAVA = Architecture(
    ("llava",),
    "LlavaForConditionalGeneration",
    stacks=(
        replace(
            LLAMA.main,
            names=Names(
                layer=LAYER,
                embedding="language_model.model.embed_tokens",
                final_norm="language_model.model.norm",
                head="language_model.lm_head",
            ),
            megatron=DECODER + "decoder.",
        ),
    ),
    config=(
        InnerConfig("text_config", ("llama",), (*LLAMA.config, Unread(("tie_word_embeddings",)))),
        InnerConfig(
            "vision_config",
            ("clip_vision_model",),
            CLIP_FIELDS,
            field="vision",
            absent=tuple(LARGE.items()),
            kept=CLIP_KEPT,
        ),
        TiedEmbeddings(),
        Projector(),
        FeatureLayer(),
        SelectStrategy(),
        *(Carried(*token) for token in TOKENS),
        Fixed("projector_hidden_act", "gelu"),
        Fixed("multimodal_projector_bias", True),
        Unread(("ignore_index", "vocab_size")),
        Dtype(),
    ),
    nemo2=MultiPartClasses(
        module="nemo.collections.vlm.neva.model.llava",
        model="LlavaModel",
        config="LlavaConfig",
        defaults=classes.family("LlavaConfig"),
        rules=outer_rules(
            PartConfig(LANGUAGE, LLAMA.table.nemo),
            PartConfig(VISION, CLIP_CLASSES, "vision"),
            PartConfig(PROJECTION, projector_classes(("mlp2x_gelu",)), "projection"),
            Same("vision_feature_layer"),
            DropClassToken(),
        ),
    ),
    before=(*CLIP_RULES, *projector_rules(PROJECTOR, cut=False)),
    sizes=vision_sizes,
    ignored=(HF + "embeddings.position_ids", LAYER + "self_attn.rotary_emb.inv_freq"),
    spellings=(
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^language_model\.(?!model\.|lm_head\.)", "language_model.model."),
        (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    ),
    files=PROCESSOR_FILES,
    manifest_fields=(*TOKENS, (INNER_INERT, {})),
    proofs=("bit-equal", "transformers logits", "real NeMo logits", "real NeMo import"),
)
