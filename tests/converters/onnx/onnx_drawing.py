"""ONNX graphs drawn node by node, for tests of what is read out of a graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from nemoconv.formats.onnx.file import Initializer, OnnxFile, OnnxNode, Value
from nemoconv.formats.onnx.types import TYPES
from nemoconv.stores.files import SourceFile
from nemoconv.stores.memory_file import MemoryFile


class Drawing:
    """A graph drawn node by node; ``node`` returns the name of its first output."""

    def __init__(self) -> None:
        self.nodes: list[OnnxNode] = []
        self.initializers: dict[str, Initializer] = {}
        self.outputs = ["logits"]
        self.file = SourceFile(__file__)

    def weight(self, name: str, shape: Sequence[int], kind=TYPES[1]) -> str:
        self.initializers[name] = Initializer(name, kind, tuple(shape), self.file, 0, 1 << 20, True)
        return name

    def constant(self, name: str, value: float) -> str:
        data = numpy.array([value], numpy.float32).tobytes()
        file = MemoryFile(self.file, name, data)
        self.initializers[name] = Initializer(name, TYPES[1], (1,), file, 0, 4, False)
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        data = numpy.array(values, numpy.int64).tobytes()
        file = MemoryFile(self.file, name, data)
        self.initializers[name] = Initializer(name, TYPES[7], (len(values),), file, 0, len(data), False)
        return name

    def nodes_of(self, op, *inputs, outputs, **attributes) -> list[str]:
        """A node with so many outputs."""
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.node(op, *inputs, outputs=names, **attributes)
        return names

    def node(self, op, *inputs, outputs=None, domain="", **attributes) -> str:
        outputs = outputs or (f"v{len(self.nodes)}",)
        self.nodes.append(
            OnnxNode(op, f"/{op}_{len(self.nodes)}", inputs, tuple(outputs), attributes, domain)
        )
        return outputs[0]

    def onnx(self) -> OnnxFile:
        def values(names):
            return tuple(Value(name, "FLOAT", None) for name in names)

        inputs = ["input_ids", "position_ids", *(f"past.{n}.{k}" for n in range(9) for k in ("key", "value"))]
        return OnnxFile(
            self.file, 10, {"ai.onnx": 18}, "drawn", {}, values(inputs), values(self.outputs),
            tuple(self.nodes), self.initializers, {},
        )  # fmt: skip
