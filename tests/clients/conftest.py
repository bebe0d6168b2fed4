from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import models
from .models import Variant
from .worlds import Nursery, World

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="session", autouse=True)
def _ranks_have_an_end() -> Iterator[None]:
    yield
    Nursery.close()


@pytest.fixture(scope="session")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], Path]:
    """Hugging Face directories of variants, each built once. Not to be changed."""
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("hf")
    built: dict[str, Path] = {}

    def directory(v: Variant) -> Path:
        key = repr(v)
        if key not in built:
            built[key] = models.build(root / f"{len(built)}-{v.name}", v)
        return built[key]

    return directory


@pytest.fixture(scope="session")
def exported_speech(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Folders of ONNX graphs and transformers' models of cases of :mod:`speech_models`, each built once.
    The model that ``CASE`` was made from is ``CASE.hf`` beside it. Not to be changed."""
    from nemoconv.converters.run.convert import convert

    from . import speech_models

    root = tmp_path_factory.mktemp("speech")
    built: dict[str, tuple[Path, Any]] = {}

    def of(case: str) -> tuple[Path, Any]:
        if case not in built:
            source = speech_models.build(root / f"{case}.hf", case)
            convert(source, root / case, to="onnx", verify=True)
            built[case] = root / case, speech_models.load(source, case)
        return built[case]

    return of


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Processes for Megatron jobs."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    ranks = World(tmp_path_factory.mktemp("world") / "stderr")
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def gpt_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Processes for Megatron jobs with the architectures of :mod:`megatron_gpt_rank`."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    script = Path(__file__).with_name("megatron_gpt_rank.py")
    ranks = World(tmp_path_factory.mktemp("gpt_world") / "stderr", script)
    yield ranks
    ranks.close()
