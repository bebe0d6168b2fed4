"""ONNX graphs of speech models compute what transformers and NeMo do. Who reads them: test_speech_readers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.onnx_in_place import add_graph
from nemoconv.errors import UsageError

from . import speech_models
from .speech_models import SAMPLES, VOCABULARY
from .speech_runs import Graphs, difference, heard, zeros

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

TOLERANCE = 1e-4  # float32; outputs are a few units large
FELT = 1e-2
CTC = ["ctc", "ctc-other"]
TRANSDUCERS = ["rnnt", "rnnt-other", "tdt"]
BATCHES = [(61, 130), (130, 9, 77), (1,)]


@pytest.mark.parametrize("lengths", BATCHES)
@pytest.mark.parametrize("case", CTC)
def test_ctc_log_probabilities(exported_speech: Any, case: str, lengths: tuple[int, ...]) -> None:
    folder, model = exported_speech(case)
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


def test_what_the_config_and_the_lengths_say_is_felt(exported_speech: Any, tmp_path: Path) -> None:
    folder, model = exported_speech("ctc-other")
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
def test_a_transducers_states_and_logits(exported_speech: Any, case: str, lengths: tuple[int, ...]) -> None:
    folder, model = exported_speech(case)
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
    found = graphs.run("decoder_joint-model.onnx", **inputs, **zeros(model, batch))
    assert difference(found["outputs"], grid, steps) <= TOLERANCE
    assert found["prednet_lengths"].tolist() == [5] * batch
    # the same from the networks apart, token by token
    state, made = zeros(model, batch), []
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
def test_packed_graphs_hold_the_same_bytes(exported_speech: Any, tmp_path: Path, case: str) -> None:
    from safetensors.numpy import load_file

    folder, _ = exported_speech(case)
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
        states = {f"input_states_{i}": numpy.zeros((1, 1, 12), numpy.float32) for i in (1, 2)}
        found = graphs.run(
            "decoder_joint-model.onnx",
            encoder_outputs=encoded,
            targets=targets,
            target_length=length,
            **states,
        )
        joint = torch.tensor(found["outputs"]).log_softmax(-1).numpy()
        assert numpy.abs(joint - values["joint"]).max() <= 1e-5


def test_canary_computes_what_nemo_computed(tmp_path: Path) -> None:
    out = tmp_path / "canary"
    convert(SAMPLES / "canary.nemo", out, to="onnx", verify=True)
    for path in out.glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)
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


def test_a_graph_in_place_and_the_way_to_nemo(exported_speech: Any, tmp_path: Path) -> None:
    folder, _ = exported_speech("tdt")
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


def test_transformers_loads_the_folder_of_graphs(exported_speech: Any) -> None:
    import transformers

    folder, model = exported_speech("tdt")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "ParakeetProcessor"
    again = speech_models.load(folder, "tdt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_flavors_are_for_models_with_a_cache(exported_speech: Any, tmp_path: Path) -> None:
    folder, _ = exported_speech("ctc")
    with pytest.raises(UsageError, match="flavor 'genai' is for models that generate"):
        convert(folder.with_name("ctc.hf"), tmp_path / "out", to="onnx", flavor="genai")
