"""Files added to a directory: all or none, and what a killed run leaves is in nobody's way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from nemoconv.errors import OutputError
from nemoconv.stores.output import add_files

NEW = {"genai_config.json": b"{}", "model.onnx": b"new graph"}
OLD = {"genai_config.json": b"old {}", "model.onnx": b"old graph"}
THERE = {"config.json": b"config", "model.safetensors": b"weights"}
STAGE = ".model.onnx.incomplete"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path, THERE)
    return tmp_path


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_they_are_added(folder: Path) -> None:
    add_files(folder, NEW)
    assert tree(folder) == THERE | NEW
    with pytest.raises(OutputError, match="exists already; pass --overwrite to replace it"):
        add_files(folder, NEW)
    add_files(folder, OLD, overwrite=True)
    assert tree(folder) == THERE | OLD
    assert not (folder / STAGE).exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_a_killed_run_left_is_removed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "precious").write_bytes(b"x")
    if kind == "file":
        (folder / STAGE).write_bytes(b"half")
    elif kind == "folder":
        (folder / STAGE).mkdir()
        (folder / STAGE / "model.onnx").write_bytes(b"half")
    else:
        (folder / STAGE).symlink_to(other)
    add_files(folder, NEW)
    assert tree(folder) == THERE | NEW
    assert not os.path.lexists(folder / STAGE)
    assert (other / "precious").read_bytes() == b"x"


def killed_at(step: int, folder: Path, *, overwrite: bool) -> bool:
    """Add the files in a child that dies before its ``step``-th call of the system; whether it died."""
    child = os.fork()
    if child == 0:
        left = step

        def dying(function):  # type: ignore[no-untyped-def]
            def wrapped(*arguments: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return wrapped

        from nemoconv.stores import output

        for owner, name in (
            (os, "open"), (os, "mkdir"), (os, "fsync"), (os, "rename"), (os, "unlink"), (os, "rmdir"),
            (output, "_swap"),
        ):  # fmt: skip
            setattr(owner, name, dying(getattr(owner, name)))
        code = 1
        try:
            add_files(folder, NEW, overwrite=overwrite)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_every_step(folder: Path, overwrite: bool) -> None:
    """Whatever the moment: each name has its old bytes or its new ones, and the graph comes last."""
    old, step, mixed = OLD if overwrite else {}, 1, set()
    while True:
        for name in NEW:
            (folder / name).unlink(missing_ok=True)
        fill(folder, old)
        died = killed_at(step, folder, overwrite=overwrite)
        assert set(os.listdir(folder)) <= {*THERE, *NEW, STAGE}
        held = {name: data for name, data in tree(folder).items() if "/" not in name}
        assert all(data in (old.get(name), NEW.get(name)) for name, data in held.items() if name in NEW)
        new = [name for name in NEW if held.get(name) == NEW[name]]
        assert new == list(NEW)[: len(new)]
        mixed.add(len(new))
        if not died:
            break
        step += 1
    assert mixed == {0, 1, 2}
    assert tree(folder) == THERE | NEW
    assert step > 8


def test_a_staged_graph_does_not_find_its_weights(tmp_path: Path) -> None:
    """onnxruntime, given what a run leaves that is killed before the first rename; the same graph in its place."""
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    (tmp_path / "weights").write_bytes(bytes(16))
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "weights", "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    child = os.fork()
    if child == 0:
        os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        add_files(tmp_path, {"model.onnx": model.SerializeToString()})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    staged = tmp_path / STAGE / "model.onnx"
    assert staged.read_bytes() == model.SerializeToString()
    for place in (staged, tmp_path / STAGE):
        with pytest.raises(
            Exception, match=r"(?i)external data|No such file|is a directory|ModelProto|Load model"
        ):
            onnxruntime.InferenceSession(str(place))
    os.rename(staged, tmp_path / "model.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
