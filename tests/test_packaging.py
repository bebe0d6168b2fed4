"""What is shipped is what is here, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import nemoconv

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CODE = ("converters", "formats", "live", "mappings", "resharding", "stores", "tensors", "ui")


def test_every_folder_of_code_is_in_the_package_list() -> None:
    found = {"nemoconv"} | {
        "nemoconv." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in CODE
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(found) == sorted(PROJECT["tool"]["setuptools"]["packages"])
    for folder in CODE:  # no code in a folder that is not a package
        assert {p.parent for p in (ROOT / folder).rglob("*.py")} == {
            p.parent for p in (ROOT / folder).rglob("__init__.py")
        }


def test_nothing_stray_lies_at_the_root() -> None:
    names = {path.name for path in ROOT.glob("*.py")}
    assert names == {
        "__init__.py", "__main__.py", "built_in.py", "cli.py", "entry_points.py", "errors.py",
        "extras.py", "plugin.py", "testing.py", "version.py",
    }  # fmt: skip


def test_versions_agree() -> None:
    assert PROJECT["project"]["version"] == nemoconv.__version__
    assert f"## {nemoconv.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    source.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if name.endswith((".py", ".toml", ".md", ".json", "py.typed", "LICENSE")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    quiet = ["-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "wheel", *quiet, str(source)]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    expected = {f"nemoconv/{path.name}" for path in ROOT.glob("*.py")} | {"nemoconv/py.typed"}
    expected.add("nemoconv/mappings/hf/keys_read.json")
    for folder in CODE:
        for kind in ("*.py", "*.json"):
            expected |= {f"nemoconv/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob(kind)}
    assert set(names) == expected
