"""Speech models: what transformers computes of converted weights is what NeMo computed of its own."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy
import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

SAMPLES = Path(__file__).parents[2] / "fixtures" / "speech"
#: case: sample, head, class
CASES = {
    "rnnt": ("rnnt", None, "ParakeetForRNNT"),
    "tdt": ("hybrid_tdt_ctc", None, "ParakeetForTDT"),
    "ctc": ("hybrid_tdt_ctc", "ctc", "ParakeetForCTC"),
    "canary": ("canary", None, "CanaryForConditionalGeneration"),
}
TEXTS = ("she sells sea shells", " Peter  Piper\tpicked ", "the quick brown fox", "", "ÅÉ ½ ﬁne", "a")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("speech")
    for case, (sample, head, _) in CASES.items():
        convert(SAMPLES / f"{sample}.nemo", root / case, to="hf", head=head, verify=True)
    for case in ("ctc", "tdt"):
        convert(SAMPLES / f"{case}.nemo", root / f"given_{case}", to="hf", verify=True)
    return root


def load(folder, name):
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def compute(case, model, values):
    """(encoder states, log-probabilities) in NeMo's layout."""
    features = torch.from_numpy(values["features"]).transpose(1, 2).contiguous()
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        inner = model.model.encoder if case == "canary" else model.encoder
        states = inner(features, attention_mask=mask).last_hidden_state
        if case == "ctc":
            logits = model(features, attention_mask=mask).logits
        else:
            tokens = torch.from_numpy(values["tokens"])
            logits = model(features, attention_mask=mask, decoder_input_ids=tokens).logits
    return states.transpose(1, 2).numpy(), logits.log_softmax(-1).numpy()


def expected(case, values):
    return values[{"rnnt": "joint", "tdt": "joint", "ctc": "ctc", "canary": "logprobs"}[case]]


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_nemo(case, converted):
    values = numpy.load(SAMPLES / f"{CASES[case][0]}.npz")
    states, logprobs = compute(case, load(converted / case, CASES[case][2]), values)
    assert numpy.abs(states - values["encoder"]).max() < 2e-6
    assert numpy.abs(logprobs - expected(case, values)).max() < 5e-6


def test_canarys_decoder_needs_its_hidden_axis_in_another_order(converted):
    values = numpy.load(SAMPLES / "canary.npz")
    model = load(converted / "canary", "CanaryForConditionalGeneration")
    weight = model.model.decoder.embed_tokens.weight
    with torch.no_grad():
        weight.copy_(weight.reshape(-1, 2, 8).transpose(1, 2).reshape(-1, 16).clone())  # as NeMo has it
    _, logprobs = compute("canary", model, values)
    assert numpy.abs(logprobs - values["logprobs"]).max() > 0.1


@pytest.mark.parametrize("case", ["ctc", "tdt"])
def test_given_samples_are_equal_to_the_bit(case, converted):
    name = CASES[case][2]
    ours, theirs = load(converted / f"given_{case}", name), load(SAMPLES / f"hf_{case}", name)
    a, b = ours.state_dict(), theirs.state_dict()
    assert list(a) == list(b)
    assert all(a[key].numpy().tobytes() == b[key].numpy().tobytes() for key in a)
    assert ours.config.encoder_config.to_dict() == theirs.config.encoder_config.to_dict()
    same = {"pad_token_id", "_name_or_path"}  # without a <pad>, the blank pads
    differing = {k for k, v in theirs.config.to_dict().items() if ours.config.to_dict().get(k) != v}
    assert differing <= same
    features = torch.randn(2, 160, ours.config.encoder_config.num_mel_bins, generator=torch.manual_seed(1))
    mask = torch.ones(2, 160, dtype=torch.bool)
    mask[1, 100:] = False
    more = {} if case == "ctc" else {"decoder_input_ids": torch.tensor([[61, 5, 9], [61, 1, 2]])}
    with torch.no_grad():
        x, y = (m(features, attention_mask=mask, **more).logits for m in (ours, theirs))
    assert torch.equal(x, y)


@pytest.mark.parametrize("case", CASES)
def test_the_processor_gives_the_same_features_and_ids(case, converted):
    values = numpy.load(SAMPLES / f"{CASES[case][0]}.npz")
    processor = transformers.AutoProcessor.from_pretrained(converted / case)
    assert type(processor).__name__ == ("CanaryProcessor" if case == "canary" else "ParakeetProcessor")
    made = processor.feature_extractor(values["audio"][0], sampling_rate=8000, return_tensors="pt")
    features = made["input_features"][0, : values["features"].shape[2]].numpy().T
    assert numpy.abs(features - values["features"][0]).max() < 1e-5
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(converted / case / "tokenizer.model"))
    for text in TEXTS:
        assert processor.tokenizer(text, add_special_tokens=False).input_ids == pieces.encode(text), text
    if case != "canary":
        config = transformers.AutoConfig.from_pretrained(converted / case)
        assert processor.tokenizer.pad_token_id == config.pad_token_id == pieces.get_piece_size()
        assert processor._decoder_type == case


def test_canarys_prompt_tokens_keep_their_ids(converted):
    tokenizer = transformers.AutoTokenizer.from_pretrained(converted / "canary")
    text = "<|startofcontext|><|startoftranscript|><|en|><|pnc|>"
    assert tokenizer(text, add_special_tokens=False).input_ids == [7, 4, 15, 5]
    config = transformers.AutoConfig.from_pretrained(converted / "canary")
    assert (config.bos_token_id, config.eos_token_id, config.decoder_start_token_id) == (4, 3, 7)


def test_canarys_processor_writes_nemos_prompt(converted):
    processor = transformers.AutoProcessor.from_pretrained(converted / "canary")
    audio = numpy.load(SAMPLES / "canary.npz")["audio"][0]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(converted / "canary" / "tokenizer.model"))
    for punctuation, token in ((True, "pnc"), (False, "nopnc")):
        made = processor.apply_transcription_request(
            audio, source_language="en", target_language="de", punctuation=punctuation, sampling_rate=8000
        )
        prompt = "<|startofcontext|><|startoftranscript|><|emo:undefined|><|en|><|de|>"
        prompt += f"<|{token}|><|noitn|><|notimestamp|><|nodiarize|>"
        ids = made["decoder_input_ids"].tolist()
        assert ids == [pieces.encode(prompt)]
        # what EncDecMultiTaskModel.prompt of NeMo 3.0.0 gives for these slots
        assert ids == [[53, 7, 4, 14, 15, 16, 5 if punctuation else 6, 9, 11, 13]]


@pytest.mark.parametrize("case", ["rnnt", "tdt"])
def test_transducers_decode_what_nemo_decodes(case, converted):
    values = numpy.load(SAMPLES / f"{CASES[case][0]}.npz")
    features = torch.from_numpy(values["features"]).transpose(1, 2).contiguous()
    model = load(converted / case, CASES[case][2])
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    found = model.generate(input_features=features, attention_mask=mask, max_new_tokens=200).sequences[0]
    tokens = found[found != model.config.blank_token_id].tolist()
    assert len(values["greedy"]) > 3
    assert tokens == values["greedy"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_missing_keys_mean_what_they_mean_to_transformers(case):
    table = load_table({"canary": "canary"}.get(case, f"parakeet_{case}"))
    kind = type(getattr(transformers, CASES[case][2]).config_class())
    ours, _ = read_config(table.fields, {})
    theirs, _ = read_config(table.fields, kind().to_dict())
    assert {k: v for k, v in ours.items() if k != "params_dtype"} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in theirs.items() if k != "params_dtype"
    }


@pytest.mark.parametrize("case", CASES)
def test_torch_loads_what_goes_back(case, converted, tmp_path):
    back = tmp_path / "back.nemo"
    convert(converted / case, back, to="nemo", verify=True)
    original, written = (
        torch.load(io.BytesIO(member(path, "model_weights.ckpt")), weights_only=True)
        for path in (SAMPLES / f"{CASES[case][0]}.nemo", back)
    )
    renamed = {"ctc_decoder.": "decoder."} if case == "ctc" else {"joint.joint_net.1.": "joint.joint_net.2."}
    dropped = {"ctc": ("decoder.", "joint."), "tdt": ("ctc_decoder.",)}.get(case, ("-",))
    kept = {}
    for name, value in original.items():
        if not name.startswith(dropped):
            for old, new in renamed.items():
                name = name.replace(old, new)
            kept[name] = value
    assert kept.keys() == written.keys()
    computed = {n for n in kept if n.startswith("preprocessor.") or n.endswith("pos_enc")}
    for name, value in kept.items():
        assert (written[name].dtype, written[name].shape) == (value.dtype, value.shape)
        if name in computed:
            assert (written[name] - value).abs().max() <= 6e-8
        else:
            assert written[name].numpy().tobytes() == value.numpy().tobytes(), name
    assert torch.equal(written["preprocessor.featurizer.fb"], kept["preprocessor.featurizer.fb"])
    if case == "canary":
        twins = "log_softmax.mlp.layer0.weight", "transf_decoder._embedding.token_embedding.weight"
        assert len({written[name].data_ptr() for name in twins}) == 1


def member(archive, name):
    with tarfile.open(archive) as tar:
        return tar.extractfile(f"./{name}").read()
