"""ONNX graphs of speech models: what transformers and NeMo compute, and what onnx-asr and sherpa-onnx make of
them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from nemoconv.converters.conversion import convert
from nemoconv.converters.onnx_in_place import add_graph
from nemoconv.errors import UsageError

from . import speech_models
from .speech_models import SAMPLES, VOCABULARY

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
onnxruntime = pytest.importorskip("onnxruntime")

TOLERANCE = 1e-4  # float32; outputs are a few units large
FELT = 1e-2
CTC = ["ctc", "ctc-other"]
TRANSDUCERS = ["rnnt", "rnnt-other", "tdt"]
BATCHES = [(61, 130), (130, 9, 77), (1,)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Folders of graphs and transformers' models of cases, each built once. ``case.hf`` lies beside."""
    root = tmp_path_factory.mktemp("speech")
    built: dict[str, tuple[Path, Any]] = {}

    def of(case: str) -> tuple[Path, Any]:
        if case not in built:
            source = speech_models.build(root / f"{case}.hf", case)
            convert(source, root / case, to="onnx", verify=True)
            built[case] = root / case, speech_models.load(source, case)
        return built[case]

    return of


class Graphs:
    """The graphs of a folder by file name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: dict[str, Any] = {}

    def run(self, name: str, **inputs: Any) -> dict[str, Any]:
        if name not in self._sessions:
            self._sessions[name] = onnxruntime.InferenceSession(str(self._folder / name))
        session = self._sessions[name]
        found = session.run(None, inputs)
        return dict(zip([value.name for value in session.get_outputs()], found, strict=True))


def heard(model: Any, features: Any, lengths: tuple[int, ...]) -> tuple[dict[str, Any], Any]:
    """transformers' arguments for features [batch, mels, frames], and how many steps are real."""
    mask = torch.arange(features.shape[2])[None] < torch.tensor(lengths)[:, None]
    given = {"input_features": torch.tensor(features).transpose(1, 2).contiguous(), "attention_mask": mask}
    return given, model._get_subsampling_output_length(mask.sum(-1)).tolist()


def difference(found: Any, wanted: Any, steps: list[int]) -> float:
    """The largest one of [batch, steps, ...], in real steps."""
    assert found.shape == tuple(wanted.shape)
    assert numpy.abs(wanted.numpy()).max() > 0.5
    rows = zip(found, wanted.numpy(), steps, strict=True)
    return max(float(numpy.abs(a[:count] - b[:count]).max()) for a, b, count in rows)


@pytest.mark.parametrize("lengths", BATCHES)
@pytest.mark.parametrize("case", CTC)
def test_ctc_log_probabilities(exported: Any, case: str, lengths: tuple[int, ...]) -> None:
    folder, model = exported(case)
    features = speech_models.features(lengths)
    given, steps = heard(model, features, lengths)
    graphs, length = Graphs(folder), numpy.array(lengths)
    found = graphs.run("model.onnx", audio_signal=features, length=length)["logprobs"]
    with torch.no_grad():
        wanted = model(**given).logits.log_softmax(-1)
    assert difference(found, wanted, steps) <= TOLERANCE
    for row, count in enumerate(lengths):  # what lies in the padding is not heard
        features[row, :, count:] = numpy.nan
    again = graphs.run("model.onnx", audio_signal=features, length=length)["logprobs"]
    assert difference(again, wanted, steps) <= TOLERANCE
    alone = features[:1, :, : lengths[0]]
    first = graphs.run("model.onnx", audio_signal=alone, length=length[:1])["logprobs"]
    assert numpy.abs(first[0] - found[0, : steps[0]]).max() <= TOLERANCE


def test_what_the_config_and_the_lengths_say_is_felt(exported: Any, tmp_path: Path) -> None:
    folder, model = exported("ctc-other")
    lengths = (61, 130)
    features = speech_models.features(lengths)
    given, steps = heard(model, features, lengths)
    with torch.no_grad():
        wanted = model(**given).logits.log_softmax(-1)
    inputs = {"audio_signal": features, "length": numpy.array(lengths)}
    found = Graphs(folder).run("model.onnx", **{**inputs, "length": numpy.array([130, 130])})["logprobs"]
    assert difference(found, wanted, steps) > FELT
    shutil.copytree(folder.with_name("ctc-other.hf"), tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["encoder_config"]["scale_input"] = False
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    convert(tmp_path / "other", tmp_path / "onnx", to="onnx")
    assert difference(Graphs(tmp_path / "onnx").run("model.onnx", **inputs)["logprobs"], wanted, steps) > FELT


@pytest.mark.parametrize("lengths", BATCHES)
@pytest.mark.parametrize("case", TRANSDUCERS)
def test_a_transducers_states_and_logits(exported: Any, case: str, lengths: tuple[int, ...]) -> None:
    folder, model = exported(case)
    features, batch = speech_models.features(lengths), len(lengths)
    given, steps = heard(model, features, lengths)
    graphs = Graphs(folder)
    encoded = graphs.run("encoder-model.onnx", audio_signal=features, length=numpy.array(lengths))
    assert encoded["encoded_lengths"].tolist() == steps
    with torch.no_grad():
        states = model.get_audio_features(**given)
        assert difference(encoded["outputs"].transpose(0, 2, 1), states.last_hidden_state, steps) <= TOLERANCE
        tokens = torch.randint(VOCABULARY, (batch, 5), generator=torch.manual_seed(1))
        grid = model.joint(model.decoder(tokens)[:, None], states.pooler_output[:, :, None])
    targets = tokens.numpy().astype(numpy.int32)
    sizes = {"target_length": numpy.full(batch, 5, numpy.int32)}
    inputs = {"encoder_outputs": encoded["outputs"], "targets": targets, **sizes}
    found = graphs.run("decoder_joint-model.onnx", **inputs, **_zeros(model, batch))
    assert difference(found["outputs"], grid, steps) <= TOLERANCE
    assert found["prednet_lengths"].tolist() == [5] * batch
    # the same from the networks apart, token by token
    state, made = _zeros(model, batch), []
    for token in range(5):
        one = {"targets": targets[:, token : token + 1], "target_length": numpy.ones(batch, numpy.int32)}
        predicted = graphs.run("decoder.onnx", **one, **state)
        assert list(predicted) == ["outputs", "prednet_lengths", "output_states_1", "output_states_2"]
        state = {f"input_states_{i}": predicted[f"output_states_{i}"] for i in (1, 2)}
        made.append(predicted["outputs"])
    joined = graphs.run(
        "joiner.onnx", encoder_outputs=encoded["outputs"], decoder_outputs=numpy.concatenate(made, 2)
    )
    assert difference(joined["outputs"], grid, steps) <= TOLERANCE
    for i in (1, 2):
        assert numpy.abs(state[f"input_states_{i}"] - found[f"output_states_{i}"]).max() <= TOLERANCE


def _zeros(model: Any, batch: int) -> dict[str, Any]:
    shape = (model.config.num_decoder_layers, batch, model.config.decoder_hidden_size)
    return {f"input_states_{i}": numpy.zeros(shape, numpy.float32) for i in (1, 2)}


def greedy(graphs: Graphs, model: Any, features: Any) -> tuple[list[int], list[int]]:
    """(tokens with blanks, frames that each takes) as transformers' generate counts them."""
    config, blank = model.config, model.config.blank_token_id
    length = numpy.array([features.shape[2]])
    encoded = graphs.run("encoder-model.onnx", audio_signal=features, length=length)
    state, last, frame, at_frame = _zeros(model, 1), blank, 0, 0
    tokens, durations = [], []
    while frame < encoded["encoded_lengths"][0]:
        made = graphs.run(
            "decoder_joint-model.onnx",
            encoder_outputs=encoded["outputs"][:, :, frame : frame + 1],
            targets=numpy.array([[last]], numpy.int32),
            target_length=numpy.ones(1, numpy.int32),
            **state,
        )
        logits = made["outputs"][0, 0, 0]
        token = int(logits[: config.vocab_size].argmax())
        if hasattr(config, "durations"):
            step = int(logits[config.vocab_size :].argmax())
            step = max(step, int(token == blank))
        else:
            at_frame = 0 if token == blank else at_frame + 1
            step = int(token == blank or at_frame >= config.max_symbols_per_step)
            at_frame = 0 if step else at_frame
        if token != blank:
            last, state = token, {f"input_states_{i}": made[f"output_states_{i}"] for i in (1, 2)}
        frame += step
        tokens.append(token)
        durations.append(step)
    return tokens, durations


@pytest.mark.parametrize("case", TRANSDUCERS)
def test_greedy_decoding_is_that_of_transformers(exported: Any, case: str) -> None:
    folder, model = exported(case)
    graphs = Graphs(folder)
    features = features_of_transformers(folder, WAVES[0]).transpose(1, 2).numpy()
    given, _ = heard(model, features, (features.shape[2],))
    made = model.generate(**given, max_new_tokens=300)
    tokens, durations = greedy(graphs, model, features)
    assert len({*tokens}) > 2
    assert tokens == made.sequences[0, 1:].tolist()
    assert durations == made.durations[0, 1:].tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["ctc-other", "tdt"])
def test_other_types_keep_float32_at_the_border(tmp_path: Path, case: str, dtype: str) -> None:
    source = speech_models.build(tmp_path / "hf", case, dtype)
    convert(source, tmp_path / "onnx", to="onnx", verify=True)
    model, lengths = speech_models.load(source, case), (96, 50)
    features = speech_models.features(lengths)
    given, steps = heard(model, features, lengths)
    name, output = ("model.onnx", "logprobs") if case != "tdt" else ("encoder-model.onnx", "outputs")
    found = Graphs(tmp_path / "onnx").run(name, audio_signal=features, length=numpy.array(lengths))[output]
    assert found.dtype == numpy.float32
    with torch.no_grad():
        if case == "tdt":
            wanted, found = model.encoder(**given).last_hidden_state, found.transpose(0, 2, 1)
        else:
            wanted = model(**given).logits.log_softmax(-1)
    assert difference(found, wanted, steps) <= (TOLERANCE if dtype == "bfloat16" else 0.05)


@pytest.mark.parametrize("case", ["ctc", "tdt"])
def test_packed_graphs_hold_the_same_bytes(exported: Any, tmp_path: Path, case: str) -> None:
    from safetensors.numpy import load_file

    folder, _ = exported(case)
    source = folder.with_name(f"{case}.hf")
    convert(source, tmp_path / "packed", to="onnx", pack=True, verify=True)
    assert not list((tmp_path / "packed").glob("*.safetensors"))
    name = "model.onnx" if case == "ctc" else "encoder-model.onnx"
    assert (tmp_path / "packed" / f"{name}.data").exists()  # onnx-asr fetches it from the hub with its graph
    tensors = load_file(source / "model.safetensors")
    for place in (folder, tmp_path / "packed"):
        seen = set()
        for path in place.glob("*.onnx"):
            onnx.checker.check_model(str(path), full_check=True)
            for held in onnx.load(str(path), load_external_data=False).graph.initializer:
                if held.data_location != onnx.TensorProto.EXTERNAL:
                    assert len(held.raw_data) < 1024
                    continue
                at = {entry.key: entry.value for entry in held.external_data}
                data = (place / at["location"]).read_bytes()
                data = data[int(at["offset"]) : int(at["offset"]) + int(at["length"])]
                assert data == tensors[held.name].tobytes()
                seen.add(held.name)
        assert seen == tensors.keys()
    convert(tmp_path / "packed", tmp_path / "back", to="hf", verify=True)
    again = load_file(tmp_path / "back" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(again[key].tobytes() == tensors[key].tobytes() for key in tensors)
    for other in ("preprocessor_config.json", "processor_config.json", "tokenizer.json"):
        assert (tmp_path / "back" / other).read_bytes() == (source / other).read_bytes()
    features = speech_models.features((64,))
    a, b = (
        Graphs(place).run(name, audio_signal=features, length=numpy.array([64]))
        for place in (folder, tmp_path / "packed")
    )
    assert all((a[key] == b[key]).all() for key in a)


def test_archives_compute_what_nemo_computed(tmp_path: Path) -> None:
    for sample, head in (("hybrid_tdt_ctc", None), ("hybrid_tdt_ctc", "ctc"), ("rnnt", None)):
        out = tmp_path / f"{sample}-{head}"
        convert(SAMPLES / f"{sample}.nemo", out, to="onnx", head=head, verify=True)
        values, graphs = numpy.load(SAMPLES / f"{sample}.npz"), Graphs(out)
        inputs = {"audio_signal": values["features"], "length": numpy.array([values["features"].shape[2]])}
        if head == "ctc":
            assert numpy.abs(graphs.run("model.onnx", **inputs)["logprobs"] - values["ctc"]).max() <= 1e-5
            continue
        encoded = graphs.run("encoder-model.onnx", **inputs)["outputs"]
        assert numpy.abs(encoded - values["encoder"]).max() <= 1e-5
        targets = values["tokens"].astype(numpy.int32)
        length = numpy.array([targets.shape[1]], numpy.int32)
        zeros = {f"input_states_{i}": numpy.zeros((1, 1, 12), numpy.float32) for i in (1, 2)}
        found = graphs.run(
            "decoder_joint-model.onnx",
            encoder_outputs=encoded,
            targets=targets,
            target_length=length,
            **zeros,
        )
        joint = torch.tensor(found["outputs"]).log_softmax(-1).numpy()
        assert numpy.abs(joint - values["joint"]).max() <= 1e-5


def test_canary_computes_what_nemo_computed(tmp_path: Path) -> None:
    out = tmp_path / "canary"
    convert(SAMPLES / "canary.nemo", out, to="onnx", verify=True)
    values, graphs = numpy.load(SAMPLES / "canary.npz"), Graphs(out)
    features, ids = values["features"], values["tokens"].astype(numpy.int64)
    # a second row, shorter and padded with what must not be heard
    both = numpy.concatenate([features, features])
    both[1, :, 60:] = numpy.nan
    length, half = numpy.array([features.shape[2]]), numpy.array([60])
    encoded = graphs.run("encoder-model.onnx", audio_signal=both, length=numpy.concatenate([length, half]))
    states, mask = encoded["encoder_embeddings"], encoded["encoder_mask"]
    assert numpy.abs(states[0].T - values["encoder"][0]).max() <= 1e-5
    assert mask.sum(1).tolist() == [12, 8]
    none = numpy.empty((4, 2, 0, 16), numpy.float32)

    def logits(steps: list[int]) -> Any:
        cache, made, first = none, [], 0
        for count in steps:
            given = numpy.repeat(ids[:, first : first + count], 2, 0)
            found = graphs.run(
                "decoder-model.onnx",
                input_ids=given,
                encoder_embeddings=states,
                encoder_mask=mask,
                decoder_mems=cache,
            )
            cache, first = found["decoder_hidden_states"], first + count
            made.append(found["logits"])
        assert cache.shape == (4, 2, ids.shape[1], 16)
        return numpy.concatenate(made, 1)

    whole = logits([7])
    assert numpy.abs(whole[0] - values["logprobs"][0]).max() <= 1e-5
    assert numpy.abs(logits([3, 1, 2, 1]) - whole).max() <= 1e-5
    alone = graphs.run("encoder.onnx", x=features[:, :, :60].transpose(0, 2, 1), x_len=half)
    assert numpy.abs(alone["enc_states"] - states[1:, :8]).max() <= 1e-5
    assert alone["enc_mask"].all()
    cache = {f"decoder_mems_list_{i}": numpy.empty((1, 0, 16), numpy.float32) for i in range(4)}
    for place, token in enumerate(ids[0]):
        found = graphs.run(
            "decoder.onnx",
            decoder_input_ids=numpy.array([[token, place]], numpy.int32),
            enc_states=alone["enc_states"],
            enc_mask=alone["enc_mask"],
            **cache,
        )
        cache = {f"decoder_mems_list_{i}": found[f"next_decoder_mem_list_{i}"] for i in range(4)}
        logprobs = torch.tensor(found["logits"][0, 0]).log_softmax(-1).numpy()
        assert numpy.abs(logprobs - whole[1, place]).max() <= 1e-5


WAVES = [speech_models.audio(1.6, seed) for seed in range(2)]


def features_of_transformers(folder: Path, wave: Any) -> Any:
    import transformers

    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    given = extractor(wave, sampling_rate=16_000, return_tensors="pt")
    return given["input_features"][:, : int(given["attention_mask"].sum())]


def features_of_sherpa(wave: Any, *, window: str, high: float) -> Any:
    """What sherpa-onnx computes for NeMo models, by the library that it uses for that. It is not quite what
    they were trained with. Source: offline-recognizer-{ctc, transducer-nemo, canary}-impl.h, math.cc."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    frames, mels = options.frame_opts, options.mel_opts
    frames.dither, frames.snip_edges, frames.remove_dc_offset = 0, False, False
    frames.window_type = window
    mels.num_bins, mels.low_freq, mels.high_freq = speech_models.MELS, 0, high
    mels.is_librosa = True
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(16_000, wave.tolist())
    bank.input_finished()
    found = numpy.stack([bank.get_frame(frame) for frame in range(bank.num_frames_ready)])
    spread = numpy.sqrt(numpy.maximum((found**2).mean(0) - found.mean(0) ** 2, 0))
    return torch.tensor((found - found.mean(0)) / (spread + 1e-5))[None].float()


def by_sherpa(folder: Path, kind: str, place: Path) -> list[list[str]]:
    """The tokens that sherpa-onnx finds in each wave."""
    numpy.save(place / "waves.npy", numpy.stack(WAVES))
    script = Path(__file__).with_name("sherpa_transcribe.py")
    command = [sys.executable, str(script), str(folder), kind, str(place / "waves.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    found: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def transcribed(model: Any, folder: Path, features: Any) -> list[str]:
    """The tokens that transformers finds in features [1, frames, mels], as texts."""
    given = {
        "input_features": features,
        "attention_mask": torch.ones(features.shape[:2], dtype=torch.bool),
    }
    pieces = [line.split()[0] for line in (folder / "tokens.txt").read_text().splitlines()]
    blank = VOCABULARY - 1
    with torch.no_grad():
        if hasattr(model, "ctc_head"):
            ids = model.generate(**given)[0].tolist()
            # sherpa-onnx counts steps in whole multiples, onnx-asr and transformers begun ones
            ids = ids if features.shape[1] % 8 == 0 else ids[: features.shape[1] // 8]
            ids = [b for a, b in zip([blank, *ids], ids, strict=False) if a != b]
        else:
            ids = model.generate(**given, max_new_tokens=300).sequences[0, 1:].tolist()
    return [pieces[i].replace("▁", " ") for i in ids if i != blank]


@pytest.mark.parametrize("case", ["ctc", "rnnt-other", "tdt"])
def test_onnx_asr_transcribes_what_transformers_does(exported: Any, case: str) -> None:
    onnx_asr = pytest.importorskip("onnx_asr", reason="onnx-asr is not installed")
    folder, model = exported(case)
    waves = [WAVES[0], WAVES[1][:14_080]]
    wanted = [transcribed(model, folder, features_of_transformers(folder, wave)) for wave in waves]
    assert min(len({*tokens}) for tokens in wanted) > 2
    assert wanted[0] != wanted[1]
    loaded = onnx_asr.load_model(f"nemo-conformer-{case.split('-')[0]}", folder).with_timestamps()
    assert [loaded.recognize(wave, sample_rate=16_000).tokens for wave in waves] == wanted
    batch = loaded.recognize(waves, sample_rate=16_000)
    assert [result.tokens for result in batch] == wanted


@pytest.mark.parametrize("case", ["ctc", "rnnt", "tdt"])
def test_sherpa_onnx_transcribes_what_transformers_does(exported: Any, tmp_path: Path, case: str) -> None:
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed")
    pytest.importorskip("kaldi_native_fbank", reason="kaldi-native-fbank is not installed")
    folder, model = exported(case)
    found = by_sherpa(folder, case, tmp_path)
    how = {"window": "hanning", "high": 0} if case == "ctc" else {"window": "povey", "high": -400}
    wanted = [transcribed(model, folder, features_of_sherpa(wave, **how)) for wave in WAVES]
    assert min(len({*tokens}) for tokens in wanted) > 2
    assert found == wanted


#: what both programs ask a Canary for; onnx-asr begins with SentencePiece's space
PROMPT = "<|startofcontext|> <|startoftranscript|> <|emo:undefined|> <|en|> <|en|> <|pnc|> <|noitn|>".split()
PROMPT += ["<|notimestamp|>", "<|nodiarize|>"]


def continued(model: Any, features: Any, prompt: list[str], most: int) -> list[str]:
    """What follows the prompt greedily, by transformers computing everything anew for each token."""
    pieces = speech_models.canary_pieces()
    ids, end = [pieces.index(piece) for piece in prompt], pieces.index("<|endoftext|>")
    with torch.no_grad():
        states = model.model.encoder(features)
        while len(ids) < len(prompt) + most:
            logits = model(encoder_outputs=states, decoder_input_ids=torch.tensor([ids])).logits
            if (best := int(logits[0, -1].argmax())) == end:
                break
            ids.append(best)
    return [pieces[i].replace("▁", " ") for i in ids[len(prompt) :]]


def test_canary_in_onnx_asr(exported: Any) -> None:
    onnx_asr = pytest.importorskip("onnx_asr", reason="onnx-asr is not installed")
    pytest.importorskip("sentencepiece")
    folder, model = exported("canary")
    loaded = onnx_asr.load_model("nemo-conformer-aed", folder).with_timestamps()
    wanted = [continued(model, features_of_transformers(folder, wave), ["▁", *PROMPT], 54) for wave in WAVES]
    assert min(len({*tokens}) for tokens in wanted) > 3
    assert wanted[0] != wanted[1]
    assert [loaded.recognize(wave, sample_rate=16_000).tokens for wave in WAVES] == wanted


def test_canary_in_sherpa_onnx(exported: Any, tmp_path: Path) -> None:
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed")
    pytest.importorskip("kaldi_native_fbank", reason="kaldi-native-fbank is not installed")
    pytest.importorskip("sentencepiece")
    folder, model = exported("canary")
    found = by_sherpa(folder, "canary", tmp_path)
    # 30 tokens a second at most, and the last one is dropped
    features = [features_of_sherpa(wave, window="hanning", high=-400) for wave in WAVES]
    wanted = [continued(model, one, PROMPT, int(20 * 8 / 100 * 30) + 1) for one in features]
    assert min(len({*tokens}) for tokens in wanted) > 3
    assert found == wanted


def test_a_graph_in_place_and_the_way_to_nemo(exported: Any, tmp_path: Path) -> None:
    folder, _ = exported("tdt")
    place = tmp_path / "place"
    shutil.copytree(folder.with_name("tdt.hf"), place)
    assert not any("config.json" in note for note in add_graph(place).notes)
    features = speech_models.features((64,))
    a, b = (
        Graphs(one).run("encoder-model.onnx", audio_signal=features, length=numpy.array([64]))
        for one in (folder, place)
    )
    assert all((a[key] == b[key]).all() for key in a)
    convert(folder, tmp_path / "back.nemo", to="nemo", verify=True)
    convert(folder.with_name("tdt.hf"), tmp_path / "straight.nemo", to="nemo", verify=True)
    assert (tmp_path / "back.nemo").read_bytes() == (tmp_path / "straight.nemo").read_bytes()


def test_transformers_loads_the_folder_of_graphs(exported: Any) -> None:
    import transformers

    folder, model = exported("tdt")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "ParakeetProcessor"
    again = speech_models.load(folder, "tdt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_flavors_are_for_models_with_a_cache(exported: Any, tmp_path: Path) -> None:
    folder, _ = exported("ctc")
    with pytest.raises(UsageError, match="flavor 'genai' is for models that generate"):
        convert(folder.with_name("ctc.hf"), tmp_path / "out", to="onnx", flavor="genai")
