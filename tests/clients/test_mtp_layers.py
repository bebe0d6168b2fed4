"""Multi-token prediction: transformers' own MtpModel and megatron-core's block compute the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.errors import MappingError

from . import models
from .test_moe_architectures import CASES, build
from .worlds import JobFailed, World

pytest.importorskip("transformers")

TOLERANCE = 2e-4  # float32; measured: 2e-5
DEPTHS = 2
#: of what transformers saves of a layer: the shapes of one more
LAYER = re.compile(r"model\.layers\.3\.(.+)")
FAMILIES = ("deepseek_v3", "glm4_moe")
Built = Callable[[str], Path]


def add_mtp_layers(folder: Path) -> Path:
    """Layers as the released files have them: transformers writes none."""
    import safetensors.torch
    import torch

    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    hidden = embedding.shape[1]
    generator = torch.Generator().manual_seed(5)
    inside = {found[1]: tensors[name] for name in tensors if (found := LAYER.fullmatch(name))}
    shapes = {name: tensor.shape for name, tensor in inside.items()}
    shapes |= {f"{name}.weight": (hidden,) for name in ("enorm", "hnorm", "shared_head.norm")}
    shapes["eh_proj.weight"] = (hidden, 2 * hidden)
    for number in range(4, 4 + DEPTHS):
        for name, shape in sorted(shapes.items()):
            noise = torch.randn(shape, generator=generator)
            scale = 0.1 if name.endswith("bias") else 1.5 / shape[-1] ** 0.5
            plain = 1 + 0.3 * noise if len(shape) == 1 and not name.endswith("bias") else scale * noise
            tensors[f"model.layers.{number}.{name}"] = plain
        tensors[f"model.layers.{number}.embed_tokens.weight"] = embedding.clone()
        tensors[f"model.layers.{number}.shared_head.head.weight"] = head.clone()
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": DEPTHS}))
    return folder


@pytest.fixture(scope="module")
def with_mtp(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Hugging Face directories of the families with two such layers, each built once. Not to be changed."""
    root, built = tmp_path_factory.mktemp("mtp"), dict[str, Path]()

    def directory(case: str) -> Path:
        if case not in built:
            built[case] = add_mtp_layers(build(root / case, case))
        return built[case]

    return directory


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    ranks = World(
        tmp_path_factory.mktemp("world") / "stderr", Path(__file__).with_name("megatron_moe_rank.py")
    )
    yield ranks
    ranks.close()


@pytest.fixture
def known_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers knows such layers by the numbers that they have in released models."""
    import transformers

    for name in FAMILIES:
        config = getattr(transformers, CASES[name][0])
        kind = transformers.AutoModelForCausalLM._model_mapping[config]
        monkeypatch.setattr(kind, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.[45]\..*"])


@cache
def reference(folder: Path) -> dict[str, Any]:
    """{ids, logits, mtp} as transformers computes them."""
    import torch
    from transformers.modeling_layers import MtpModel

    main = models.load(folder, "float32")
    deep = MtpModel.from_pretrained(main).float().eval()
    ids = models.ids(main.config.vocab_size)
    positions = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        hidden = main.model(ids).last_hidden_state
        found, tokens = [], ids
        for depth in range(DEPTHS):
            tokens = torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], 1)
            hidden = deep.forward_layer(depth, hidden, positions, None, input_ids=tokens)
            found.append(main.lm_head(hidden))
        return {"ids": ids, "logits": main(ids).logits, "mtp": found}


@pytest.mark.usefixtures("known_layers")
@pytest.mark.parametrize("case", FAMILIES)
@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)], ids=str)
def test_megatron_core_predicts_what_transformers_predicts(
    with_mtp: Built, world: World, tmp_path: Path, case: str, layout: tuple[int, int, int]
) -> None:
    import torch

    tp, pp, ep = layout
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "expert_parallel_size": ep}
    convert(with_mtp(case), tmp_path / "nemo", to="nemo2", verify=True, **sizes)
    expected = reference(with_mtp(case))
    assert all(1 < logits.abs().max() < 30 for logits in expected["mtp"])
    torch.save(expected, tmp_path / "reference.pt")
    where = {"directory": str(tmp_path / "nemo"), "reference": str(tmp_path / "reference.pt")}
    answers = world.run("compare_mtp", **where, tp=tp, pp=pp, ep=ep)
    diffs = next(answer["diffs"] for answer in answers if "diffs" in answer)
    print(f"{case}: {diffs}")
    assert len(diffs) == 1 + DEPTHS
    assert max(diffs) < TOLERANCE


@pytest.mark.parametrize(
    ("case", "first", "second"),
    [
        ("deepseek_v3", "enorm.weight", "hnorm.weight"),
        ("deepseek_v3", "eh_proj.weight", None),
        ("glm4_moe", "shared_head.norm.weight", "hnorm.weight"),
        ("glm4_moe", "mlp.experts.0.up_proj.weight", "mlp.experts.1.up_proj.weight"),
    ],
)
@pytest.mark.usefixtures("known_layers")
def test_the_judge_sees_weights_in_the_wrong_place(
    with_mtp: Built, world: World, tmp_path: Path, case: str, first: str, second: str | None
) -> None:
    import safetensors.torch
    import torch

    source, tensors = tmp_path / "hf", safetensors.torch.load_file(with_mtp(case) / "model.safetensors")
    first = f"model.layers.5.{first}"
    if second is None:
        tensors[first] = tensors[first].roll(32, -1)
    else:
        second = f"model.layers.5.{second}"
        tensors[first], tensors[second] = tensors[second], tensors[first]
    source.mkdir()
    safetensors.torch.save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (source / "config.json").write_bytes((with_mtp(case) / "config.json").read_bytes())
    convert(source, tmp_path / "nemo", to="nemo2")
    torch.save(reference(with_mtp(case)), tmp_path / "reference.pt")
    where = {"directory": str(tmp_path / "nemo"), "reference": str(tmp_path / "reference.pt")}
    (answer,) = world.run("compare_mtp", **where, tp=1, pp=1, ep=1)
    *same, last = answer["diffs"]
    assert max(same) < TOLERANCE
    assert last > 50 * TOLERANCE


@pytest.mark.parametrize("case", FAMILIES)
def test_every_bit_comes_back_with_all_copies(with_mtp: Built, tmp_path: Path, case: str) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    for file in with_mtp(case).iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    models.fill_with_random_bits(source)
    restore_copies(source)
    sizes = {"tensor_parallel_size": 2, "expert_parallel_size": 2}
    report = convert(source, tmp_path / "nemo", to="nemo2", verify=True, **sizes)
    assert any(note.startswith(f"{2 * DEPTHS} copies of shared tensors") for note in report.notes)
    (tmp_path / "nemo/nemoconv_manifest.json").unlink()  # NeMo saves none
    convert(tmp_path / "nemo", tmp_path / "back", to="hf", verify=True)
    models.assert_same_tensors(source, tmp_path / "back")
    written = json.loads((tmp_path / "back/config.json").read_text())
    assert written["num_nextn_predict_layers"] == DEPTHS


def restore_copies(folder: Path, changed: str = "") -> None:
    import safetensors.torch

    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith((".embed_tokens.weight", ".shared_head.head.weight")) and ".layers." in name:
            original = "model.embed_tokens.weight" if "embed" in name else "lm_head.weight"
            tensors[name] = tensors[original].clone()
    if changed:
        tensors[changed][3, 5] += 1
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["embed_tokens.weight", "shared_head.head.weight"])
def test_a_copy_that_differs_is_refused_before_anything_is_written(
    with_mtp: Built, tmp_path: Path, name: str
) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    for file in with_mtp("glm4_moe").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    restore_copies(source, f"model.layers.5.{name}")
    with pytest.raises(MappingError, match=rf"model\.layers\.5\.{name} is not .*at \[3, 5\]") as caught:
        convert(source, tmp_path / "nemo", to="nemo2")
    assert "--allow-ignored num_nextn_predict_layers" in str(caught.value.hint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
    convert(source, tmp_path / "nemo", to="nemo2", allow_ignored=["num_nextn_predict_layers"])


def test_what_ranks_of_megatron_lm_hold_is_read(with_mtp: Built, world: World, tmp_path: Path) -> None:
    source = with_mtp("glm4_moe")
    convert(source, tmp_path / "nemo", to="nemo2")
    where = {"directory": str(tmp_path / "nemo"), "out": str(tmp_path / "ranks")}
    keys = world.run("save_moe", **where, tp=2, pp=1, ep=1, grouped=False)[0]["keys"]
    assert "mtp.layers.1.transformer_layer.mlp.router.expert_bias" in keys
    convert(tmp_path / "ranks", tmp_path / "back", to="hf", config=source, verify=True)
    models.assert_same_tensors(source, tmp_path / "back")


@pytest.mark.usefixtures("known_layers")
def test_without_labels_megatron_core_computes_nothing(with_mtp: Built, world: World, tmp_path: Path) -> None:
    """Which the report says, with what to do."""
    import torch

    report = convert(with_mtp("glm4_moe"), tmp_path / "nemo", to="nemo2")
    assert any("only with labels" in note for note in report.notes)
    torch.save(reference(with_mtp("glm4_moe")), tmp_path / "reference.pt")
    where = {"directory": str(tmp_path / "nemo"), "reference": str(tmp_path / "reference.pt")}
    with pytest.raises(JobFailed, match="'NoneType' object has no attribute 'clone'"):
        world.run("compare_moe", **where, tp=1, pp=1, ep=1)
    less = convert(
        with_mtp("glm4_moe"), tmp_path / "less", to="nemo2", allow_ignored=["num_nextn_predict_layers"]
    )
    assert not any("only with labels" in note for note in less.notes)
