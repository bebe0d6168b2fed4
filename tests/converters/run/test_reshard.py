"""Changes of layout on disk: every bit arrives, every rank's file holds what the rank holds."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nemoconv
from nemoconv.converters.layouts import default_target, settle_layout
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.compare import Comparison, compare_companions
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import CorruptCheckpoint, LayoutError, OutputError, UnsupportedError, UsageError
from nemoconv.formats.torch import dist as torch_dist
from nemoconv.mappings import samples
from nemoconv.stores.files import SourceDir, SourceFile
from nemoconv.tensors.layout import Layout

REAL = Path(__file__).parents[3] / "fixtures" / "nemo2"
OPTIMIZER = REAL / "mcore0140_optim_dp2"
HF_TINY = REAL / "hf_tiny"
LLAMA = {**tiny.CONFIG, "num_hidden_layers": 4}
MOE = tiny.MOE_CONFIG


def random_bits(folder: Path, seed: int = 0) -> None:
    """Fill the weights with random bits, NaN payloads and subnormals among them."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    bits = numpy.random.default_rng(seed).integers(0, 1 << 16, (len(data) - start) // 2, dtype="u2")
    bits[::7] = numpy.resize(numpy.array(tiny.AWKWARD_16, "u2"), len(bits[::7]))
    data[start:] = bits.tobytes()
    file.write_bytes(data)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    root = tmp_path_factory.mktemp("llama")
    tiny.write(root / "hf", LLAMA)
    convert(root / "hf", root / "nemo", to="nemo2")
    return root / "nemo"


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    root = tmp_path_factory.mktemp("moe")
    samples.build(root / "hf", MOE)
    random_bits(root / "hf")
    convert(root / "hf", root / "nemo", to="nemo2")
    return root / "nemo"


def data_of(folder, config=None):
    """Every tensor as its bytes, vocabulary padding left out."""
    with open_checkpoint(folder, config=config) as opened:
        rows = opened.model().config["vocab_size"]
        found = {}
        for name in opened.keys():  # noqa: SIM118
            padded = "word_embeddings" in name or "output_layer" in name
            found[name] = opened.read(name, (slice(0, rows),) if padded else None).tobytes()
        return found


def chunks_by_file(folder, under="weights"):
    """{file: {key: [(start, shape)]}} as .metadata has it."""
    metadata = torch_dist.read_metadata(SourceDir(folder), under)
    found = {}
    for name, tensor in metadata.tensors.items():
        for chunk in tensor.chunks:
            found.setdefault(chunk.file_name, {}).setdefault(name, []).append((chunk.start, chunk.shape))
    return found


LLAMA_GRID = [
    (tp, pp, vpp) for tp, pp, vpp in itertools.product((1, 2), (1, 2, 4), (1, 2)) if vpp == 1 or pp == 2
]
MOE_GRID = [(2, 2, 2, 2, None), (1, 2, 4, 1, None), (2, 1, 2, 1, 1), (1, 4, 1, 1, 2), (2, 2, 4, 2, 1)]


@pytest.mark.parametrize(("tp", "pp", "vpp"), LLAMA_GRID)
def test_every_bit_of_a_dense_model_arrives(llama, tmp_path, tp, pp, vpp):
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "virtual_pipeline_parallel_size": vpp}
    report = reshard(llama, tmp_path / "a", **sizes, verify=True)
    assert data_of(tmp_path / "a") == data_of(llama)
    assert len(list((tmp_path / "a" / "weights").glob("*.distcp"))) == tp * pp
    with open_checkpoint(tmp_path / "a") as opened:
        assert opened.layout == Layout(tp, pp, virtual_pipeline_parallel_size=vpp)
        assert str(opened.layout) == report.layout
    assert nemoconv.verify(tmp_path / "a").manifest


@pytest.mark.parametrize(("tp", "pp", "ep", "vpp", "etp"), MOE_GRID)
def test_every_bit_of_a_mixture_of_experts_arrives(moe, tmp_path, tp, pp, ep, vpp, etp):
    reshard(
        moe,
        tmp_path / "a",
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        expert_parallel_size=ep,
        virtual_pipeline_parallel_size=vpp,
        expert_tensor_parallel_size=etp,
        verify=True,
    )
    assert data_of(tmp_path / "a") == data_of(moe)
    with open_checkpoint(tmp_path / "a") as opened:
        assert opened.layout == Layout(tp, pp, ep, vpp, etp)


def test_a_rank_s_file_holds_what_the_rank_holds(llama, tmp_path):
    """Tensor-parallel rank 1 of pipeline rank 0, with two virtual stages: by hand."""
    reshard(
        llama,
        tmp_path / "a",
        tensor_parallel_size=2,
        pipeline_parallel_size=2,
        virtual_pipeline_parallel_size=2,
    )
    files = chunks_by_file(tmp_path / "a")
    layer = "module.decoder.layers."
    assert files["__1_0.distcp"] == {
        "module.embedding.word_embeddings.weight": [((20, 0), (20, 16))],
        layer + "self_attention.linear_qkv.weight": [((n, 32, 0), (1, 32, 16)) for n in (0, 2)],
        layer + "self_attention.linear_proj.weight": [((n, 0, 16), (1, 16, 16)) for n in (0, 2)],
        layer + "mlp.linear_fc1.weight": [((n, first, 0), (1, 12, 16)) for n in (0, 2) for first in (12, 36)],
        layer + "mlp.linear_fc2.weight": [((n, 0, 12), (1, 16, 12)) for n in (0, 2)],
    }
    norms = {
        layer + "self_attention.linear_qkv.layer_norm_weight",
        layer + "mlp.linear_fc1.layer_norm_weight",
    }
    assert norms <= files["__0_0.distcp"].keys()
    assert files["__2_0.distcp"]["module.decoder.final_layernorm.weight"] == [((0,), (16,))]
    assert files["__3_0.distcp"]["module.output_layer.weight"] == [((20, 0), (20, 16))]
    assert "module.embedding.word_embeddings.weight" not in files["__2_0.distcp"]


def test_experts_lie_in_the_files_of_their_ranks(moe, tmp_path):
    """tp2, ep2, experts uncut (etp1): rank 1 has the second half of the experts and dense slices of its own."""
    sizes = {"tensor_parallel_size": 2, "expert_parallel_size": 2, "expert_tensor_parallel_size": 1}
    reshard(moe, tmp_path / "a", **sizes)
    files = chunks_by_file(tmp_path / "a")
    assert len(files) == 2
    fc2 = "module.decoder.layers.mlp.experts.experts.linear_fc2.weight"
    expected = [((layer, expert, 0, 0), (1, 1, 16, 8)) for layer in range(4) for expert in (2, 3)]
    assert files["__1_0.distcp"][fc2] == expected
    assert "module.decoder.layers.self_attention.linear_qkv.weight" in files["__1_0.distcp"]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_way_does_not_matter(tmp_path_factory, data):
    """Over random models and layouts: a -> b -> c is a -> c byte for byte, and join(split(x)) is x."""
    group = data.draw(st.sampled_from([2, 4]))
    config = {
        **tiny.CONFIG,
        "num_hidden_layers": data.draw(st.integers(1, 5)),
        "hidden_size": 4 * data.draw(st.integers(1, 4)),
        "intermediate_size": 4 * data.draw(st.integers(1, 5)),
        "num_attention_heads": group * data.draw(st.integers(1, 2)),
        "num_key_value_heads": group,
        "head_dim": 2 * data.draw(st.integers(1, 3)),
        "vocab_size": data.draw(st.integers(5, 41)),
        "tie_word_embeddings": data.draw(st.booleans()),
    }
    layers = config["num_hidden_layers"]
    stages = st.lists(st.integers(0, layers), min_size=2, max_size=4).map(
        lambda cuts: sorted([0, *cuts, layers])
    )

    def layout():
        tp = data.draw(st.sampled_from([1, 2, group]))
        if data.draw(st.booleans()):
            return Layout(tp)
        ends = data.draw(stages)
        counts = tuple(b - a for a, b in itertools.pairwise(ends))
        return Layout(tp, len(counts), stages=counts)

    root = tmp_path_factory.mktemp("way")
    tiny.write(root / "hf", config)
    convert(root / "hf", root / "nemo", to="nemo2")
    b, c = layout(), layout()
    reshard(root / "nemo", root / "b", layout=b)
    reshard(root / "b", root / "bc", layout=c)
    reshard(root / "nemo", root / "c", layout=c)
    assert data_of(root / "b") == data_of(root / "bc") == data_of(root / "nemo")
    weights = sorted(path.name for path in (root / "c" / "weights").iterdir())
    for name in weights:
        assert (root / "c/weights" / name).read_bytes() == (root / "bc/weights" / name).read_bytes(), name
    convert(root / "bc", root / "back", to="hf")
    assert {k: v.tobytes() for k, v in tiny.load(root / "back").items()} == {
        k: v.tobytes() for k, v in tiny.load(root / "hf").items()
    }
    shutil.rmtree(root)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_way_of_experts_does_not_matter(moe, tmp_path_factory, data):
    """The same for layouts of a mixture of experts: a -> b -> c is a -> c byte for byte."""

    def layout():
        pp = data.draw(st.sampled_from([1, 2, 4]))
        return Layout(
            data.draw(st.sampled_from([1, 2])),
            pp,
            data.draw(st.sampled_from([1, 2, 4])),
            data.draw(st.sampled_from([1, 2])) if pp == 2 else 1,
            data.draw(st.sampled_from([None, 1, 2])),
        )

    root = tmp_path_factory.mktemp("way")
    b, c = layout(), layout()
    reshard(moe, root / "b", layout=b)
    reshard(root / "b", root / "bc", layout=c)
    reshard(moe, root / "c", layout=c)
    assert data_of(root / "bc") == data_of(moe)
    for path in sorted((root / "c" / "weights").iterdir()):
        assert path.read_bytes() == (root / "bc" / "weights" / path.name).read_bytes(), path.name
    shutil.rmtree(root)


def test_what_nemo_wrote_keeps_its_own_words(tmp_path):
    """NeMo's own tp1 and tp2 of one model: each becomes the other, and all else stays as it was."""
    for source, target, size in (("nemo_tp1pp1", "nemo_tp2pp1", 2), ("nemo_tp2pp1", "nemo_tp1pp1", 1)):
        out = tmp_path / target
        report = reshard(REAL / source, out, tensor_parallel_size=size, verify=True)
        assert report.notes == []
        assert data_of(out) == data_of(REAL / target) == data_of(REAL / source)
        ours, theirs = chunks_by_file(out), chunks_by_file(REAL / target)
        assert boxes(ours) == boxes(theirs)  # cut as NeMo cuts it
        old, new = (SourceDir(folder) for folder in (REAL / source, out))
        before, after = (torch_dist.read_metadata(folder, "weights") for folder in (old, new))
        assert before.objects.keys() == after.objects.keys()
        for name, blob in before.objects.items():
            copy = after.objects[name]
            a = old.file(f"weights/{blob.file_name}").pread(blob.length, blob.offset)
            assert a == new.file(f"weights/{copy.file_name}").pread(copy.length, copy.offset)
        files = {
            str(path.relative_to(REAL / source)) for path in (REAL / source).rglob("*") if path.is_file()
        }
        for name in files:
            if not name.endswith((".distcp", ".metadata", "io.json", "model.yaml")):
                assert (out / name).read_bytes() == (REAL / source / name).read_bytes(), name
        written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
        made = {f"weights/__{rank}_0.distcp" for rank in range(size)} | {"nemoconv_manifest.json"}
        assert written == {name for name in files if not name.endswith(".distcp")} | made


def boxes(files):
    return sorted((key, box) for chunks in files.values() for key, held in chunks.items() for box in held)


def test_optimizer_state_goes_along(tmp_path):
    """megatron-core 0.14's flattened state, tp1 -> tp2: each element where the parameter's is."""
    report = reshard(OPTIMIZER, tmp_path / "a", tensor_parallel_size=2, config=HF_TINY, verify=True)
    assert report.notes == ["optimizer state goes along: 27 tensors (exp_avg, exp_avg_sq, fp32_param)"]
    before, after = parameter_shaped(OPTIMIZER, ""), parameter_shaped(tmp_path / "a", "")
    assert before.keys() == after.keys()
    assert len([key for key in before if key.startswith("optimizer")]) == 27
    for key, array in before.items():
        assert array.dtype == after[key].dtype
        assert array.tobytes() == after[key].tobytes(), key
    rounded = before["optimizer.state.fp32_param.module.decoder.layers.mlp.linear_fc1.weight"]
    assert numpy.abs(rounded).max() > 0
    metadata = torch_dist.read_metadata(SourceDir(tmp_path / "a"))
    fc1 = "optimizer.state.exp_avg.module.decoder.layers.mlp.linear_fc1.weight"
    assert metadata.tensors[fc1].shape == (2, 4, 1, 48 * 64)  # gate and up of two ranks
    assert metadata.mcore_data[fc1] == {"nd_reformulated_orig_global_shape": (2, 192, 64)}
    files = chunks_by_file(tmp_path / "a", "")
    assert files["__1_0.distcp"][fc1][:2] == [
        ((0, 1, 0, 0), (1, 1, 1, 3072)),
        ((0, 3, 0, 0), (1, 1, 1, 3072)),
    ]
    assert (tmp_path / "a/common.pt").read_bytes() == (OPTIMIZER / "common.pt").read_bytes()
    reshard(tmp_path / "a", tmp_path / "b", tensor_parallel_size=1, pipeline_parallel_size=2, config=HF_TINY)
    again = parameter_shaped(tmp_path / "b", "")
    assert {key: array.tobytes() for key, array in again.items()} == {
        key: array.tobytes() for key, array in before.items()
    }


def test_verify_compares_optimizer_state_as_well(tmp_path, monkeypatch):
    """What --verify does: with one bit of one moment changed, it names the moment."""
    monkeypatch.setattr(SourceFile, "expect", lambda *_: None)  # its checksum would tell first
    reshard(OPTIMIZER, tmp_path / "a", pipeline_parallel_size=2, config=HF_TINY)
    for bit, expected in (
        (0, []),
        (1, ["decoder.layers.1.mlp.linear_fc2.weight of optimizer.state.exp_avg"]),
    ):
        with (
            open_checkpoint(OPTIMIZER, config=HF_TINY) as source,
            open_checkpoint(tmp_path / "a", config=HF_TINY) as written,
        ):
            extent = (
                written.companions()["optimizer.state.exp_avg"]
                .stored("decoder.layers.1.mlp.linear_fc2.weight")
                .extents[0]
            )
            with open(extent.file.path, "r+b") as file:
                file.seek(extent.offset)
                byte = file.read(1)[0]
                file.seek(extent.offset)
                file.write(bytes([byte ^ bit]))
            result = Comparison()
            compare_companions(source.model(), source.companions(), written.companions(), result)
            assert result.tensors == 3 * 15
            assert result.different == expected


def parameter_shaped(folder, under):
    """Every tensor of a torch_dist directory in its true shape, put together by hand from torch's reader."""
    torch = pytest.importorskip("torch")
    import io

    metadata = torch_dist.read_metadata(SourceDir(folder), under)
    found = {}
    for name, tensor in metadata.tensors.items():
        data = metadata.mcore_data.get(name, {}).get("nd_reformulated_orig_global_shape")
        held = torch.zeros(tensor.shape, dtype=getattr(torch, tensor.dtype.name))
        for chunk in tensor.chunks:
            raw = (folder / under / chunk.file_name).read_bytes()[chunk.offset : chunk.offset + chunk.length]
            piece = torch.load(io.BytesIO(raw), weights_only=True)
            held[tuple(slice(a, a + n) for a, n in zip(chunk.start, chunk.shape, strict=True))] = piece
        if data:
            whole = torch.zeros(data, dtype=held.dtype)
            block = [n // cells for n, cells in zip(data, tensor.shape, strict=False)]
            for cell in itertools.product(*map(range, tensor.shape[:-1])):
                at = tuple(slice(i * n, (i + 1) * n) for i, n in zip(cell, block, strict=True))
                whole[at] = held[cell].reshape(block)
            held = whole
        found[name] = held.view(torch.uint8).numpy() if held.dtype == torch.bfloat16 else held.numpy()
    return found


def test_optimizer_state_may_be_left_out(tmp_path):
    report = reshard(OPTIMIZER, tmp_path / "a", tensor_parallel_size=2, config=HF_TINY, drop_optimizer=True)
    assert report.notes == ["27 keys of optimizer state left out, as --drop-optimizer asks"]
    keys = torch_dist.read_metadata(SourceDir(tmp_path / "a")).tensors
    assert not [key for key in keys if key.startswith("optimizer")]


def renamed(folder, target, old, new):
    """A copy with other names of the same length in .metadata."""
    assert len(old) == len(new)
    shutil.copytree(folder, target)
    place = target / ".metadata"
    data = place.read_bytes()
    assert old in data
    place.write_bytes(data.replace(old, new))
    return target


def test_state_in_buckets_is_refused_by_name(tmp_path):
    old = b"optimizer.state.exp_avg.module.output_layer.weight"
    new = b"optimizer.distributed.dp_group_idx_0.gbuf_idx_0.xx"
    source = renamed(OPTIMIZER, tmp_path / "source", old, new)
    with pytest.raises(UnsupportedError, match="dp_group_idx_0.*--drop-optimizer") as caught:
        reshard(source, tmp_path / "a", tensor_parallel_size=2, config=HF_TINY)
    assert caught.value.exit_code == 5
    assert not (tmp_path / "a").exists()
    reshard(source, tmp_path / "a", tensor_parallel_size=2, config=HF_TINY, drop_optimizer=True)


def test_a_true_shape_that_is_none_is_corrupt(tmp_path):
    """(512, 64) written as (512, 63): its pieces cannot have the size they have."""
    shutil.copytree(OPTIMIZER, tmp_path / "source")
    place = tmp_path / "source" / ".metadata"
    data = place.read_bytes()
    at = data.index(b"nd_reformulated_orig_global_shape")
    shape = data.index(b"M\x00\x02K@", at)
    place.write_bytes(data[: shape + 4] + b"?" + data[shape + 5 :])
    with pytest.raises(CorruptCheckpoint, match="pieces"):
        reshard(tmp_path / "source", tmp_path / "a", config=HF_TINY)


def test_the_padded_vocabulary_is_counted_anew(tmp_path):
    tiny.write(tmp_path / "hf", LLAMA, vocab_size=41)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    report = reshard(tmp_path / "nemo", tmp_path / "tp2", tensor_parallel_size=2)
    assert report.notes == ["vocabulary padded from 41 to 42 rows with zeros"]
    for folder, rows in (("tp2", 42), ("nemo", 41)):
        with open_checkpoint(tmp_path / folder) as opened:
            assert opened.spec("output_layer.weight").shape[0] == rows
            assert opened.context.fields["vocab_size"] == opened.context.yaml_fields["vocab_size"] == rows
            assert opened.model().config["vocab_size"] == 41
    report = reshard(tmp_path / "tp2", tmp_path / "back", tensor_parallel_size=1)
    assert report.notes == ["1 rows of vocabulary padding left out"]
    assert data_of(tmp_path / "back") == data_of(tmp_path / "nemo")
    wide = reshard(tmp_path / "tp2", tmp_path / "wide", make_vocab_size_divisible_by=32)
    assert wide.notes[-1] == "vocabulary padded from 42 to 64 rows with zeros"


def test_what_cannot_be_cut_names_the_sizes_that_can(llama, tmp_path):
    with pytest.raises(LayoutError, match="num_query_groups=2.*: 1, 2"):
        reshard(llama, tmp_path / "a", tensor_parallel_size=3)
    with pytest.raises(
        LayoutError, match="cannot cut 4 layers into pipeline_parallel_size=5; use one of: 1, 2, 4"
    ):
        reshard(llama, tmp_path / "a", pipeline_parallel_size=5)
    with pytest.raises(LayoutError, match="the model has no experts; leave out --ep"):
        reshard(llama, tmp_path / "a", expert_parallel_size=2)
    assert not (tmp_path / "a").exists()


def test_hugging_face_has_no_layout(tmp_path):
    tiny.write(tmp_path / "hf", LLAMA)
    with pytest.raises(UsageError, match="has no parallel layout; convert it to nemo2"):
        reshard(tmp_path / "hf", tmp_path / "a", tensor_parallel_size=2)


def test_the_target_is_a_sibling_named_after_the_layout(llama, tmp_path, monkeypatch):
    shutil.copytree(llama, tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    reshard(tensor_parallel_size=2)
    assert (tmp_path / "model-tp2-pp1" / "weights").is_dir()
    with pytest.raises(OutputError, match="exists already"):
        reshard(tensor_parallel_size=2)
    reshard(tensor_parallel_size=2, overwrite=True)
    monkeypatch.chdir(tmp_path / "model-tp2-pp1")
    report = reshard(pipeline_parallel_size=2, dry_run=True)
    assert report.target == str(tmp_path / "model-tp2-pp2")
    assert not (tmp_path / "model-tp2-pp2").exists()


def test_names_of_targets(tmp_path):
    def name(layout, source="m"):
        return default_target(tmp_path / source, layout).name

    assert name(Layout(2, 2, 4, 2, 1)) == "m-tp2-pp2-vpp2-ep4-etp1"
    assert name(Layout(1, 2, stages=(1, 3))) == "m-tp1-pp2-uneven"
    assert name(Layout(), "m-tp2-pp2-vpp2-ep4-etp1-uneven") == "m-tp1-pp1"


def test_what_is_not_said_is_as_in_the_source(tmp_path):
    base = Layout(2, 4, 2, virtual_pipeline_parallel_size=2, expert_tensor_parallel_size=1)
    assert settle_layout(base, {}, None) == base
    assert settle_layout(base, {"tensor_parallel_size": 4}, None) == Layout(4, 4, 2, 2, 1)
    assert settle_layout(base, {"pipeline_parallel_size": 2}, None) == Layout(2, 2, 2, 2, 1)
    assert settle_layout(base, {"pipeline_parallel_size": 1}, None) == Layout(2, 1, 2, 1, 1)
    uneven = Layout(2, 2, stages=(1, 3))
    assert settle_layout(uneven, {"tensor_parallel_size": 1}, None) == Layout(1, 2, stages=(1, 3))
    assert settle_layout(uneven, {"pipeline_parallel_size": 4}, None) == Layout(2, 4)
    assert settle_layout(uneven, {"virtual_pipeline_parallel_size": 2}, None) == Layout(2, 2, 1, 2)
    file = tmp_path / "layout.yaml"
    file.write_text("tensor_parallel_size: 8\nstages: [0, 3, 1]\n")
    assert settle_layout(uneven, {"tensor_parallel_size": 1}, file) == Layout(1, 3, stages=(0, 3, 1))
    assert settle_layout(uneven, {"tensor_parallel_size": 4}, base) == Layout(4, 4, 2, 2, 1)
    with pytest.raises(UsageError, match="none.yaml: cannot be read"):
        settle_layout(uneven, {}, "none.yaml")


def test_layers_by_layer_and_names_without_prefix_stay_so(tmp_path):
    """Dialects of torch_dist: keys of one layer each, keys without module."""
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp

    tiny.write(tmp_path / "hf", LLAMA)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    state = {}
    with open_checkpoint(tmp_path / "nemo") as opened:
        for name in opened.keys():  # noqa: SIM118
            array = opened.read(name)
            state[name] = torch.from_numpy(array.view("u2").copy()).view(torch.bfloat16)
    dcp.save(state, checkpoint_id=tmp_path / "bare", no_dist=True)
    (tmp_path / "bare" / "metadata.json").write_bytes(torch_dist.METADATA_JSON)
    torch.save({"args": None}, tmp_path / "bare" / "common.pt")
    report = reshard(
        tmp_path / "bare", tmp_path / "a", tensor_parallel_size=2, config=tmp_path / "hf", verify=True
    )
    assert [note.partition(" ")[0] for note in report.notes] == ["common.pt"]
    stored = torch_dist.read_metadata(SourceDir(tmp_path / "a")).tensors
    assert stored.keys() == state.keys()
    assert data_of(tmp_path / "a", tmp_path / "hf") == data_of(tmp_path / "nemo")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
        "common.pt",
        "metadata.json",
        "nemoconv_manifest.json",
    ]
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(loaded, checkpoint_id=tmp_path / "a", no_dist=True)
    for name, tensor in state.items():
        assert loaded[name].view(torch.uint8).equal(tensor.view(torch.uint8)), name


def test_a_layout_file_on_the_command_line(llama, tmp_path):
    from click.testing import CliRunner

    from nemoconv.cli import main

    file = tmp_path / "layout.yaml"
    file.write_text('pipeline_parallel_size: 2\nstages: ["0", "1-3"]\n')
    arguments = [
        "reshard",
        str(llama),
        str(tmp_path / "a"),
        "--layout",
        str(file),
        "--tp",
        "2",
        "--no-progress",
    ]
    result = CliRunner().invoke(main, [*arguments, "--dry-run", "--svg", str(tmp_path / "plan.svg")])
    assert result.exit_code == 0, result.output
    assert "tp2 pp2 stages 1-3" in result.output
    assert "  0-1    E#...  0 " in result.output
    assert (tmp_path / "plan.svg").exists()
    assert not (tmp_path / "a").exists()
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["layout"] == "tp2 pp2 stages 1-3"
    with open_checkpoint(tmp_path / "a") as opened:
        assert opened.layout == Layout(2, 2, stages=(1, 3))
        assert opened.context.fields["pipeline_model_parallel_layout"] == "Et|tttL"
