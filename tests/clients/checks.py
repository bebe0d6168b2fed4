"""What the proofs of an architecture have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemoconv.converters.run.convert import convert

from . import models
from .worlds import World

TOLERANCE = 2e-4  # float32; the largest logit is about 4


def assert_there_and_back(source: Path, reference: Path, folder: Path) -> None:
    """Through NeMo 2 and back: the same bytes, the same logits, and for transformers the same config."""
    from transformers import AutoConfig

    expected = models.logits_of(reference, "auto")
    assert 1 < expected.abs().max() < 40
    for tp in (1, 2):
        nemo, back = folder / f"nemo{tp}", folder / f"back{tp}"
        convert(source, nemo, to="nemo2", tensor_parallel_size=tp, verify=True)
        convert(nemo, back, to="hf", verify=True)
        models.assert_same_tensors(source, back)
        if tp == 1:
            assert models.logits_of(back, "auto").equal(expected)
            theirs = AutoConfig.from_pretrained(reference).to_dict()
            ours = AutoConfig.from_pretrained(back).to_dict()
            unread = {key for key in theirs if key not in ours or key in UNREAD}
            assert unread <= UNREAD
            assert {key: ours[key] for key in theirs.keys() - unread} == {
                key: theirs[key] for key in theirs.keys() - unread
            }


#: says nothing of the mathematics, and comes back as the default
UNREAD = {"_name_or_path", "n_inner"}


def megatron_difference(world: World, nemo: Path, expected: Any, tp: int = 1) -> float:
    """How far megatron-core's logits are from those of transformers."""
    return max(found["diff"] for found in _compare(world, nemo, expected, tp))


def assert_megatron_agrees(world: World, nemo: Path, expected: Any, tp: int, case: str) -> None:
    for found in _compare(world, nemo, expected, tp):
        print(f"{case} tp{tp}: {found['diff']:.2e} of {expected.abs().max():.1f}")
        assert found["diff"] <= TOLERANCE
        assert found["argmax_equal"]


def _compare(world: World, nemo: Path, expected: Any, tp: int) -> list[dict[str, Any]]:
    import torch

    reference = nemo.with_suffix(".pt")
    torch.save({"ids": models.ids(130, 32), "logits": expected}, reference)
    return world.run("compare", directory=str(nemo), reference=str(reference), tp=tp, pp=1)


def assert_onnx_agrees(folder: Path, expected: Any) -> None:
    """The graph's logits for the same text, all at once and token by token, are those of transformers."""
    import numpy

    from .onnx_runs import Run

    ids = models.ids(130, 32).numpy()
    for steps in ((32,), (20, *[1] * 12)):
        found = Run(folder).logits(ids, numpy.ones_like(ids), steps)
        assert numpy.abs(found - expected.numpy()).max() <= 1e-4
