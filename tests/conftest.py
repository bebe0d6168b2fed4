"""What holds for every test: which tests the fast run has, and that a run leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
#: what the extra ``test`` has and ``dev`` has not, as it is imported. In a fast run nothing of it can be
HEAVY = frozenset(
    """torch accelerate transformers tokenizers sentencepiece psutil megatron peft einops gguf onnxruntime
    onnxruntime_genai onnx_asr sherpa_onnx kaldi_native_fbank""".split()
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy are imported: tests are many and small
Report = Any  # pytest.TestReport or pytest.CollectReport, with what the hooks below add
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast",
        action="store_true",
        help="run what needs neither torch and its like nor a GPU nor much time; other skips are failures",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core for all tests; none beside this where paths are given."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    return min(len(os.sched_getaffinity(0)), 8)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fast"):
        for name in HEAVY:
            sys.modules[name] = None  # type: ignore[assignment]  # importing it fails, installed or not


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """In a fast run nobody looks at the tests with other programs: their helpers import those."""
    return True if config.getoption("--fast") and collection_path == ROOT / "tests" / "clients" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "clients" in item.path.parts:
            item.add_marker("clients")
    if config.getoption("--fast"):
        left_out = [item for item in items if _left_out(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not _left_out(item)]


def _left_out(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("slow", "cuda", "clients"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("cuda")
    if mark and _gpus() < (wanted := mark.kwargs.get("devices", 1)):
        pytest.skip(f"needs {wanted} CUDA device{'s' * (wanted > 1)}")


def _gpus() -> int:
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


# --- the fast run: a test that needs what is not there says so by importorskip; no other skip is silent -----


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Report, Report]:
    report = yield
    if collector.config.getoption("--fast") and report.outcome == "skipped":
        report.outcome = "passed" if _needs_heavy(report) else "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Report, Report]:
    report = yield
    if item.config.getoption("--fast") and report.outcome == "skipped":
        report.left_out = _needs_heavy(report)
        if not (report.left_out or hasattr(report, "wasxfail") or _allowed(report)):
            report.outcome = "failed"
    return report


def pytest_report_teststatus(report: Report) -> tuple[str, str, str] | None:
    return ("left out", "", "") if getattr(report, "left_out", False) else None


def _needs_heavy(report: Report) -> bool:
    found = re.search(r"could not import '(\w+)", str(report.longrepr))
    return found is not None and found[1] in HEAVY


def _allowed(report: Report) -> bool:
    """What depends on the user and the kernel, not on what is installed."""
    return "root may read everything" in str(report.longrepr) or "strace" in str(report.longrepr)


# --- nothing is left behind ----------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After the last test and all other fixtures: no process is left, and no file but in pytest's folders.

    Orphans are seen too, since they become children of this process. What tests and their processes make
    by ``tempfile`` lies in one folder, empty in the end.
    """
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    before = _files()
    temporary = tmp_path_factory.mktemp("tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", None)
        # torch makes this folder when it is imported, and keeps it
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield
    processes = _processes_left()
    kept = {temporary / ".ses"}  # a number that onnxruntime makes up and keeps
    files = sorted(str(path) for path in (_files() - before) | set(temporary.iterdir()) - kept)
    assert not processes, f"left running (and ended now): {processes}"
    assert not files, f"left behind: {files}"


def _files() -> set[Path]:
    """All files of the source tree but those of git and what tools keep for their next run.

    None unless ``CI`` is set: elsewhere somebody may be working in it.
    """
    found = set()
    for folder, folders, files in os.walk(ROOT) if os.environ.get("CI") else ():
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        found |= {Path(folder, name) for name in files}
    return found


def _processes_left(patience: float = 5) -> list[str]:
    """The commands of processes that have not ended by themselves a little later. They are killed."""
    deadline = time.monotonic() + patience
    while (left := _children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for number in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    return list(left.values())


def _children() -> dict[int, str]:
    """Number and command of each process that descends from this one and runs."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(") ")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent)
                commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")[:200]
    mine = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return {number: commands[number] for number in mine - {os.getpid()}}
