"""Speech tables: both configs say the same, and what has no counterpart is refused by name."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy
import pytest

from nemoconv.errors import UnsupportedConfig, UnsupportedFormat
from nemoconv.formats.text import plain_yaml
from nemoconv.mappings import load_table
from nemoconv.mappings.families import audio, speech_preprocessor
from nemoconv.mappings.families.speech import flatten, nest, read_settings, write_settings
from nemoconv.mappings.hf.fields import read_config, write_config

SAMPLES = Path(__file__).parents[3] / "fixtures" / "speech"
TABLES = {"ctc": "parakeet_ctc", "tdt": "parakeet_tdt", "rnnt": "parakeet_rnnt", "canary": "canary"}


def yaml_of(sample):
    with tarfile.open(SAMPLES / f"{sample}.nemo") as tar:
        data = tar.extractfile("./model_config.yaml").read()
    return dict(flatten(plain_yaml.loads_mapping(data, sample)))


def own(yaml):
    return {path: value for path, value in yaml.items() if path not in speech_preprocessor.PATHS}


@pytest.mark.parametrize("sample", TABLES)
def test_a_config_survives_both_ways(sample):
    table, yaml = load_table(TABLES[sample]), yaml_of(sample)
    assert table.fits(yaml["target"], None, yaml)
    config = read_settings(table.settings, own(yaml))
    assert read_settings(table.settings, write_settings(table.settings, config)) == config
    hf = write_config(table.fields, config)
    again, _ = read_config(table.fields, hf)
    assert again == config
    extractor = speech_preprocessor.read_extractor(yaml)
    written = speech_preprocessor.write_extractor(extractor)
    assert speech_preprocessor.read_extractor(written) == extractor
    assert speech_preprocessor.loads(speech_preprocessor.dumps(extractor), "x") == extractor


def test_only_one_table_fits_each_class():
    for sample in TABLES:
        yaml = yaml_of(sample)
        fitting = [name for name in TABLES.values() if load_table(name).fits(yaml["target"], None, yaml)]
        assert fitting == [TABLES[sample]]
    hybrid = yaml_of("hybrid_tdt_ctc")
    for head, name in (("ctc", "parakeet_ctc"), ("transducer", "parakeet_tdt")):
        fitting = [n for n in TABLES.values() if load_table(n).fits(hybrid["target"], head, hybrid)]
        assert fitting == [name]


def test_a_class_elsewhere_is_not_taken_for_nemos():
    yaml = yaml_of("ctc")
    table = load_table("parakeet_ctc")
    assert not table.fits("evil.models.EncDecCTCModelBPE", None, yaml)
    assert not table.fits("nemo.collections.asr.models.EncDecCTCModelBPEx", None, yaml)


@pytest.mark.parametrize(
    ("sample", "changes", "says"),
    [
        ("ctc", {"encoder.subsampling": "striding"}, "encoder.subsampling='striding'"),
        ("ctc", {"encoder.subsampling": None}, "encoder.subsampling=None"),
        ("ctc", {"encoder.causal_downsampling": True}, "causal_downsampling=True"),
        ("ctc", {"encoder.self_attention_model": "rel_pos_local_attn"}, "self_attention_model"),
        ("ctc", {"encoder.att_context_size": [70, 13]}, r"att_context_size=\[70, 13\]"),
        ("ctc", {"encoder.att_context_size": [[70, 13], [-1, -1]]}, "att_context_size"),
        ("ctc", {"encoder.conv_context_size": "causal"}, "conv_context_size='causal'"),
        ("ctc", {"encoder.conv_norm_type": "layer_norm"}, "conv_norm_type='layer_norm'"),
        ("ctc", {"encoder.reduction": "pooling", "encoder.reduction_factor": 2}, "reduction='pooling'"),
        ("ctc", {"encoder.feat_out": 7}, "feat_out=7"),
        ("ctc", {"encoder.n_layers": "two"}, "encoder.n_layers='two'"),
        ("ctc", {"encoder.n_layers": True}, "encoder.n_layers=True"),
        ("ctc", {"encoder.use_bias": 1}, "encoder.use_bias=1"),
        ("ctc", {"encoder.dropout": float("nan")}, "out of range"),
        ("ctc", {"encoder.novel_key": 1}, "encoder.novel_key"),
        ("ctc", {"brand_new_section.key": 1}, "brand_new_section.key"),
        ("ctc", {"encoder._target_": "nemo.collections.asr.modules.ConvASREncoder"}, "ConvASREncoder"),
        ("ctc", {"encoder._target_": "os.system.ConformerEncoder"}, "os.system"),
        ("ctc", {"decoder.num_classes": 60}, "num_classes=60"),
        ("ctc", {"decoder.add_blank": False}, "add_blank"),
        ("rnnt", {"joint.jointnet.joint_hidden": 99}, "joint_hidden=99"),
        ("rnnt", {"decoder.prednet.rnn_hidden_size": 24}, "rnn_hidden_size=24"),
        ("rnnt", {"decoder.normalization_mode": "layer"}, "normalization_mode='layer'"),
        ("rnnt", {"decoder.blank_as_pad": False}, "blank_as_pad=False"),
        ("rnnt", {"joint.num_extra_outputs": 3}, "num_extra_outputs=3"),
        ("rnnt", {"decoder.vocab_size": 5}, "decoder.vocab_size says 5"),
        ("tdt", {"loss.tdt_kwargs.durations": [0, 1]}, "num_extra_outputs=5 for 2 durations"),
        ("tdt", {"loss.tdt_kwargs.durations": "all"}, "durations='all'"),
        ("canary", {"transf_encoder.num_layers": 2}, "transf_encoder.num_layers=2"),
        ("canary", {"transf_decoder.config_dict.pre_ln": False}, "pre_ln=False"),
        ("canary", {"transf_decoder.config_dict.hidden_act": "silu"}, "hidden_act='silu'"),
        ("canary", {"transf_decoder.config_dict.learn_positional_encodings": True}, "learn_positional"),
        ("canary", {"head.num_layers": 2}, "head.num_layers=2"),
        ("canary", {"head.num_classes": -8}, "num_classes=-8"),
    ],
)
def test_what_has_no_counterpart_is_named(sample, changes, says):
    yaml = {**own(yaml_of(sample)), **changes}
    with pytest.raises(UnsupportedConfig, match=says):
        read_settings(load_table(TABLES[sample]).settings, yaml)


def test_an_unknown_key_can_be_allowed():
    yaml = {**own(yaml_of("ctc")), "encoder.novel_key": 1, "section.key": 2}
    settings = load_table("parakeet_ctc").settings
    assert read_settings(settings, yaml, ("encoder.novel_key", "section"))["d_model"] == 32


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 24}, "the encoder is 16 wide, the decoder 24"),
        ({"num_attention_heads": 3}, "hidden_size=16 is odd, or no multiple of num_attention_heads"),
        ({"max_sequence_length": 1 << 24}, "max_sequence_length=16,777,216 is out of range"),
        ({"num_layers": 10**9}, "layers are out of range"),
    ],
)
def test_sizes_of_a_decoder_that_do_not_fit_are_refused(changes, says):
    table = load_table("canary")
    config = {**read_settings(table.settings, own(yaml_of("canary"))), **changes}
    with pytest.raises(UnsupportedConfig, match=says):
        table.sizes(config)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_heads": 5}, "not a multiple of n_heads"),
        ({"subsampling_factor": 6}, "subsampling_factor=6"),
        ({"feat_in": 81}, "feat_in=81"),
        ({"conv_kernel_size": 8}, "even"),
        ({"n_layers": 10**9}, "layers are out of range"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, says):
    table = load_table("parakeet_ctc")
    config = {**read_settings(table.settings, own(yaml_of("ctc"))), **changes}
    with pytest.raises(UnsupportedConfig, match=says):
        table.sizes(config)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("parakeet_ctc", {"encoder_config": {"hidden_act": "gelu"}}, "hidden_act='gelu'"),
        ("parakeet_ctc", {"encoder_config": {"convolution_bias": False}}, "convolution_bias=False"),
        ("parakeet_ctc", {"encoder_config": {"num_key_value_heads": 2}}, "num_key_value_heads=2"),
        ("parakeet_ctc", {"encoder_config": {"novel": 2}}, "novel"),
        ("parakeet_ctc", {"encoder_config": {"model_type": "lasr_encoder"}}, "parakeet_encoder"),
        ("parakeet_ctc", {"encoder_config": [1]}, "parakeet_encoder"),
        ("parakeet_rnnt", {"blank_token_id": 3}, "blank_token_id=3"),
        ("parakeet_tdt", {"durations": []}, r"durations=\[\]"),
        ("parakeet_tdt", {"durations": [0, -1]}, "durations"),
        ("canary", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ("canary", {"vocab_size": 16392}, "vocab_size=16392"),
        ("canary", {"decoder_config": {"head_dim": 64}}, "head_dim=64"),
    ],
)
def test_what_nemo_cannot_say_is_named(name, changes, says):
    with pytest.raises(UnsupportedConfig, match=says):
        read_config(load_table(name).fields, changes)


def test_a_width_that_is_no_multiple_has_no_expansion_factor():
    table = load_table("parakeet_ctc")
    config, _ = read_config(table.fields, {"encoder_config": {"intermediate_size": 4097}})
    with pytest.raises(UnsupportedConfig, match="intermediate_size=4097"):
        write_settings(table.settings, config)


def test_nemo_2_directories_hold_no_speech_model():
    with pytest.raises(UnsupportedFormat, match="EncDecCTCModelBPE"):
        load_table("parakeet_ctc").nemo.write({})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preprocessor.normalize": "all_features"}, "normalize='all_features'"),
        ({"preprocessor.window": "hamming"}, "window='hamming'"),
        ({"preprocessor.log_zero_guard_type": "clamp"}, "log_zero_guard_type"),
        ({"preprocessor.highfreq": 4000}, "highfreq=4000"),
        ({"preprocessor.frame_splicing": 2}, "frame_splicing=2"),
        ({"preprocessor.n_window_size": 400}, "both set"),
        ({"sample_rate": 8000}, "sample_rate=8000"),
        ({"preprocessor.n_fft": 1 << 20}, "n_fft"),
        ({"preprocessor.features": 10**9}, "feature_size"),
        ({"preprocessor._target_": "nemo.collections.asr.modules.AudioToMFCCPreprocessor"}, "MFCC"),
    ],
)
def test_other_features_are_refused(changes, says):
    with pytest.raises(UnsupportedConfig, match=says):
        speech_preprocessor.read_extractor({**yaml_of("ctc"), **changes})


def test_another_extractor_is_refused():
    for data in (b'{"feature_extractor_type": "WhisperFeatureExtractor"}', b'{"novel": 1}', b'{"n_fft": 0}'):
        with pytest.raises(UnsupportedConfig):
            speech_preprocessor.loads(data, "x")


def test_windows_are_whole_samples():
    for rate, samples in ((16000, 400), (8000, 60), (44100, 1103), (22050, 551), (16000, 7)):
        extractor = {
            **speech_preprocessor.DEFAULTS,
            "sampling_rate": rate,
            "win_length": samples,
            "n_fft": 2048,
        }
        yaml = speech_preprocessor.write_extractor(extractor)
        assert speech_preprocessor.read_extractor(yaml)["win_length"] == samples
        if yaml["preprocessor.window_size"]:
            assert int(yaml["preprocessor.window_size"] * rate) == samples


def test_constants_are_those_of_torch():
    torch = pytest.importorskip("torch")
    for length in (1, 2, 60, 400, 1024):
        theirs = torch.hann_window(length, periodic=False).numpy()
        assert numpy.abs(audio.hann_window(length) - theirs).max() <= 6e-8
    position = torch.arange(0.0, 64).unsqueeze(1)
    frequency = torch.exp(-numpy.log(10000.0) / 32 * torch.arange(0.0, 32, 2))
    table = audio.sinusoids(64, 32) * 32**0.5
    assert numpy.abs(table[:, 0::2] - torch.sin(position * frequency).numpy()).max() < 1e-5
    assert numpy.abs(table[:, 1::2] - torch.cos(position * frequency).numpy()).max() < 1e-5


def test_filters_are_those_of_transformers():
    utils = pytest.importorskip("transformers.audio_utils")
    for rate, n_fft, mels in ((16000, 512, 80), (8000, 64, 16), (44100, 1024, 128)):
        theirs = utils.mel_filter_bank(
            n_fft // 2 + 1, mels, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney"
        )
        assert numpy.abs(audio.mel_filters(rate, n_fft, mels) - theirs.T).max() < 1e-7


def test_flat_and_nested_are_inverse():
    nested = {"a": {"b": 1, "c": {"d": [1, {"e": 2}]}}, "f": None, "g": {}}
    assert nest(dict(flatten(nested))) == nested
