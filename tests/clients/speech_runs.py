"""Running the graphs of speech models, and what transformers and others make of the same audio."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy

from . import speech_models
from .speech_models import VOCABULARY

WAVES = [speech_models.audio(1.6, seed) for seed in range(2)]
#: what both programs ask a Canary for; onnx-asr begins with SentencePiece's space
PROMPT = "<|startofcontext|> <|startoftranscript|> <|emo:undefined|> <|en|> <|en|> <|pnc|> <|noitn|>".split()
PROMPT += ["<|notimestamp|>", "<|nodiarize|>"]


class Graphs:
    """The graphs of a folder by file name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: dict[str, Any] = {}

    def run(self, name: str, **inputs: Any) -> dict[str, Any]:
        """Outputs by name."""
        import onnxruntime

        if name not in self._sessions:
            self._sessions[name] = onnxruntime.InferenceSession(str(self._folder / name))
        session = self._sessions[name]
        found = session.run(None, inputs)
        return dict(zip([value.name for value in session.get_outputs()], found, strict=True))


def heard(model: Any, features: Any, lengths: tuple[int, ...]) -> tuple[dict[str, Any], Any]:
    """transformers' arguments for features [batch, mels, frames], and how many steps are real."""
    import torch

    mask = torch.arange(features.shape[2])[None] < torch.tensor(lengths)[:, None]
    given = {"input_features": torch.tensor(features).transpose(1, 2).contiguous(), "attention_mask": mask}
    return given, model._get_subsampling_output_length(mask.sum(-1)).tolist()


def difference(found: Any, wanted: Any, steps: list[int]) -> float:
    """The largest one of [batch, steps, ...], in real steps."""
    assert found.shape == tuple(wanted.shape)
    assert numpy.abs(wanted.numpy()).max() > 0.5
    rows = zip(found, wanted.numpy(), steps, strict=True)
    return max(float(numpy.abs(a[:count] - b[:count]).max()) for a, b, count in rows)


def zeros(model: Any, batch: int) -> dict[str, Any]:
    """The states that a transducer begins with."""
    shape = (model.config.num_decoder_layers, batch, model.config.decoder_hidden_size)
    return {f"input_states_{i}": numpy.zeros(shape, numpy.float32) for i in (1, 2)}


def features_of_transformers(folder: Path, wave: Any) -> Any:
    import transformers

    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    given = extractor(wave, sampling_rate=16_000, return_tensors="pt")
    return given["input_features"][:, : int(given["attention_mask"].sum())]


def features_of_sherpa(wave: Any, *, window: str, high: float) -> Any:
    """What sherpa-onnx computes for NeMo models, by the library that it uses for that. It is not quite what
    they were trained with. Source: offline-recognizer-{ctc, transducer-nemo, canary}-impl.h, math.cc."""
    import kaldi_native_fbank
    import torch

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
    import torch

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


def continued(model: Any, features: Any, prompt: list[str], most: int) -> list[str]:
    """What follows the prompt greedily, by transformers computing everything anew for each token."""
    import torch

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
