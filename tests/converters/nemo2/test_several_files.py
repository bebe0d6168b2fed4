"""A rank whose tensors are many begins a new .distcp file; every reader takes any number of them."""

import pytest
import tiny

from nemoconv import convert, reshard, verify
from nemoconv.converters.nemo2 import writer


def files(folder):
    """What lies in a folder, without the manifest, which names the source's bytes, too."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "nemoconv_manifest.json"}


@pytest.fixture
def model(tmp_path):
    tiny.write(tmp_path / "model", shards=2)
    return tmp_path / "model"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(writer, "FILE_NBYTES", 6000)


def distcp(folder):
    return sorted(path.name for path in (folder / "weights").glob("*.distcp"))


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_the_files_of_a_rank_follow_from_the_sizes_alone(model, small, tmp_path, workers):
    convert(model, tmp_path / "out", to="nemo2", tensor_parallel_size=2, workers=workers)
    names = distcp(tmp_path / "out")
    assert {name.split("_")[2] for name in names} == {"0", "1"}  # ranks
    for rank in (0, 1):
        mine = [name for name in names if name.startswith(f"__{rank}_")]
        assert len(mine) > 2
        assert set(mine) == {f"__{rank}_{number}.distcp" for number in range(len(mine))}
    convert(model, tmp_path / "again", to="nemo2", tensor_parallel_size=2, workers=2)
    assert files(tmp_path / "again") == files(tmp_path / "out")


def test_a_small_model_is_one_file_a_rank(model, tmp_path):
    convert(model, tmp_path / "out", to="nemo2", tensor_parallel_size=2)
    assert distcp(tmp_path / "out") == ["__0_0.distcp", "__1_0.distcp"]


def test_several_files_are_read_back(model, small, tmp_path):
    report = convert(model, tmp_path / "out", to="nemo2", verify=True)
    assert report.verified
    assert report.files == len(distcp(tmp_path / "out"))
    verify(tmp_path / "out")
    convert(tmp_path / "out", tmp_path / "back", to="hf")
    convert(model, tmp_path / "same", to="hf")
    assert files(tmp_path / "back") == files(tmp_path / "same")


def test_a_reshard_writes_several_files_too(model, small, tmp_path):
    convert(model, tmp_path / "out", to="nemo2")
    reshard(tmp_path / "out", tmp_path / "cut", pipeline_parallel_size=2)
    assert len(distcp(tmp_path / "cut")) > 4
    convert(model, tmp_path / "direct", to="nemo2", pipeline_parallel_size=2)
    back = [tmp_path / "back", tmp_path / "direct back"]
    for source, target in zip((tmp_path / "cut", tmp_path / "direct"), back, strict=True):
        convert(source, target, to="hf")
    assert files(back[0]) == files(back[1])


def test_the_table_of_ranks_counts_all_files_of_a_rank(model, tmp_path, monkeypatch):
    whole = convert(model, tmp_path / "out", to="nemo2", tensor_parallel_size=2, dry_run=True)
    monkeypatch.setattr(writer, "FILE_NBYTES", 6000)
    many = convert(model, tmp_path / "out", to="nemo2", tensor_parallel_size=2, dry_run=True)
    assert whole.rank_table
    assert many.rank_table == whole.rank_table
