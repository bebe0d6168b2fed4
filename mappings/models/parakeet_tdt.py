"""FastConformer transducers that predict durations: ``ParakeetForTDT``, NeMo's ``EncDecRNNTBPEModel`` with
the TDT loss (Parakeet TDT 0.6B and 1.1B)."""

from ..families.fastconformer import PREPROCESSOR, encoder_rules
from ..families.parakeet import (
    HYBRID,
    TRANSDUCER_FIELDS,
    TRANSDUCER_SETTINGS,
    TokenDurations,
    featurizer,
    is_tdt,
    transducer_rules,
    transducer_sizes,
)
from ..families.speech import ArchiveOnly, SpeechTable
from ..hf.fields_speech import Durations

TABLE = SpeechTable(
    architecture="parakeet_tdt",
    hf_class="ParakeetForTDT",
    nemo=ArchiveOnly("nemo.collections.asr.models.rnnt_bpe_models", "EncDecRNNTBPEModel", "", {}),
    targets=("EncDecRNNTBPEModel", *HYBRID),
    head="transducer",
    decoder_type="tdt",
    accepts=is_tdt,
    fields=(*TRANSDUCER_FIELDS, Durations()),
    settings=(*TRANSDUCER_SETTINGS, TokenDurations()),
    rules=(*encoder_rules(), *transducer_rules()),
    sizes=transducer_sizes,
    ignored=PREPROCESSOR,
    constants=featurizer,
    verified=("bit-equal", "transformers outputs", "real NeMo restore, by hand"),
)
