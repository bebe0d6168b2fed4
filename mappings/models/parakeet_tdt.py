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
from ..families.speech import ArchiveOnly, Speech
from ..hf.fields_speech import Durations

PARAKEET_TDT = Speech(
    ("parakeet_tdt",),
    "ParakeetForTDT",
    stacks=(),
    nemo2=ArchiveOnly("nemo.collections.asr.models.rnnt_bpe_models", "EncDecRNNTBPEModel", "", {}),
    targets=("EncDecRNNTBPEModel", *HYBRID),
    head="transducer",
    decoder_type="tdt",
    accepts=is_tdt,
    config=(*TRANSDUCER_FIELDS, Durations()),
    settings=(*TRANSDUCER_SETTINGS, TokenDurations()),
    extra=(*encoder_rules(), *transducer_rules()),
    sizes=transducer_sizes,
    ignored=PREPROCESSOR,
    constants=featurizer,
    proofs=("bit-equal", "transformers outputs", "real NeMo restore, by hand"),
)
