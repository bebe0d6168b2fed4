"""NeMo's mel-spectrogram preprocessor <-> ``ParakeetFeatureExtractor``.

Source: nemo/collections/asr/modules/audio_preprocessing.py, parts/preprocessing/features.py;
transformers/models/parakeet/feature_extraction_parakeet.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import UnsupportedConfig
from ...formats.text import plain_json
from ..hf.fields import Value, check_kind
from .speech import YAML, ClassOf, Setting, SpeechKey, SpeechOnly, UnreadSection, typed

EXTRACTOR: Final = "preprocessor_config.json"
PROCESSOR: Final = "processor_config.json"
CLASS: Final = "ParakeetFeatureExtractor"
#: ParakeetFeatureExtractor's own
DEFAULTS: Final[Mapping[str, Value]] = {
    "feature_size": 80,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 512,
    "win_length": 400,
    "preemphasis": 0.97,
    "padding_value": 0.0,
}
#: keys of a saved extractor that do not change what it computes
_INERT: Final = frozenset(
    "feature_extractor_type image_processor_type padding_side processor_class return_attention_mask".split()
)


@dataclass(frozen=True, slots=True)
class SampleRate:
    """``preprocessor.sample_rate``, and the model's, which must be the same."""

    paths = frozenset({"preprocessor.sample_rate", "sample_rate"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        rate = typed("preprocessor.sample_rate", yaml.get("preprocessor.sample_rate", 16000), int, 1)
        if yaml.get("sample_rate", rate) != rate:
            raise UnsupportedConfig(
                f"{YAML}: sample_rate={yaml['sample_rate']!r}, but preprocessor.sample_rate={rate}"
            )
        config["sampling_rate"] = rate

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml["sample_rate"] = yaml["preprocessor.sample_rate"] = config["sampling_rate"]


@dataclass(frozen=True, slots=True)
class WindowLength:
    """``window_NAME`` in seconds or ``n_window_NAME`` in samples <-> ``field`` in samples. NeMo cuts
    fractions of samples off."""

    name: str
    field: str
    default: float

    @property
    def paths(self) -> frozenset[str]:
        return frozenset({f"preprocessor.window_{self.name}", f"preprocessor.n_window_{self.name}"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        seconds = yaml.get(f"preprocessor.window_{self.name}", self.default)
        samples = yaml.get(f"preprocessor.n_window_{self.name}")
        if seconds:
            path = f"preprocessor.window_{self.name}"
            if samples:
                raise UnsupportedConfig(f"{YAML}: {path} and preprocessor.n_window_{self.name} are both set")
            samples = int(typed(path, seconds, float) * config["sampling_rate"])
        config[self.field] = typed(f"preprocessor.n_window_{self.name}", samples, int, 1)

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        samples, rate = config[self.field], config["sampling_rate"]
        if int(samples / rate * rate) == samples:
            yaml[f"preprocessor.window_{self.name}"] = samples / rate
        else:
            yaml[f"preprocessor.window_{self.name}"] = None
            yaml[f"preprocessor.n_window_{self.name}"] = samples


@dataclass(frozen=True, slots=True)
class FourierSize:
    """``n_fft``: unless given, the power of two that holds a window."""

    paths = frozenset({"preprocessor.n_fft"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = yaml.get("preprocessor.n_fft") or 2 ** math.ceil(math.log2(config["win_length"]))
        config["n_fft"] = typed("preprocessor.n_fft", given, int, 1)

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml["preprocessor.n_fft"] = config["n_fft"]


@dataclass(frozen=True, slots=True)
class Preemphasis:
    """``preemph``, where None means none."""

    paths = frozenset({"preprocessor.preemph"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        value = yaml.get("preprocessor.preemph", 0.97)
        config["preemphasis"] = None if value is None else typed("preprocessor.preemph", value, float)

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml["preprocessor.preemph"] = config["preemphasis"]


@dataclass(frozen=True, slots=True)
class HighFrequency:
    """``highfreq``: half the sample rate, by whatever words."""

    paths = frozenset({"preprocessor.highfreq"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = yaml.get("preprocessor.highfreq")
        if found and found != config["sampling_rate"] / 2:
            raise UnsupportedConfig(f"{YAML}: preprocessor.highfreq={found!r} has no counterpart, only null")

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        pass


SETTINGS: Final[tuple[Setting, ...]] = (
    ClassOf("preprocessor", "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor"),
    SampleRate(),
    SpeechOnly("preprocessor.normalize", ("per_feature",), written=True),
    WindowLength("size", "win_length", 0.02),
    WindowLength("stride", "hop_length", 0.01),
    SpeechOnly("preprocessor.window", ("hann",), written=True),
    SpeechKey("preprocessor.features", "feature_size", 64, at_least=1),
    FourierSize(),
    Preemphasis(),
    HighFrequency(),
    SpeechOnly("preprocessor.lowfreq", (0, 0.0)),
    SpeechOnly("preprocessor.log", (True,), written=True),
    SpeechOnly("preprocessor.log_zero_guard_type", ("add",)),
    SpeechOnly("preprocessor.log_zero_guard_value", (2**-24,)),
    SpeechOnly("preprocessor.frame_splicing", (1,), written=True),
    SpeechOnly("preprocessor.exact_pad", (False,)),
    SpeechOnly("preprocessor.mag_power", (2.0, 2)),
    SpeechOnly("preprocessor.mel_norm", ("slaney",)),
    SpeechOnly("preprocessor.use_torchaudio", (False,)),
    SpeechOnly("preprocessor.pad_value", (0.0, 0)),
    UnreadSection(
        "preprocessor",
        ("dither", "nb_augmentation_prob", "nb_max_freq", "rng", "stft_conv", "stft_exact_pad", "pad_to"),
    ),
)
PATHS: Final = frozenset().union(*(setting.paths for setting in SETTINGS))


def read_extractor(yaml: Mapping[str, Value]) -> dict[str, Value]:
    """The feature extractor of a flat model_config.yaml: the keys of :data:`DEFAULTS`.

    Raises UnsupportedConfig for features that ParakeetFeatureExtractor does not compute.
    """
    extractor: dict[str, Value] = {}
    for setting in SETTINGS:
        setting.read(yaml, extractor)
    _check_sizes(extractor, YAML)
    return {**extractor, "padding_value": 0.0}


def _check_sizes(extractor: Mapping[str, Value], where: str) -> None:
    """Real ones are hundreds; the filters are computed from these numbers, so they are bounded."""
    for key, limit in (("feature_size", 4096), ("n_fft", 1 << 16), ("win_length", 1 << 16)):
        if extractor[key] > limit:
            raise UnsupportedConfig(f"{where}: {key}={extractor[key]:,} is out of range, at most {limit:,}")
    if extractor["win_length"] > extractor["n_fft"]:
        raise UnsupportedConfig(f"{where}: win_length={extractor['win_length']:,} exceeds n_fft")


def write_extractor(extractor: Mapping[str, Value]) -> dict[str, Value]:
    """The flat model_config.yaml of a feature extractor. ``dither`` and ``pad_to`` act in training only."""
    yaml: dict[str, Value] = {}
    for setting in SETTINGS:
        setting.write(extractor, yaml)
    return {**yaml, "preprocessor.dither": 1e-05, "preprocessor.pad_to": 0}


def dumps(extractor: Mapping[str, Value]) -> bytes:
    """preprocessor_config.json."""
    return plain_json.dumps(
        {
            "feature_extractor_type": CLASS,
            **extractor,
            "padding_side": "right",
            "return_attention_mask": True,
        }
    )


def loads(data: bytes, where: str) -> dict[str, Value]:
    """The feature extractor of a preprocessor_config.json, or of a processor_config.json that holds one.

    Raises UnsupportedConfig for another class or for unknown keys.
    """
    config = plain_json.loads_object(data, where)
    inner = config.get("feature_extractor", config)
    if not isinstance(inner, dict) or inner.get("feature_extractor_type", CLASS) != CLASS:
        raise UnsupportedConfig(f"{where}: is no {CLASS}, the only one that NeMo's preprocessor matches")
    unknown = sorted(inner.keys() - DEFAULTS.keys() - _INERT)
    if unknown:
        raise UnsupportedConfig(f"{where}: has unknown key(s) {unknown}")
    extractor = {key: inner.get(key, default) for key, default in DEFAULTS.items()}
    for key in ("feature_size", "sampling_rate", "hop_length", "n_fft", "win_length"):
        check_kind(key, extractor[key], int)
    _check_sizes(extractor, where)
    if extractor["preemphasis"] is not None:
        check_kind("preemphasis", extractor["preemphasis"], float)
    return extractor
