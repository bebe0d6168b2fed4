"""``mappings/nemo2/classes.json`` is what the real NeMo says. See real_nemo/README.md.

The script reads off the NeMo that it finds what is asked of that version: 2.5.3 all but the modules that it has
not, 2.7.3 only those.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nemoconv.mappings.nemo2 import classes

PYTHON = os.environ.get("NEMOCONV_NEMO_PYTHON")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="NEMOCONV_NEMO_PYTHON does not name a Python that has NeMo (real_nemo/README.md)"
)
SCRIPT = Path(__file__).parents[2] / "scripts" / "read_nemo2_classes.py"
OURS = Path(classes.__file__).with_name("classes.json")


def read_again(file: Path) -> None:
    """Let the script write the file anew."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [str(PYTHON), "-W", "ignore", str(SCRIPT), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_script_writes_the_file_that_is_here(tmp_path: Path) -> None:
    again = tmp_path / "classes.json"
    shutil.copy(OURS, again)
    read_again(again)
    assert again.read_text() == OURS.read_text()


def test_a_wrong_default_does_not_pass(tmp_path: Path) -> None:
    """The control: what the file had before is not what is compared."""
    again = tmp_path / "classes.json"
    wrong = OURS.read_text().replace('"num_layers": 126', '"num_layers": 125')
    wrong = wrong.replace('"moe_router_topk": 4', '"moe_router_topk": 5')  # of 2.7.3's gpt-oss
    again.write_text(wrong)
    read_again(again)
    assert again.read_text() != wrong
