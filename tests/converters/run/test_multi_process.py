"""Several processes write one checkpoint: the bytes of one process, or nothing; and a run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner

from nemoconv.cli import main
from nemoconv.converters.registry import find_format, open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.multi_process import Ranks, _part, _shares, ranks_of
from nemoconv.converters.run.plan import Wish, prepare
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import UsageError
from nemoconv.stores.output import OutputDirectory
from nemoconv.tensors.layout import Layout

LLAMA = {**tiny.CONFIG, "num_hidden_layers": 4, "num_key_value_heads": 4}
#: an end in the middle: after so many files of its own, the process is gone, without a word or with one
DIES = """
import os, sys
from nemoconv.converters.run import multi_process
after, how = int(sys.argv.pop(1)), sys.argv.pop(1)
real = multi_process.RankProcess._finish
def finish(self, *arguments):
    global after
    real(self, *arguments)
    after -= 1
    if after == 0:
        if how == "silent":
            os._exit(9)
        raise OSError(5, "out of luck")
multi_process.RankProcess._finish = finish
from nemoconv.cli import main
main()
"""
PLAIN = "from nemoconv.cli import main; main()"


def start(rank: int, world: int, *arguments: object, script: str = PLAIN, dies: tuple[str, ...] = ()):
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "NEMOCONV_RANK_TIMEOUT": "4"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *dies, *map(str, arguments), "--ranks"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes) -> tuple[list[int], list[str], list[str]]:
    ended = [process.communicate(timeout=60) for process in processes]
    return [p.returncode for p in processes], [out for out, _ in ended], [error for _, error in ended]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "model"
    tiny.write(folder, LLAMA)
    return folder


def test_ranks_write_what_one_process_writes(hf: Path, tmp_path: Path) -> None:
    world = 4
    convert(hf, tmp_path / "alone", to="nemo2", tensor_parallel_size=2, pipeline_parallel_size=2)
    arguments = ("convert", hf, tmp_path / "out", "--to", "nemo2", "--tp", 2, "--pp", 2, "--json", "--verify")
    codes, outs, errors = finish([start(rank, world, *arguments) for rank in range(world)])
    assert codes == [0] * world, errors
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    assert json.loads(outs[0])["verified"] is True
    assert outs[1:] == [""] * (world - 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "out"]


@pytest.mark.parametrize("to", ["nemo2", "hf"])
@pytest.mark.parametrize("world", [2, 4])
def test_no_byte_is_read_by_two_ranks(hf: Path, tmp_path: Path, to: str, world: int) -> None:
    """What is cut by rows or columns is read by the rank that writes it; together they read all, once."""
    convert(hf, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    source = hf if to == "nemo2" else tmp_path / "nemo"
    wish = Wish(Layout(4)) if to == "nemo2" else Wish(options={"max_shard_nbytes": 4000})
    with open_checkpoint(source) as opened:
        conversion = prepare(opened, OutputDirectory(tmp_path / "out"), find_format(to), wish)
        shares = _shares(conversion, world)
        parts = [_part(conversion.plan, files) for files in shares]
        assert all(part.jobs for part in parts)
        assert sum(part.write_nbytes for part in parts) == conversion.plan.write_nbytes
        assert sum(part.read_nbytes for part in parts) == conversion.plan.read_nbytes
        assert max(part.read_nbytes for part in parts) < 1.4 * conversion.plan.read_nbytes / world


def test_ranks_reshard(hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "nemo", to="nemo2")
    reshard(tmp_path / "nemo", tmp_path / "alone", tensor_parallel_size=4)
    arguments = ("reshard", tmp_path / "nemo", tmp_path / "out", "--tp", 4)
    codes, _, errors = finish([start(rank, 2, *arguments) for rank in range(2)])
    assert codes == [0, 0], errors
    assert files(tmp_path / "out") == files(tmp_path / "alone")


def test_more_ranks_than_files(hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    arguments = ("convert", tmp_path / "nemo", tmp_path / "out", "--to", "hf")
    codes, _, errors = finish([start(rank, 2, *arguments) for rank in range(2)])
    assert codes == [0, 0], errors
    assert tiny.load(tmp_path / "out").keys() == tiny.load(hf).keys()


@pytest.mark.slow  # waits for a rank
@pytest.mark.parametrize(
    ("how", "says", "again"), [("silent", "no sign of life", 3), ("loud", "rank 1 failed: ", 2)]
)
def test_a_rank_that_dies_fails_the_run_and_resume_goes_on(
    hf: Path, tmp_path: Path, how: str, says: str, again: int
) -> None:
    arguments = ("convert", hf, tmp_path / "out", "--to", "nemo2", "--tp", 4)
    dying = start(1, 2, *arguments, script=DIES, dies=("1", how))
    codes, _, errors = finish([start(0, 2, *arguments), dying])
    assert codes[0] == 6, errors
    assert codes[1] != 0
    assert says in errors[0]
    assert "--resume" in errors[0]
    assert not (tmp_path / "out").exists()
    stage = tmp_path / ".out.incomplete" / "out" / "weights"
    finished = {p.name: p.stat().st_ino for p in stage.glob("*.distcp")}
    records = len(list((tmp_path / ".out.ranks").glob("file-*.json")))
    assert 1 <= records < 4
    codes, _, errors = finish([start(rank, again, *arguments, "--resume") for rank in range(again)])
    assert codes == [0] * again, errors
    convert(hf, tmp_path / "alone", to="nemo2", tensor_parallel_size=4)
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    kept = [
        name for name, inode in finished.items() if (tmp_path / "out/weights" / name).stat().st_ino == inode
    ]
    assert len(kept) >= records
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "out"]


def test_resume_checks_what_it_finds(hf: Path, tmp_path: Path) -> None:
    """A finished file whose bytes changed since is written again."""
    arguments = ("convert", hf, tmp_path / "out", "--to", "nemo2", "--tp", 4)
    finish([start(0, 2, *arguments), start(1, 2, *arguments, script=DIES, dies=("2", "loud"))])
    for path in (tmp_path / ".out.incomplete/out/weights").glob("*.distcp"):
        with open(path, "r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"\xa5" * 64)
    codes, _, errors = finish([start(rank, 2, *arguments, "--resume") for rank in range(2)])
    assert codes == [0, 0], errors
    convert(hf, tmp_path / "alone", to="nemo2", tensor_parallel_size=4)
    assert files(tmp_path / "out") == files(tmp_path / "alone")


def test_ranks_with_other_arguments_do_not_mix(hf: Path, tmp_path: Path) -> None:
    arguments = ("convert", hf, tmp_path / "out", "--to", "nemo2")
    codes, _, errors = finish([start(0, 2, *arguments), start(1, 2, *arguments, "--dtype", "float32")])
    assert codes == [5, 5]
    assert all("rank 1 plans another conversion than rank 0" in error for error in errors)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # waits for a rank
def test_a_rank_that_never_comes(hf: Path, tmp_path: Path) -> None:
    codes, _, errors = finish([start(0, 2, "convert", hf, tmp_path / "out", "--to", "nemo2")])
    assert codes == [6]
    assert "waited 4 s for rank 1 to begin" in errors[0]


def test_what_launchers_say() -> None:
    assert ranks_of({}) is None
    assert ranks_of({"RANK": "3", "WORLD_SIZE": "4"}) == Ranks(3, 4)
    with pytest.raises(UsageError, match="RANK='4' WORLD_SIZE='4'"):
        ranks_of({"RANK": "4", "WORLD_SIZE": "4"})


@pytest.mark.parametrize("said", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_that_is_none(hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "NEMOCONV_RANK_TIMEOUT": said}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"NEMOCONV_RANK_TIMEOUT='{said}' is no number of seconds"):
        convert(hf, tmp_path / "out", to="nemo2", ranks=True)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_to_a_rank_keeps_what_is_finished(hf: Path, tmp_path: Path) -> None:
    """As torchrun ends the others when one dies."""
    waiting = start(0, 2, "convert", hf, tmp_path / "out", "--to", "nemo2")
    while not (tmp_path / ".out.ranks").exists():
        assert waiting.poll() is None
        time.sleep(0.02)
    waiting.terminate()
    codes, _, errors = finish([waiting])
    assert codes == [128 + signal.SIGTERM]
    assert errors == ["stopped by SIGTERM; what is finished stays for --resume\n"]
    assert not (tmp_path / "out").exists()


def test_resume_is_for_several_ranks(hf: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="add --ranks and start it with torchrun"):
        convert(hf, tmp_path / "out", to="nemo2", resume=True)
    with pytest.raises(UsageError, match="RANK and WORLD_SIZE are not set"):
        convert(hf, tmp_path / "out", to="nemo2", ranks=True)


@pytest.mark.parametrize("rank", ["0", "3", "many"])
def test_what_a_launcher_says_means_nothing_by_itself(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    """As in a training job, or in a pod whose operator sets RANK for everything that runs in it."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "8")
    convert(hf, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    reshard(tmp_path / "nemo", tmp_path / "again", tensor_parallel_size=1)
    for arguments in (
        ["inspect", str(hf), "--json"],
        ["verify", str(tmp_path / "nemo"), "--json"],
        ["supported", "--json"],
        ["convert", str(hf), str(tmp_path / "out"), "--to", "nemo2", "--json"],
        ["demo", str(tmp_path / "demo"), "--json"],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)
        said = CliRunner().invoke(main, [each for each in arguments if each != "--json"][:2])
        assert said.output


def test_ranks_compare_what_each_has_read_with_the_manifest(hf: Path, tmp_path: Path) -> None:
    """A tensor of which every rank reads a part is compared all the same, and a flipped bit ends all ranks."""
    convert(hf, tmp_path / "nemo", to="nemo2")
    convert(tmp_path / "nemo", tmp_path / "source", to="hf")
    arguments = ("convert", tmp_path / "source", tmp_path / "out", "--to", "nemo2", "--tp", 4)
    codes, _, errors = finish([start(rank, 2, *arguments) for rank in range(2)])
    assert codes == [0, 0], errors
    weights = tmp_path / "source" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    for place in (len(data) // 3, len(data) - 1):
        data[place] ^= 1
        weights.write_bytes(data)
        codes, _, errors = finish(
            [start(rank, 2, *arguments[:2], tmp_path / "bad", *arguments[3:]) for rank in range(2)]
        )
        assert all(codes), errors
        assert any("stands in nemoconv_manifest.json" in error for error in errors)
        assert not (tmp_path / "bad").exists()
        data[place] ^= 1
