"""NeMo 1 archives that were made to do harm, or were cut short."""

from __future__ import annotations

import io
import tarfile

import legacy_nemo as legacy
import pytest
import tiny

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.convert import convert
from nemoconv.errors import CorruptCheckpoint, NemoconvError, UnsafeCheckpoint

pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"!!python/object/apply:os.system [id]", UnsafeCheckpoint, "tag"),
        (
            b"a: &a [x, x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: [" + b"*b, " * 100 + b"]",
            UnsafeCheckpoint,
            "aliases",
        ),
        (b"- a\n- b\n", CorruptCheckpoint, "not a mapping"),
        (b"\xff\xfe", CorruptCheckpoint, "UTF-8"),
        (b"a: 1\na: 2\n", CorruptCheckpoint, "twice"),
    ],
)
def test_hostile_yaml(tmp_path, data, error, says):
    files = {"model_config.yaml": data, "model_weights.ckpt": b"PK"}
    with pytest.raises(error) as caught:
        convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "hf", to="hf")
    assert says in str(caught.value)
    assert not (tmp_path / "hf").exists()


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w')",))


@pytest.mark.parametrize("new", [True, False], ids=["zip", "older"])
def test_a_state_dict_that_would_run_code(tmp_path, new):
    ranks = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG)
    ranks[0, 0]["model.decoder.layers.0.mlp.linear_fc1._extra_state"] = _Runs(tmp_path / "ran")
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(ranks, legacy.yaml_of(legacy.CONFIG), new=new))
    for act in (
        lambda: convert(source, tmp_path / "hf", to="hf"),
        lambda: inspect(source),
        lambda: verify(source),
    ):
        with pytest.raises(UnsafeCheckpoint, match="exec"):
            act()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nemo"]


@pytest.mark.parametrize("kind", ["symlink", "hard link", "absolute", "parent", "twice", "device"])
def test_hostile_archives(tmp_path, kind):
    files = legacy.members(
        legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG), legacy.yaml_of(legacy.CONFIG)
    )
    source = legacy.pack(tmp_path / "x.nemo", files)
    with tarfile.open(source, "a") as archive:
        info = tarfile.TarInfo("./more")
        if kind in ("symlink", "hard link"):
            info.type = tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE
            info.linkname = "/etc/passwd"
        elif kind == "device":
            info.type = tarfile.CHRTYPE
        else:
            info.name = {"absolute": "/tmp/evil", "parent": "./../evil", "twice": "./model_config.yaml"}[kind]
        archive.addfile(info, io.BytesIO(b""))
    with pytest.raises(UnsafeCheckpoint):
        convert(source, tmp_path / "hf", to="hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nemo"]


def test_every_cut_is_noticed(tmp_path):
    source, _ = legacy.build(tmp_path / "x.nemo", tp=2)
    data = source.read_bytes()
    for size in [*range(0, 4096, 512), *range(4096, len(data) - 10240, len(data) // 20)]:
        cut = tmp_path / "cut.nemo"
        cut.write_bytes(data[:size])
        with pytest.raises(NemoconvError):
            convert(cut, tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()
