"""Ranks of NeMo 1's training runs with interleaved stages: each run of layers a nested state dict of its own."""

from __future__ import annotations

from collections import OrderedDict

import legacy_nemo as legacy
import pytest
import tiny

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.nemo1.checkpoint import read_rank
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import CorruptCheckpoint, LayoutError
from nemoconv.stores.files import SourceDir

torch = pytest.importorskip("torch")


def nested(state):
    """What ``on_save_checkpoint`` puts beside an empty ``state_dict``: for each run of layers the nested
    dictionaries of ``state_dict_for_save_checkpoint``, whose innermost ones have dotted names."""
    checkpoint = {"epoch": 1, "global_step": 7, "state_dict": OrderedDict(), "hyper_parameters": {"lr": 0.1}}
    for key, value in state.items():
        chunk, rest = key.split(".", 1)
        place = checkpoint.setdefault(chunk, {})
        for part in ("language_model.", "encoder.", "embedding.", "word_embeddings."):
            if rest.startswith(part):
                place = place.setdefault(part[:-1], {})
                rest = rest.removeprefix(part)
        place[rest] = value
    return checkpoint


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("mcore", [True, False], ids=["mcore", "own"])
def test_runs_beside_an_empty_state_dict(tmp_path, tp, mcore):
    arrays = tiny.tensors(legacy.CONFIG)
    ranks = legacy.states(arrays, legacy.CONFIG, tp=tp, pp=2, virtual=2, mcore=mcore)
    ranks = {rank: nested(state) for rank, state in ranks.items()}
    yaml = legacy.yaml_of(legacy.CONFIG, mcore_gpt=mcore, virtual_pipeline_model_parallel_size=2)
    source = legacy.unpack(tmp_path / "run", legacy.members(ranks, yaml))
    convert(source, tmp_path / "hf", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "hf", arrays)
    assert inspect(source)["layout"] == f"tp{tp} pp2 vpp2"


def test_what_stood_around_is_counted(tmp_path):
    ((_, state),) = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG, virtual=2).items()
    torch.save(nested(state), tmp_path / "x.ckpt")
    folder = SourceDir(tmp_path)
    read = read_rank(folder.file("x.ckpt"))
    assert set(read.around) == {"epoch", "global_step", "hyper_parameters"}
    assert read.tensors.keys() == {k for k, v in state.items() if v is not None}
    assert all(name.endswith("_extra_state") for name in read.others)
    folder.close()


def test_whole_and_interleaved_stages_at_once(tmp_path):
    ((_, state),) = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG, virtual=2).items()
    checkpoint = nested(state)
    checkpoint["state_dict"]["model.decoder.final_layernorm.weight"] = torch.ones(16)
    torch.save(checkpoint, tmp_path / "x.ckpt")
    folder = SourceDir(tmp_path)
    with pytest.raises(CorruptCheckpoint, match="interleaved"):
        read_rank(folder.file("x.ckpt"))
    folder.close()


def test_they_are_not_written(tmp_path):
    """A .nemo never holds them: NeMo 1 saves a model of interleaved stages as a training checkpoint only."""
    source, _ = legacy.build(tmp_path / "x.nemo", pp=2)
    layout = {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2}
    with pytest.raises(LayoutError, match="interleaved"):
        reshard(source, tmp_path / "y.nemo", **layout)
    assert not (tmp_path / "y.nemo").exists()
