"""``.nemo`` archives cut by rank, in another layout: as NeMo's own partition script has them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import tiny

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import LayoutError

torch = pytest.importorskip("torch")


REAL = Path(__file__).parents[3] / "fixtures" / "legacy"
TP1, TP2_PP2 = REAL / "llama_legacy_tp1.nemo", REAL / "llama_legacy_tp2_pp2.nemo"


def state_dicts(path):
    """What torch loads of every rank's weights, in an archive or in a folder."""
    if path.is_dir():
        return {
            str(file.relative_to(path)): torch.load(file, weights_only=True) for file in path.rglob("*.ckpt")
        }
    with tarfile.open(path) as archive:
        return {
            name.removeprefix("./"): torch.load(
                io.BytesIO(archive.extractfile(name).read()), weights_only=True
            )
            for name in archive.getnames()
            if name.endswith(".ckpt")
        }


def assert_same(a, b):
    assert a.keys() == b.keys()
    for file, held in a.items():
        assert held.keys() == b[file].keys(), file
        for key, tensor in held.items():
            other = b[file][key]
            if tensor is None or other is None:
                assert tensor is other, (file, key)
                continue
            assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), (file, key)
            assert tensor.contiguous().view(torch.uint8).equal(other.contiguous().view(torch.uint8)), (
                file,
                key,
            )


@pytest.mark.parametrize(
    ("source", "target", "sizes", "note"),
    [
        (TP2_PP2, TP1, (1, 1), "4 rows of vocabulary padding left out"),
        (TP1, TP2_PP2, (2, 2), "vocabulary padded from 100 to 104 rows with zeros"),
    ],
    ids=["join", "cut"],
)
def test_as_nemo_itself_cuts_and_joins(tmp_path, source, target, sizes, note):
    """Every rank's state dict equals the one that NeMo 2.4.1's own script made, bit for bit."""
    out = tmp_path / "out.nemo"
    report = reshard(source, out, tensor_parallel_size=sizes[0], pipeline_parallel_size=sizes[1], verify=True)
    assert report.notes == [note]
    assert_same(state_dicts(out), state_dicts(target))
    names = {}
    for path in (out, target):
        with tarfile.open(path) as archive:
            config = archive.extractfile("./model_config.yaml").read().decode().splitlines()
            names[path] = [line for line in config if "nemo:" not in line]  # whose names are random
            tokenizers = [name for name in archive.getnames() if name.endswith("tokenizer.model")]
            names[path].append(archive.extractfile(tokenizers[0]).read())
    assert names[out] == names[target]


@pytest.fixture
def tied(tmp_path):
    """An unpacked .nemo with megatron-core's names and a tied embedding, one rank, by torch.save."""
    tiny.write(
        tmp_path / "hf",
        num_hidden_layers=4,
        tie_word_embeddings=True,
        vocab_size=38,
        max_position_embeddings=64,
    )
    convert(tmp_path / "hf", tmp_path / "dist.nemo", to="nemo")
    folder = tmp_path / "model"
    folder.mkdir()
    state = {}
    with open_checkpoint(tmp_path / "dist.nemo") as opened:
        for name in opened.keys():  # noqa: SIM118
            state["model." + name] = torch.from_numpy(opened.read(name).view("i2").copy()).view(
                torch.bfloat16
            )
    for layer in range(4):
        state[f"model.decoder.layers.{layer}.mlp.linear_fc1._extra_state"] = None
    state["model.decoder.final_layernorm._extra_state"] = None
    torch.save(state, folder / "model_weights.ckpt")
    with tarfile.open(tmp_path / "dist.nemo") as archive:
        for name in archive.getnames():
            if name.endswith(("model_config.yaml", ".model", ".json")) and "model_weights" not in name:
                data = archive.extractfile(name).read()
                (folder / Path(name).name).write_bytes(data)
    (folder / "nemoconv_manifest.json").unlink(missing_ok=True)
    return folder, state


def test_a_tied_model_of_megatron_core_s_names(tmp_path, tied):
    folder, state = tied
    reshard(folder, tmp_path / "out", tensor_parallel_size=2, pipeline_parallel_size=2, verify=True)
    ranks = state_dicts(tmp_path / "out")
    assert sorted(ranks) == [
        f"tp_rank_{tp:02d}_pp_rank_{pp:03d}/model_weights.ckpt" for tp in range(2) for pp in range(2)
    ]
    embedding = state["model.embedding.word_embeddings.weight"]
    for tp in range(2):
        first, last = (ranks[f"tp_rank_{tp:02d}_pp_rank_{pp:03d}/model_weights.ckpt"] for pp in range(2))
        part = embedding[19 * tp : 19 * (tp + 1)].view(torch.int16)
        assert first["model.embedding.word_embeddings.weight"].view(torch.int16).equal(part)
        assert last["model.output_layer.weight"].view(torch.int16).equal(part)
        assert "model.decoder.final_layernorm.weight" in last
        assert last["model.decoder.final_layernorm._extra_state"] is None
        assert "model.decoder.final_layernorm._extra_state" not in first
        fc1 = state["model.decoder.layers.3.mlp.linear_fc1.weight"]
        mine = torch.cat([fc1[12 * tp : 12 * (tp + 1)], fc1[24 + 12 * tp : 24 + 12 * (tp + 1)]])
        held = last["model.decoder.layers.1.mlp.linear_fc1.weight"]  # counted from the stage's first
        assert held.view(torch.int16).equal(mine.view(torch.int16))
        assert sum("layernorm" in key or "layer_norm" in key for key in first) == 4
    reshard(
        tmp_path / "out", tmp_path / "back", tensor_parallel_size=1, pipeline_parallel_size=1, verify=True
    )
    assert_same(state_dicts(tmp_path / "back"), {"model_weights.ckpt": state})


@pytest.mark.parametrize(
    "asked",
    [
        {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2},
        {"expert_parallel_size": 1, "pipeline_parallel_size": 2, "layout": "stages: [1, 3]"},
    ],
    ids=["virtual", "uneven"],
)
def test_what_nemo_1_has_no_files_for_is_refused(tmp_path, asked):
    if "layout" in asked:
        (tmp_path / "layout.yaml").write_text(asked["layout"])
        asked = {**asked, "layout": tmp_path / "layout.yaml"}
    with pytest.raises(LayoutError, match="a .nemo"):
        reshard(TP1, tmp_path / "a.nemo", **asked)
    assert not (tmp_path / "a.nemo").exists()


def test_a_distributed_checkpoint_in_a_nemo(tmp_path):
    source = REAL / "llama_mcore_torch_dist.nemo"
    report = reshard(source, tmp_path / "out.nemo", tensor_parallel_size=2, verify=True)
    assert report.layout == "tp2 pp1"
    with open_checkpoint(tmp_path / "out.nemo") as out, open_checkpoint(source) as before:
        assert out.layout.tensor_parallel_size == 2
        changed = {key for key in before.yaml if before.yaml[key] != out.yaml[key]}
        assert changed == {"tensor_model_parallel_size"}
        assert out.yaml.keys() == before.yaml.keys()
        for name in before.keys():  # noqa: SIM118
            rows = slice(0, before.spec(name).shape[0])
            assert out.read(name, (rows,)).tobytes() == before.read(name).tobytes()
