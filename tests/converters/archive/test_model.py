"""``.nemo`` archives of any class: weights go out and come back to the bit, hostile ones are refused."""

from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import hostile
import numpy
import pytest

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import open_checkpoint, recognize
from nemoconv.converters.run.convert import convert
from nemoconv.errors import (
    CorruptCheckpoint,
    LayoutError,
    MappingError,
    NemoconvError,
    UnsafeCheckpoint,
    UnsupportedArchitecture,
    UnsupportedConfig,
    UnsupportedError,
    UnsupportedFormat,
    UsageError,
)
from nemoconv.formats.text import plain_yaml
from nemoconv.formats.torch.checkpoint import StateDictItem
from nemoconv.tensors.checksum import crc32
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.testing import data_of

ROOT = Path(__file__).parents[3] / "fixtures"
SAMPLES = ROOT / "speech"

SPEAKER = {
    "target": "nemo.collections.asr.models.label_models.EncDecSpeakerLabelModel",
    "sample_rate": 16000,
    "encoder": {"_target_": "nemo.collections.asr.modules.ConvASREncoder", "feat_in": 80},
    "note": "${sample_rate} $ {unread}",
    "nemo_version": "1.23.0",
}
#: awkward names, shapes and bits
TENSORS = {
    "encoder.{layer}.weight": numpy.arange(24, dtype=numpy.float32).reshape(2, 3, 4),
    "encoder.{0.__class__}.{}": numpy.array([0x7FC00001, 0x80000000, 1], numpy.uint32).view(numpy.float32),
    "counts": numpy.array(7, numpy.int64),
    "nothing": numpy.zeros((0, 5), numpy.float16),
    "flags": numpy.array([True, False]),
    "../../outside": numpy.arange(6, dtype=numpy.int8),
    "große.Vögel": numpy.array([[1.5, -0.0]], numpy.float64),
}


def weights(tensors, nulls=()):
    """model_weights.ckpt of these tensors."""
    entries = {name: (BY_NAME[str(array.dtype)], array.shape) for name, array in tensors.items()}
    item = StateDictItem({**entries, **dict.fromkeys(nulls)})
    data = bytearray(item.length)
    raw = [numpy.ascontiguousarray(array).tobytes() for array in tensors.values()]
    for offset, part in zip(item.payload_offsets, raw, strict=True):
        data[offset : offset + len(part)] = part
    for offset, part in item.frames([crc32(part) for part in raw]):
        data[offset : offset + len(part)] = part
    return bytes(data)


def pack(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def unpack(path):
    with tarfile.open(path) as tar:
        return {m.name.removeprefix("./"): tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}


def speaker(path, config=SPEAKER, tensors=TENSORS, nulls=("loss._extra_state",), **members):
    return pack(
        path,
        {
            "0123456789abcdef0123456789abcdef_labels.txt": b"a\nb\n",
            "folder/inner.nemo": b"\x80 not opened",
            "model_config.yaml": plain_yaml.dumps(config),
            "model_weights.ckpt": weights(tensors, nulls),
            **members,
        },
    )


def changed(tmp_path, sample="ctc", *, config=None, files=None, tensors=None):
    """A copy of a sample with parts of it replaced."""
    members = unpack(SAMPLES / f"{sample}.nemo")
    if config is not None:
        yaml = plain_yaml.loads_mapping(members["model_config.yaml"], "x")
        config(yaml)
        members["model_config.yaml"] = plain_yaml.dumps(yaml)
    if tensors is not None:
        with open_checkpoint(SAMPLES / f"{sample}.nemo") as opened:
            arrays = {name: opened.read(name) for name in opened.keys()}  # noqa: SIM118
        tensors(arrays)
        members["model_weights.ckpt"] = weights(arrays)
    members.update(files or {})
    return pack(tmp_path / "changed.nemo", members)


def refused(path, kind, *, to="hf", **options):
    """The message with which a conversion is refused; nothing is written."""
    out = path.parent / "out"
    with pytest.raises(NemoconvError) as caught:
        convert(path, out, to=to, **options)
    assert type(caught.value) is kind, caught.value
    assert "\n" not in str(caught.value)
    assert not [name for name in os.listdir(path.parent) if "out" in name]
    return str(caught.value)


# any class


def test_any_archive_becomes_safetensors_and_the_same_archive(tmp_path):
    source = speaker(tmp_path / "source.nemo")
    folder, back = tmp_path / "folder", tmp_path / "back.nemo"
    convert(source, folder, to="safetensors", verify=True)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert names == [
        "artifacts/0123456789abcdef0123456789abcdef_labels.txt",
        "artifacts/folder/inner.nemo",
        "empty_entries.json",
        "model.safetensors",
        "model_config.yaml",
        "nemoconv_manifest.json",
    ]
    assert (folder / "model_config.yaml").read_bytes() == plain_yaml.dumps(SPEAKER)
    convert(folder, back, to="nemo", verify=True)
    ours, theirs = unpack(back), unpack(source)
    assert ours.keys() == theirs.keys() | {"nemoconv_manifest.json"}
    for name in theirs.keys() - {"model_weights.ckpt"}:
        assert ours[name] == theirs[name]
    assert data_of(back) == data_of(folder) == data_of(source)
    assert data_of(source) == {name: array.tobytes() for name, array in TENSORS.items()}
    assert verify(back).equal
    assert verify(folder).equal
    assert verify(source, back).equal
    assert inspect(folder)["target"] == SPEAKER["target"]
    assert recognize(back).name == "nemo"
    assert recognize(folder).name == "safetensors"


def test_torch_loads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    convert(speaker(tmp_path / "source.nemo"), tmp_path / "again.nemo", to="nemo")
    state = torch.load(io.BytesIO(unpack(tmp_path / "again.nemo")["model_weights.ckpt"]), weights_only=True)
    assert list(state) == [*TENSORS, "loss._extra_state"]
    for name, array in TENSORS.items():
        assert state[name].numpy().tobytes() == array.tobytes()
        assert tuple(state[name].shape) == array.shape
    assert state["loss._extra_state"] is None


def test_output_is_reproducible(tmp_path):
    source = speaker(tmp_path / "source.nemo")
    for name in ("a.nemo", "b.nemo"):
        convert(source, tmp_path / name, to="nemo")
    assert (tmp_path / "a.nemo").read_bytes() == (tmp_path / "b.nemo").read_bytes()
    for name in ("a", "b"):
        convert(SAMPLES / "rnnt.nemo", tmp_path / name, to="hf")
        convert(tmp_path / name, tmp_path / f"{name}-back.nemo", to="nemo")
    assert (tmp_path / "a-back.nemo").read_bytes() == (tmp_path / "b-back.nemo").read_bytes()


def test_an_unpacked_or_compressed_archive_is_read_like_a_plain_one(tmp_path):
    plain = SAMPLES / "rnnt.nemo"
    folder = tmp_path / "unpacked"
    for name, data in unpack(plain).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    squeezed = tmp_path / "gz.nemo"
    with tarfile.open(squeezed, "w:gz") as tar:
        tar.add(folder, arcname=".")
    written = {}
    for name, source in (("plain", plain), ("folder", folder), ("gz", squeezed)):
        convert(source, tmp_path / name, to="hf", verify=True)
        files = [p for p in (tmp_path / name).iterdir() if p.name != "nemoconv_manifest.json"]
        written[name] = {p.name: p.read_bytes() for p in files}
    assert written["plain"] == written["folder"] == written["gz"]


def test_a_dtype_can_be_asked_for(tmp_path):
    source = speaker(tmp_path / "source.nemo")
    convert(source, tmp_path / "half", to="safetensors", dtype="float16")
    with open_checkpoint(tmp_path / "half") as opened:
        kinds = {name: opened.spec(name).dtype.name for name in opened.keys()}  # noqa: SIM118
    assert kinds["encoder.{layer}.weight"] == "float16"
    assert kinds["counts"] == "int64"


def test_inspect_tells_what_is_inside(tmp_path):
    facts = inspect(speaker(tmp_path / "source.nemo"))
    assert facts["format"] == "nemo"
    assert facts["target"].endswith("EncDecSpeakerLabelModel")
    assert facts["writer"] == "NeMo 1.23.0"
    assert facts["sample rate"] == 16000
    assert facts["modules"] == {"encoder": "ConvASREncoder"}
    assert facts["tensors"] == len(TENSORS)
    assert "no counterpart in transformers" in facts["problem"]
    assert "safetensors" in facts["problem"]
    facts = inspect(SAMPLES / "hybrid_tdt_ctc.nemo")
    assert facts["architecture"] == "parakeet_tdt"
    assert facts["vocabulary"] == {"true": 61, "rows": 61}
    assert facts["tokenizer"] == ["tokenizer.model", "vocab.txt"]
    facts = inspect(SAMPLES / "ctc.nemo")
    assert facts["tensors"] == 96


def test_a_class_without_a_counterpart_is_refused_by_name(tmp_path):
    source = speaker(tmp_path / "source.nemo")
    for to in ("hf", "nemo2"):
        assert "EncDecSpeakerLabelModel" in refused(source, UnsupportedArchitecture, to=to)


def test_what_is_neither_tensor_nor_none_is_refused_by_name(tmp_path):
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2), "a": {"step": 3}, "names": ["x"]}, buffer)
    source = speaker(tmp_path / "source.nemo", **{"model_weights.ckpt": buffer.getvalue()})
    said = refused(source, UnsupportedError, to="safetensors")
    assert "a.step (int)" in said
    assert "names (list)" in said


def test_lightnings_wrapping_is_unwrapped_and_named(tmp_path):
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.arange(3.0)}, "epoch": 3}, buffer)
    source = speaker(tmp_path / "source.nemo", **{"model_weights.ckpt": buffer.getvalue()})
    convert(source, tmp_path / "folder", to="safetensors", verify=True)
    assert data_of(tmp_path / "folder") == {"w": numpy.arange(3, dtype=numpy.float32).tobytes()}


def test_a_folder_that_contradicts_itself_is_refused(tmp_path):
    convert(speaker(tmp_path / "source.nemo"), tmp_path / "folder", to="safetensors")
    for content in (b'["counts"]', b'["a", "a"]', b"{}", b"[1]"):
        (tmp_path / "folder" / "empty_entries.json").write_bytes(content)
        refused(tmp_path / "folder", CorruptCheckpoint, to="nemo")


# speech


@pytest.mark.parametrize("sample", ["ctc", "tdt", "rnnt", "canary"])
def test_there_and_back_and_there_is_the_same(tmp_path, sample):
    hf, back, again = tmp_path / "hf", tmp_path / "back.nemo", tmp_path / "again"
    convert(SAMPLES / f"{sample}.nemo", hf, to="hf", verify=True)
    convert(hf, back, to="nemo", verify=True)
    convert(back, again, to="hf", verify=True)
    ours, theirs = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in (hf, again))
    assert ours == theirs
    assert verify(SAMPLES / f"{sample}.nemo", again).equal
    assert verify(back).equal
    original, written = (
        plain_yaml.loads_mapping(unpack(path)["model_config.yaml"], "x")
        for path in (SAMPLES / f"{sample}.nemo", back)
    )
    for key in ("target", "optim", "spec_augment", "labels", "prompt_format", "sample_rate"):
        assert written.get(key) == original.get(key), key
    names = unpack(back)
    assert all(
        written["tokenizer"][key].removeprefix("nemo:") in names for key in ("model_path", "vocab_path")
    )
    for key in written["encoder"].keys() & original["encoder"].keys():
        assert written["encoder"][key] == original["encoder"][key], key


def test_a_hybrid_gives_the_head_that_is_asked_for(tmp_path):
    sample = SAMPLES / "hybrid_tdt_ctc.nemo"
    report = convert(sample, tmp_path / "first", to="hf")
    assert report.architecture == "parakeet_tdt"
    assert "2 tensors of the CTC head (choose it with --head) not converted" in report.notes
    assert convert(sample, tmp_path / "ctc", to="hf", head="ctc", verify=True).architecture == "parakeet_ctc"
    assert convert(sample, tmp_path / "t", to="hf", head="transducer").architecture == "parakeet_tdt"
    for name in ("first", "ctc"):
        assert verify(sample, tmp_path / name).equal
        assert verify(tmp_path / name, sample).equal
    convert(sample, tmp_path / "whole", to="safetensors", verify=True)
    assert len(data_of(tmp_path / "whole")) == 67
    with pytest.raises(UsageError, match="one head"):
        convert(SAMPLES / "ctc.nemo", tmp_path / "no", to="hf", head="ctc")


def test_layouts_and_padding_are_refused(tmp_path):
    convert(SAMPLES / "rnnt.nemo", tmp_path / "hf", to="hf")
    for options in ({"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}):
        with pytest.raises(LayoutError):
            convert(tmp_path / "hf", tmp_path / "no.nemo", to="nemo", **options)
    with pytest.raises(UsageError, match="padded"):
        convert(tmp_path / "hf", tmp_path / "no.nemo", to="nemo", make_vocab_size_divisible_by=8)
    with pytest.raises(UnsupportedFormat, match="NeMo 2"):
        convert(tmp_path / "hf", tmp_path / "no", to="nemo2")
    assert sorted(os.listdir(tmp_path)) == ["hf"]


@pytest.mark.parametrize(
    ("remove", "says"),
    [
        (["tokenizer.model", "tokenizer.json"], "tokenizer.model"),
        (["preprocessor_config.json"], "preprocessor_config.json"),
    ],
)
def test_a_directory_without_what_nemo_needs_is_refused(tmp_path, remove, says):
    convert(SAMPLES / "rnnt.nemo", tmp_path / "hf", to="hf")
    for name in remove:
        (tmp_path / "hf" / name).unlink()
    with pytest.raises(UnsupportedConfig, match=says):
        convert(tmp_path / "hf", tmp_path / "no.nemo", to="nemo")


def test_a_processor_as_transformers_5_saves_it_is_enough(tmp_path):
    convert(SAMPLES / "rnnt.nemo", tmp_path / "hf", to="hf")
    alone = (tmp_path / "hf" / "preprocessor_config.json").read_text()
    (tmp_path / "hf" / "preprocessor_config.json").unlink()
    (tmp_path / "hf" / "processor_config.json").write_text(f'{{"feature_extractor": {alone}}}')
    for name in ("vocab.txt", "nemo_config.yaml"):
        (tmp_path / "hf" / name).unlink()
    convert(tmp_path / "hf", tmp_path / "back.nemo", to="nemo", verify=True)


# what is refused


def test_weights_that_run_code_are_refused(tmp_path):
    for number, pickle in enumerate((hostile.call("os", "system"), hostile.popped_call(), hostile.inst())):
        for data in (pickle, hostile.archive(pickle)):
            path = tmp_path / str(number)
            path.mkdir(exist_ok=True)
            source = speaker(path / "evil.nemo", **{"model_weights.ckpt": data})
            for to in ("safetensors", "nemo", "hf"):
                with pytest.raises((UnsafeCheckpoint, UnsupportedFormat, CorruptCheckpoint)):
                    convert(source, path / "out", to=to)
            assert os.listdir(path) == ["evil.nemo"]
    message = refused(
        speaker(
            tmp_path / "evil.nemo", **{"model_weights.ckpt": hostile.archive(hostile.call("os", "system"))}
        ),
        UnsafeCheckpoint,
        to="safetensors",
    )
    assert "os" in message
    assert "system" in message


def test_a_config_with_a_tag_is_refused(tmp_path):
    yaml = b"target: !!python/object/apply:os.system [echo]\n"
    source = speaker(tmp_path / "evil.nemo", **{"model_config.yaml": yaml})
    refused(source, UnsafeCheckpoint, to="safetensors")


@pytest.mark.parametrize("name", ["../escape", "/abs", "a/../../b"])
def test_members_outside_are_refused(tmp_path, name):
    source = tmp_path / "evil.nemo"
    with tarfile.open(source, "w") as tar:
        for member, data in (("model_config.yaml", plain_yaml.dumps(SPEAKER)), (name, b"x")):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    refused(source, UnsafeCheckpoint, to="safetensors")


def test_a_tokenizer_outside_is_refused(tmp_path):
    def outside(yaml):
        yaml["tokenizer"]["model_path"] = "nemo:../../etc/passwd"

    refused(changed(tmp_path, config=outside), UnsafeCheckpoint)


def test_a_path_of_the_writers_machine_is_not_looked_at(tmp_path):
    secret = tmp_path / "secret.model"
    secret.write_bytes(b"secret")

    def elsewhere(yaml):
        yaml["tokenizer"]["model_path"] = str(secret)

    assert "without a tokenizer.model" in refused(changed(tmp_path, config=elsewhere), UnsupportedConfig)


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x0a\x09\x0a\x05<unk>\x18"])
def test_a_broken_tokenizer_is_refused(tmp_path, data):
    name = next(n for n in unpack(SAMPLES / "ctc.nemo") if n.endswith("tokenizer.model"))
    refused(changed(tmp_path, files={name: data}), CorruptCheckpoint)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    name = next(n for n in unpack(SAMPLES / "ctc.nemo") if n.endswith("tokenizer.model"))
    other = next(d for n, d in unpack(SAMPLES / "canary.nemo").items() if n.endswith("tokenizer.model"))
    assert "80 pieces" in refused(changed(tmp_path, files={name: other}), UnsupportedConfig)


def test_other_filters_than_the_config_describes_are_refused(tmp_path):
    def another(arrays):
        arrays["preprocessor.featurizer.fb"] = arrays["preprocessor.featurizer.fb"] * 1.01

    assert "featurizer.fb" in refused(changed(tmp_path, tensors=another), UnsupportedConfig)


def test_missing_foreign_and_misshapen_tensors_are_named(tmp_path):
    def missing(arrays):
        del arrays["encoder.layers.1.norm_out.bias"]

    def foreign(arrays):
        arrays["adapter.weight"] = numpy.zeros(3, numpy.float32)

    def misshapen(arrays):
        arrays["decoder.decoder_layers.0.bias"] = numpy.zeros(63, numpy.float32)

    assert "norm_out.bias" in refused(changed(tmp_path, tensors=missing), MappingError)
    assert "adapter.weight" in refused(changed(tmp_path, tensors=foreign), MappingError)
    assert "[63]" in refused(changed(tmp_path, tensors=misshapen), CorruptCheckpoint)


def test_a_config_of_a_billion_layers_is_refused_at_once(tmp_path):
    def huge(yaml):
        yaml["encoder"]["n_layers"] = 10**9

    assert "out of range" in refused(changed(tmp_path, config=huge), UnsupportedConfig)


def test_untied_canary_weights_are_refused(tmp_path):
    def untie(arrays):
        arrays["log_softmax.mlp.layer0.weight"] = arrays["log_softmax.mlp.layer0.weight"] + 1

    assert "ties" in refused(changed(tmp_path, "canary", tensors=untie), MappingError)


def test_an_archive_without_weights_says_what_it_has(tmp_path):
    source = pack(tmp_path / "x.nemo", {"model_config.yaml": plain_yaml.dumps(SPEAKER), "other.ckpt": b""})
    assert "other.ckpt" in refused(source, UnsupportedFormat, to="safetensors")


def test_damaged_archives_are_errors_or_whole(tmp_path):
    data = (SAMPLES / "rnnt.nemo").read_bytes()
    generator = random.Random(0)
    refusals = 0
    for number in range(40):
        broken = bytearray(data)
        for _ in range(generator.choice((1, 1, 4))):
            broken[generator.randrange(len(broken))] ^= 1 << generator.randrange(8)
        source = tmp_path / f"{number}.nemo"
        source.write_bytes(broken[: generator.randrange(len(broken))] if number % 5 == 0 else broken)
        try:
            convert(source, tmp_path / str(number), to="hf")
        except NemoconvError as error:
            refusals += 1
            assert "\n" not in str(error)
            assert not (tmp_path / str(number)).exists()
    assert refusals >= 8


def test_a_directory_as_transformers_saves_it_is_enough(tmp_path):
    """No tokenizer.model, no vocab.txt, no settings of NeMo's: those of the hub's own repositories."""
    for sample in ("rnnt", "ctc", "canary"):
        hf, back, again = tmp_path / sample, tmp_path / f"{sample}.nemo", tmp_path / f"{sample}-again"
        convert(SAMPLES / f"{sample}.nemo", hf, to="hf")
        for name in ("tokenizer.model", "vocab.txt", "nemo_config.yaml", "nemoconv_manifest.json"):
            (hf / name).unlink()
        convert(hf, back, to="nemo", verify=True)
        convert(back, again, to="hf", verify=True)
        for name in ("model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"):
            assert (hf / name).read_bytes() == (again / name).read_bytes(), name


def test_half_precision_archives_are_read_and_written(tmp_path):
    """NeMo saves the window and the filters in the model's precision; it casts what it loads."""
    ml_dtypes = pytest.importorskip("ml_dtypes")

    def halve(arrays):
        for name, array in arrays.items():
            if array.dtype == numpy.float32:
                arrays[name] = array.astype(ml_dtypes.bfloat16)

    source = changed(tmp_path, "rnnt", tensors=halve)
    convert(source, tmp_path / "hf", to="hf", verify=True)
    convert(tmp_path / "hf", tmp_path / "back.nemo", to="nemo", verify=True)
    with open_checkpoint(tmp_path / "back.nemo") as opened:
        assert opened.spec("joint.enc.weight").dtype.name == "bfloat16"
        assert opened.spec("preprocessor.featurizer.fb").dtype.name == "float32"
    assert verify(source, tmp_path / "hf").equal
