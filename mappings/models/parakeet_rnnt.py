"""FastConformer transducers: ``ParakeetForRNNT``, NeMo's ``EncDecRNNTBPEModel`` with the RNN-T loss."""

from ..families.fastconformer import PREPROCESSOR, encoder_rules
from ..families.parakeet import (
    HYBRID,
    TRANSDUCER_FIELDS,
    TRANSDUCER_SETTINGS,
    NoDurations,
    featurizer,
    is_tdt,
    transducer_rules,
    transducer_sizes,
)
from ..families.speech import ArchiveOnly, SpeechTable

TABLE = SpeechTable(
    architecture="parakeet_rnnt",
    hf_class="ParakeetForRNNT",
    nemo=ArchiveOnly("nemo.collections.asr.models.rnnt_bpe_models", "EncDecRNNTBPEModel", "", {}),
    targets=("EncDecRNNTBPEModel", *HYBRID),
    head="transducer",
    decoder_type="rnnt",
    accepts=lambda yaml: not is_tdt(yaml),
    fields=TRANSDUCER_FIELDS,
    settings=(*TRANSDUCER_SETTINGS, NoDurations()),
    rules=(*encoder_rules(), *transducer_rules()),
    sizes=transducer_sizes,
    ignored=PREPROCESSOR,
    constants=featurizer,
    verified=("bit-equal", "transformers outputs", "real NeMo restore, by hand"),
)
