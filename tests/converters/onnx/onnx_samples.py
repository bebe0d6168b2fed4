"""What the tests of reading ONNX share: samples of other exporters, and what is asked of the result."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy
import onnx_source
import pytest
import tiny

from nemoconv.converters.run.convert import convert
from nemoconv.errors import NemoconvError

FIXTURES = Path(__file__).parents[3] / "fixtures"
SAMPLES = FIXTURES / "onnx"


def sample(folder, name, *, config=True, **changes):
    """A sample as its exporter's user has it: beside the model's config.json."""
    folder.mkdir(parents=True)
    for file in (SAMPLES / name).iterdir():
        data = file.read_bytes()
        packed = file.suffix == ".gz"
        (folder / (file.stem if packed else file.name)).write_bytes(gzip.decompress(data) if packed else data)
    told = onnx_source.CONFIGS[name.partition("_")[2]]
    if config:
        (folder / "config.json").write_text(json.dumps({**told, **changes}))
    return onnx_source.arrays(told)


def edited(folder, edit):
    """Change the graph in place; weights stay where they are."""
    import onnx

    message = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(message.graph)
    (folder / "model.onnx").write_bytes(message.SerializeToString())


def refused(model, kind, code, *, to="hf", **options):
    out = model.parent / "out"
    with pytest.raises(NemoconvError) as caught:
        convert(model, out, to=to, **options)
    assert type(caught.value) is kind, caught.value
    assert caught.value.exit_code == code
    assert not out.exists()
    return caught.value.message.replace(str(model), "MODEL")


def assert_equal(folder, arrays):
    found = tiny.load(folder)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert numpy.array_equal(found[name], array), name
