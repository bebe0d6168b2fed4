"""A third-party package, really installed, adds a format and an architecture through entry points."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemoconv.mappings import samples

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow  # pip installs a package

SUITE = """
import json

import pytest

from nemoconv import convert
from nemoconv.mappings import samples, table_for
from nemoconv.testing import ConverterTests, MappingTests, data_of


class TestRaw(ConverterTests):
    format = "raw"


class TestPelican(MappingTests):
    config = {**samples.LLAMA, "model_type": "pelican", "architectures": ["PelicanForCausalLM"]}

    @pytest.mark.parametrize("to", ["onnx", "nemo"])
    def test_it_has_what_a_built_in_one_has(self, tmp_path, to):
        samples.build(tmp_path / "source", self.config)
        convert(tmp_path / "source", tmp_path / "target", to=to)
        convert(tmp_path / "target", tmp_path / "back", to="hf", verify=True)
        assert data_of(tmp_path / "back") == data_of(tmp_path / "source")
        assert table_for(json.loads((tmp_path / "back/config.json").read_text()), "back").architecture == "pelican"
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(HERE / "plugin_package", folder / "package")
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", *isolation,
         "--target", str(folder / "site"), str(folder / "package")],
        check=True, timeout=300,
    )  # fmt: skip
    path = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def test_supported_lists_it_with_its_origin(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "nemoconv", "supported"]
    out = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, cwd="/").stdout
    assert "  raw      read, write  one file per tensor [nemoconv-example-plugin]" in out.splitlines()
    assert "  pelican: PelicanForCausalLM [nemoconv-example-plugin]" in out.splitlines()


def test_it_passes_the_inherited_tests(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "test_plugin.py").write_text(SUITE)
    kept = ["-p", "no:cacheprovider", "--basetemp", str(tmp_path / "temporary")]
    command = [sys.executable, "-m", "pytest", "-q", *kept, str(tmp_path)]
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )
    assert result.returncode == 0, result.stdout
    assert "20 passed" in result.stdout


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemoconv", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", timeout=120)


def test_its_option_is_one_like_any_other(environment: dict[str, str], tmp_path: Path) -> None:
    samples.build(tmp_path / "hf")
    result = run(environment, "convert", "--help")
    assert (
        "Writing raw:\n  --suffix SUFFIX  What the files of tensors are called after the dot."
        in result.stdout
    )
    result = run(
        environment, "convert", tmp_path / "hf", tmp_path / "out", "--to", "RAW", "--suffix", "dat", "-q"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "out" / "0.dat").exists()
    result = run(environment, "hf2nemo2", tmp_path / "hf", tmp_path / "no", "--suffix", "dat")
    assert result.stderr == "error: suffix means nothing for hf -> nemo2; it is an option of raw\n"
    assert result.returncode == 2
    assert "--suffix" not in run(environment, "hf2nemo2", "--help").stdout


def test_it_imports_nothing_but_the_facade() -> None:
    code = (HERE / "plugin_package" / "nemoconv_example_plugin.py").read_text()
    assert set(re.findall(r"^(?:from|import) (nemoconv[\w.]*)", code, re.MULTILINE)) == {"nemoconv.plugin"}
