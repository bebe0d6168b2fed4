"""FastConformer CTC models: ``ParakeetForCTC``, NeMo's ``EncDecCTCModelBPE``, and one head of hybrid ones."""

from ..families.fastconformer import PREPROCESSOR, encoder_rules, encoder_sizes
from ..families.parakeet import CTC_FIELDS, CTC_SETTINGS, HYBRID, featurizer, head
from ..families.speech import ArchiveOnly, Speech

PARAKEET_CTC = Speech(
    ("parakeet_ctc",),
    "ParakeetForCTC",
    stacks=(),
    nemo2=ArchiveOnly("nemo.collections.asr.models.ctc_bpe_models", "EncDecCTCModelBPE", "", {}),
    targets=("EncDecCTCModelBPE", *HYBRID),
    head="ctc",
    decoder_type="ctc",
    config=CTC_FIELDS,
    settings=CTC_SETTINGS,
    extra=(
        *encoder_rules(),
        *head(
            "decoder.decoder_layers.0",
            "ctc_head",
            "vocab hidden one",
            other_name="ctc_decoder.decoder_layers.0",
        ),
    ),
    sizes=encoder_sizes,
    ignored=PREPROCESSOR,
    constants=featurizer,
    proofs=("bit-equal", "transformers outputs", "real NeMo restore, by hand"),
)
