from __future__ import annotations

import pytest

from nemoconv.converters.conversion import convert

from . import models
from .models import ids, logits


@pytest.mark.parametrize("v", models.VARIANTS, ids=str)
@pytest.mark.parametrize(("tp","pp"), [(1,1),(2,1),(1,2),(2,2)])
def test_x(hf, world, tmp_path, v, tp, pp):
    import torch
    src = hf(v)
    convert(src, tmp_path / "n", to="nemo2", tensor_parallel_size=tp, pipeline_parallel_size=pp)
    torch.save({"ids": ids(v.vocab, 64), "logits": logits(src, "float32")}, tmp_path / "ref.pt")
    print("RES", v, tp, pp, world.run("compare", directory=str(tmp_path / "n"), reference=str(tmp_path / "ref.pt"), tp=tp, pp=pp))
