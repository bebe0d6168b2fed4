"""LLaVA 1.5: a ``LlavaForConditionalGeneration`` of a CLIP tower, an MLP and a Llama.

NeMo keeps transformers' own CLIP tower, with its names. Source: transformers/models/{llava,clip},
nemo/collections/vlm/{neva/model,vision}.
"""

from ..families import clip
from ..families.vision import (
    PROCESSOR_FILES,
    decoder_modules,
    decoder_rules,
    outer_rules,
    projector_classes,
    projector_rules,
    renamed,
    vision_sizes,
)
from ..hf.fields import Dtype, Fixed, Unread
from ..hf.fields_projector import FeatureLayer, Projector, SelectStrategy
from ..hf.fields_vision import INNER_INERT, Carried, Inner, TiedEmbeddings
from ..nemo2.configs_vision import LLAVA_DEFAULTS
from ..nemo2.fields import Same
from ..nemo2.fields_vision import LANGUAGE, PROJECTION, VISION, DropClassToken, Part, Parts
from ..table import Table
from . import llama

BEGINNINGS = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
#: what transformers takes for a vision_config that is not there
LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
PROJECTOR = tuple(
    (f"vision_projection.{n}", (), f"multi_modal_projector.linear_{n // 2 + 1}") for n in (0, 2)
)
TOKENS = (("image_token_index", 32000), ("image_seq_length", 576))

TABLE = Table(
    architecture="llava",
    hf_class="LlavaForConditionalGeneration",
    nemo=Parts(
        module="nemo.collections.vlm.neva.model.llava",
        model="LlavaModel",
        config="LlavaConfig",
        defaults=LLAVA_DEFAULTS,
        rules=outer_rules(
            Part(LANGUAGE, llama.TABLE.nemo),
            Part(VISION, clip.CLASSES, "vision"),
            Part(PROJECTION, projector_classes(("mlp2x_gelu",)), "projection"),
            Same("vision_feature_layer"),
            DropClassToken(),
        ),
    ),
    fields=(
        Inner("text_config", ("llama",), (*llama.TABLE.fields, Unread(("tie_word_embeddings",)))),
        Inner(
            "vision_config",
            ("clip_vision_model",),
            clip.FIELDS,
            field="vision",
            absent=tuple(LARGE.items()),
            kept=clip.KEPT,
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
    rules=(
        *clip.RULES,
        *projector_rules(PROJECTOR, cut=False),
        *decoder_rules(llama.TABLE.rules, BEGINNINGS),
    ),
    modules=decoder_modules(llama.TABLE.modules),
    sizes=vision_sizes,
    ignored=(*clip.IGNORED, *(renamed(name, BEGINNINGS) for name in llama.TABLE.ignored)),
    tied=(
        ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
        ("language_model.output_layer.weight", "language_model.embedding.word_embeddings.weight"),
    ),
    spellings=(
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^language_model\.(?!model\.|lm_head\.)", "language_model.model."),
        (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    ),
    files=PROCESSOR_FILES,
    carried=(*TOKENS, (INNER_INERT, {})),
    verified=("bit-equal", "transformers logits", "real NeMo logits", "real NeMo import"),
)
