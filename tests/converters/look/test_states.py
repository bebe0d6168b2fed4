"""verify calls nothing complete that it did not open, and says what it did not."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import tiny

from nemoconv.converters.look.verify import Health, verify
from nemoconv.converters.run.convert import convert
from nemoconv.errors import CorruptCheckpoint


@pytest.fixture
def nemo(tmp_path: Path) -> Path:
    """A NeMo 2 directory as NeMo leaves one: with nothing that has checksums of all files."""
    tiny.write(tmp_path / "hf", {**tiny.CONFIG, "num_attention_heads": 4, "num_key_value_heads": 2})
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    (tmp_path / "nemo" / "nemoconv_manifest.json").unlink()
    return tmp_path / "nemo"


def health(path: Path) -> Health:
    found = verify(path)
    assert isinstance(found, Health)
    return found


@pytest.mark.parametrize("nbytes", [0, 1, 100, -1])
def test_a_state_that_is_cut_short(nemo: Path, nbytes: int) -> None:
    assert health(nemo).unopened == ()
    common = nemo / "weights" / "common.pt"
    common.write_bytes(common.read_bytes()[:nbytes])
    with pytest.raises(CorruptCheckpoint, match=r"common\.pt"):
        verify(nemo)


def test_a_state_whose_bytes_changed(nemo: Path) -> None:
    common = nemo / "weights" / "common.pt"
    data = bytearray(common.read_bytes())
    data[data.index(b"data.pkl") + 70] ^= 1
    common.write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match=r"common\.pt"):
        verify(nemo)


def test_what_cannot_be_opened_is_named(nemo: Path, tmp_path: Path) -> None:
    (nemo / "weights" / "rng.pt").write_bytes(pickle.dumps({"a": 1}))
    (nemo / "weights" / "__9_0.distcp").write_bytes(b"x" * 100)
    assert health(nemo).unopened == ("weights/__9_0.distcp", "weights/rng.pt")
    assert "; not opened: weights/__9_0.distcp, weights/rng.pt" in health(nemo).describe()
    shutil.copy(nemo / "weights" / "rng.pt", tmp_path / "hf" / "pytorch_model.bin")
    assert health(tmp_path / "hf").unopened == ("pytorch_model.bin",)
