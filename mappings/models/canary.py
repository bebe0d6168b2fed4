"""Canary: a FastConformer encoder and a Transformer decoder, ``CanaryForConditionalGeneration`` and NeMo's
``EncDecMultiTaskModel``.

NeMo's fixed positions hold sine and cosine of a frequency side by side, Hugging Face's all sines, then all
cosines. The decoder adds them to its hidden states, so on the way the hidden axis of the decoder changes its
order: ``(frequency phase)`` in NeMo is ``(phase frequency)`` in Hugging Face, in every tensor that has it.

Source: nemo/collections/asr/models/aed_multitask_models.py, modules/transformer/transformer_{modules,
decoders}.py; transformers/models/canary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..families.fastconformer import PREPROCESSOR
from ..families.parakeet import featurizer
from ..families.speech import ArchiveOnly, SpeechTable
from ..hf.fields import Value
from . import canary_fields, canary_rules
from .canary_rules import EMBEDDING, OUTPUT, POSITIONS

if TYPE_CHECKING:
    import numpy


def _constants(
    config: Mapping[str, Value], extractor: Mapping[str, Value]
) -> dict[str, numpy.ndarray[Any, Any]]:
    from ..families.audio import sinusoids

    positions = sinusoids(config["max_sequence_length"], config["hidden_size"])
    return {**featurizer(config, extractor), POSITIONS: positions}


TABLE = SpeechTable(
    architecture="canary",
    hf_class="CanaryForConditionalGeneration",
    nemo=ArchiveOnly("nemo.collections.asr.models.aed_multitask_models", "EncDecMultiTaskModel", "", {}),
    targets=("EncDecMultiTaskModel",),
    head="aed",
    fields=canary_fields.FIELDS,
    settings=canary_fields.SETTINGS,
    rules=canary_rules.RULES,
    sizes=canary_rules.sizes,
    layer_sets=canary_rules.layer_sets,
    ignored=(*PREPROCESSOR, POSITIONS, "transf_decoder._embedding.token_type_embedding.weight"),
    tied=(("proj_out.weight", "model.decoder.embed_tokens.weight"), (OUTPUT, EMBEDDING)),
    copies=((OUTPUT, EMBEDDING),),
    constants=_constants,
    verified=("bit-equal", "transformers outputs", "real NeMo restore, by hand"),
)
