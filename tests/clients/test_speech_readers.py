"""Speech models decoded: by hand, by onnx-asr and by sherpa-onnx, as transformers decodes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

from .speech_runs import (
    PROMPT,
    WAVES,
    Graphs,
    by_sherpa,
    continued,
    features_of_sherpa,
    features_of_transformers,
    heard,
    transcribed,
    zeros,
)

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")


def greedy(graphs: Graphs, model: Any, features: Any) -> tuple[list[int], list[int]]:
    """(tokens with blanks, frames that each takes) as transformers' generate counts them."""
    config, blank = model.config, model.config.blank_token_id
    length = numpy.array([features.shape[2]])
    encoded = graphs.run("encoder-model.onnx", audio_signal=features, length=length)
    state, last, frame, at_frame = zeros(model, 1), blank, 0, 0
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


@pytest.mark.parametrize("case", ["rnnt", "rnnt-other", "tdt"])
def test_greedy_decoding_is_that_of_transformers(exported_speech: Any, case: str) -> None:
    folder, model = exported_speech(case)
    graphs = Graphs(folder)
    features = features_of_transformers(folder, WAVES[0]).transpose(1, 2).numpy()
    given, _ = heard(model, features, (features.shape[2],))
    made = model.generate(**given, max_new_tokens=300)
    tokens, durations = greedy(graphs, model, features)
    assert len({*tokens}) > 2
    assert tokens == made.sequences[0, 1:].tolist()
    assert durations == made.durations[0, 1:].tolist()


@pytest.mark.parametrize("case", ["ctc", "rnnt-other", "tdt"])
def test_onnx_asr_transcribes_what_transformers_does(exported_speech: Any, case: str) -> None:
    onnx_asr = pytest.importorskip("onnx_asr", reason="onnx-asr is not installed")
    folder, model = exported_speech(case)
    waves = [WAVES[0], WAVES[1][:14_080]]
    wanted = [transcribed(model, folder, features_of_transformers(folder, wave)) for wave in waves]
    assert min(len({*tokens}) for tokens in wanted) > 2
    assert wanted[0] != wanted[1]
    loaded = onnx_asr.load_model(f"nemo-conformer-{case.split('-')[0]}", folder).with_timestamps()
    assert [loaded.recognize(wave, sample_rate=16_000).tokens for wave in waves] == wanted
    batch = loaded.recognize(waves, sample_rate=16_000)
    assert [result.tokens for result in batch] == wanted


@pytest.mark.parametrize("case", ["ctc", "rnnt", "tdt"])
def test_sherpa_onnx_transcribes_what_transformers_does(
    exported_speech: Any, tmp_path: Path, case: str
) -> None:
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed")
    pytest.importorskip("kaldi_native_fbank", reason="kaldi-native-fbank is not installed")
    folder, model = exported_speech(case)
    found = by_sherpa(folder, case, tmp_path)
    how = {"window": "hanning", "high": 0} if case == "ctc" else {"window": "povey", "high": -400}
    wanted = [transcribed(model, folder, features_of_sherpa(wave, **how)) for wave in WAVES]
    assert min(len({*tokens}) for tokens in wanted) > 2
    assert found == wanted


def test_canary_in_onnx_asr(exported_speech: Any) -> None:
    onnx_asr = pytest.importorskip("onnx_asr", reason="onnx-asr is not installed")
    pytest.importorskip("sentencepiece")
    folder, model = exported_speech("canary")
    loaded = onnx_asr.load_model("nemo-conformer-aed", folder).with_timestamps()
    wanted = [continued(model, features_of_transformers(folder, wave), ["▁", *PROMPT], 54) for wave in WAVES]
    assert min(len({*tokens}) for tokens in wanted) > 3
    assert wanted[0] != wanted[1]
    assert [loaded.recognize(wave, sample_rate=16_000).tokens for wave in WAVES] == wanted


def test_canary_in_sherpa_onnx(exported_speech: Any, tmp_path: Path) -> None:
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed")
    pytest.importorskip("kaldi_native_fbank", reason="kaldi-native-fbank is not installed")
    pytest.importorskip("sentencepiece")
    folder, model = exported_speech("canary")
    found = by_sherpa(folder, "canary", tmp_path)
    # 30 tokens a second at most, and the last one is dropped
    features = [features_of_sherpa(wave, window="hanning", high=-400) for wave in WAVES]
    wanted = [continued(model, one, PROMPT, int(20 * 8 / 100 * 30) + 1) for one in features]
    assert min(len({*tokens}) for tokens in wanted) > 3
    assert found == wanted
