"""NeMo 1 archives with a state dict for each rank."""

from __future__ import annotations

import io
import tarfile

import legacy_nemo as legacy
import pytest
import tiny

from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.convert import convert
from nemoconv.errors import NemoconvError

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("tied", [False, True])
def test_rank_files_are_cut_as_nemo_cuts_them(tmp_path, tp, pp, tied):
    """Entry by entry the same state dicts as those of the builder, which cuts by hand."""
    config = {**legacy.CONFIG, "tie_word_embeddings": tied}
    arrays = tiny.write(tmp_path / "hf", config)
    options = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "rank_files": True}
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", verify=True, **options)
    expected = legacy.states(arrays, config, tp=tp, pp=pp)
    with tarfile.open(tmp_path / "x.nemo") as archive:
        for (t, p), state in expected.items():
            folder = (
                ""
                if tp * pp == 1
                else f"mp_rank_{t:02d}/"
                if pp == 1
                else f"tp_rank_{t:02d}_pp_rank_{p:03d}/"
            )
            data = archive.extractfile(f"./{folder}model_weights.ckpt").read()
            held = torch.load(io.BytesIO(data), weights_only=True)
            assert {key for key, value in held.items() if value is not None} == {
                key for key, value in state.items() if value is not None
            }
            for key, value in state.items():
                if value is not None:
                    assert torch.equal(held[key].view(torch.int16), value.view(torch.int16)), key
            empty = {key for key, value in held.items() if value is None}
            assert all(key.endswith("._extra_state") for key in empty)
            assert ("model.output_layer._extra_state" in empty) == (p == pp - 1)
            assert "model.decoder.layers.0.mlp.linear_fc1._extra_state" in empty
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "back", arrays)
    assert verify(tmp_path / "x.nemo").manifest


def test_rank_files_of_experts_and_padded_rows(tmp_path):
    config = {
        **legacy.CONFIG,
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "vocab_size": 39,
    }
    config |= {
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "num_hidden_layers": 2,
    }
    dense = tiny.tensors({**config, "num_hidden_layers": 2})
    arrays = {name: array for name, array in dense.items() if ".mlp." not in name}
    for layer in range(2):
        at = f"model.layers.{layer}.block_sparse_moe."
        arrays[at + "gate.weight"] = tiny.bits((2, 16), "bfloat16", layer)
        for expert, (name, shape) in (
            (e, n) for e in range(2) for n in (("w1", (24, 16)), ("w2", (16, 24)), ("w3", (24, 16)))
        ):
            arrays[f"{at}experts.{expert}.{name}.weight"] = tiny.bits(shape, "bfloat16", len(arrays))
    tiny.write(tmp_path / "hf", config, arrays=arrays)
    options = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "rank_files": True}
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", verify=True, **options)
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "back", arrays)
    with pytest.raises(NemoconvError, match="expert"):
        convert(tmp_path / "hf", tmp_path / "y.nemo", to="nemo", expert_parallel_size=2, rank_files=True)


def test_rank_files_are_of_nemo_1_only(tmp_path):
    tiny.write(tmp_path / "hf")
    with pytest.raises(NemoconvError, match="rank_files"):
        convert(tmp_path / "hf", tmp_path / "x", to="nemo2", rank_files=True)
