"""Tiny speech models with random weights, written by transformers, and audio for them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy

from nemoconv.converters.run.convert import convert

SAMPLES = Path(__file__).parents[2] / "fixtures" / "speech"
#: pieces of the sample's tokenizer, and a blank
VOCABULARY = 62
MELS = 80
_ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_kernel_size": 9,
    "subsampling_factor": 8,
    "subsampling_conv_channels": 8,
    "num_mel_bins": MELS,
    "scale_input": False,
    "attention_bias": False,
    "convolution_bias": False,
    "dropout": 0.0,
    "layerdrop": 0.0,
}
_OTHER = {
    "subsampling_factor": 4,
    "conv_kernel_size": 5,
    "num_attention_heads": 2,
    "scale_input": True,
    "attention_bias": True,
    "convolution_bias": True,
}
#: sherpa-onnx emits at most ten tokens a frame
_TRANSDUCER = {"decoder_hidden_size": 24, "blank_token_id": VOCABULARY - 1, "max_symbols_per_step": 10}
_DECODER = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
#: added to the logit of the blank, and of a duration of no frames: else random weights emit without end
_BIAS = {"ctc": 1.0, "rnnt": 8.0, "rnnt-other": 4.0, "tdt": 2.0}
_STAY_BIAS = -2.0
#: of weights that emit several kinds of tokens for the audio of the tests
_SEEDS = {"rnnt": 6, "rnnt-other": 3, "canary": 8}
#: case -> (class of transformers, its config, its encoder's)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ctc": ("ParakeetForCTC", {}, {}),
    "ctc-other": ("ParakeetForCTC", {}, _OTHER),
    "rnnt": ("ParakeetForRNNT", {**_TRANSDUCER, "num_decoder_layers": 2}, {}),
    "rnnt-other": (
        "ParakeetForRNNT",
        {**_TRANSDUCER, "num_decoder_layers": 1, "hidden_act": "tanh", "max_symbols_per_step": 2},
        _OTHER,
    ),
    "tdt": ("ParakeetForTDT", {**_TRANSDUCER, "num_decoder_layers": 2, "durations": [0, 1, 2, 3, 4]}, {}),
    "canary": ("CanaryForConditionalGeneration", {"vocab_size": 80, "decoder_config": _DECODER}, {}),
}


def build(folder: Path, case: str, dtype: str = "float32") -> Path:
    """A directory with weights, config, tokenizer and feature extractor."""
    import torch
    import transformers

    name, config, encoder = CASES[case]
    kind = getattr(transformers, name)
    if case != "canary":
        config = {"vocab_size": VOCABULARY, "pad_token_id": VOCABULARY - 1, **config}
    torch.manual_seed(_SEEDS.get(case, 0))
    model = kind(kind.config_class(encoder_config={**_ENCODER, **encoder}, **config)).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.add_((0.25 if "encoder." in key else 0.5) * torch.randn(weight.shape))
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(std=0.3)
            elif key.endswith("running_var"):
                buffer.uniform_(0.3, 2.0)
            elif key.endswith("num_batches_tracked"):
                buffer.fill_(7)
        _end_somewhere(model) if case == "canary" else _make_it_listen(model, case)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    _add_tokenizer(folder, case)
    return folder


def _make_it_listen(model: Any, case: str) -> None:
    """What an encoder of random weights says hardly changes with the audio: take off what it always says."""
    heard = model.encoder(_features(audio(6, 9))).last_hidden_state[0]
    layer = model.ctc_head if case.startswith("ctc") else model.encoder_projector
    said = heard @ layer.weight.reshape(layer.weight.shape[0], -1).T
    layer.weight.div_(said.std(0).reshape(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.copy_(-said.mean(0) / said.std(0))
    blank = VOCABULARY - 1
    head = layer.bias if case.startswith("ctc") else model.joint.head.bias
    head[blank] += _BIAS[case.removesuffix("-other") if case.startswith("ctc") else case]
    if not case.startswith("ctc"):
        head[blank + 1 : blank + 2] += _STAY_BIAS
        model.generation_config.decoder_start_token_id = blank
        model.generation_config.suppress_tokens = list(range(VOCABULARY, len(head)))


def _end_somewhere(model: Any) -> None:
    """Every token about as likely, the end a little more, and never a prompt's or one that the tokenizer
    lacks."""
    import torch

    said = model(_features(audio(6, 9)), decoder_input_ids=torch.arange(60)[None]).logits[0]
    model.proj_out.bias.sub_(said.mean(0))
    model.proj_out.bias[:17] -= 100
    model.proj_out.bias[3] += 100 + 1.5
    model.proj_out.bias[len(canary_pieces()) :] -= 100


def canary_pieces() -> list[str]:
    """Canary's tokens by their ids."""
    import sentencepiece

    with tarfile.open(SAMPLES / "canary.nemo") as archive:
        name = next(name for name in archive.getnames() if name.endswith("tokenizer.model"))
        data = archive.extractfile(name).read()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
    return [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())]


def _features(wave: numpy.ndarray[Any, Any]) -> Any:
    import transformers

    extractor = transformers.ParakeetFeatureExtractor(feature_size=MELS)
    return extractor(wave, sampling_rate=16_000, return_tensors="pt")["input_features"]


def _add_tokenizer(folder: Path, case: str) -> None:
    sample = case if case == "canary" else "ctc" if case.startswith("ctc") else "tdt"
    beside = folder.with_name(folder.name + "-tokenizer")
    convert(SAMPLES / f"{sample}.nemo", beside, to="hf")
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (folder / name).write_bytes((beside / name).read_bytes())
    extractor = {"feature_extractor_type": "ParakeetFeatureExtractor", "feature_size": MELS}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))


def load(folder: Path, case: str) -> Any:
    """transformers' model, in float32."""
    import transformers

    model = getattr(transformers, CASES[case][0]).from_pretrained(folder)
    return model.float().eval()


def audio(seconds: float, seed: int = 0) -> numpy.ndarray[Any, Any]:
    """Tones that come and go, 16 kHz."""
    random = numpy.random.default_rng(seed)
    time = numpy.arange(int(seconds * 16_000)) / 16_000
    wave = 0.02 * random.standard_normal(time.size)
    for _ in range(int(8 * seconds)):
        start, pitch = random.uniform(0, seconds), random.uniform(120, 4_000)
        wave += 0.2 * numpy.sin(2 * numpy.pi * pitch * time) * numpy.exp(-(((time - start) / 0.06) ** 2))
    return wave.astype(numpy.float32)


def features(lengths: tuple[int, ...], seed: int = 0) -> numpy.ndarray[Any, Any]:
    """[batch, mels, frames], zeros in the padding."""
    random = numpy.random.default_rng(seed)
    found = random.standard_normal((len(lengths), MELS, max(lengths))).astype(numpy.float32)
    for row, length in enumerate(lengths):
        found[row, :, length:] = 0
    return found
