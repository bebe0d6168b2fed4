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
from ..families.speech import ArchiveOnly, Speech

PARAKEET_RNNT = Speech(
    ("parakeet_rnnt",),
    "ParakeetForRNNT",
    stacks=(),
    nemo2=ArchiveOnly("nemo.collections.asr.models.rnnt_bpe_models", "EncDecRNNTBPEModel", "", {}),
    targets=("EncDecRNNTBPEModel", *HYBRID),
    head="transducer",
    decoder_type="rnnt",
    accepts=lambda yaml: not is_tdt(yaml),
    config=TRANSDUCER_FIELDS,
    settings=(*TRANSDUCER_SETTINGS, NoDurations()),
    extra=(*encoder_rules(), *transducer_rules()),
    sizes=transducer_sizes,
    ignored=PREPROCESSOR,
    constants=featurizer,
    proofs=("bit-equal", "transformers outputs", "real NeMo restore, by hand"),
)
