"""Initializers as the tensors that Hugging Face stores.

A transposed initializer, rows of one, or one matrix of a stack is an extent with other strides, so nothing is
copied; a quantized one is decoded when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from ....errors import MappingError, UnsupportedError
from ....formats.onnx.file import Initializer, OnnxNode
from ....tensors.dtypes import BY_NAME, DType
from ....tensors.stored import Extent, StoredTensor, contiguous_strides
from .dataflow import Dataflow
from .values import InitializerView

#: bits of the integer types that weights are quantized to, and whether they have a sign
_CODES = {
    "INT8": (8, True),
    "UINT8": (8, False),
    "INT4": (4, True),
    "UINT4": (4, False),
    "INT2": (2, True),
    "UINT2": (2, False),
}


#: bits of a code in MatMulNBits
_BITS = (2, 4, 8)


class Weights:
    """Gives weights as tensors. With ``approximate``, those too that the file holds only roughly, decoded
    to ``dtype`` (None: the type of their scales); without, they are an UnsupportedError. ``original`` is the
    type that the model's weights had. ``decoded`` and ``folded`` are the initializers that were only
    approximations, the latter with what they may be off by, ``scales`` what decoding them took."""

    def __init__(
        self, flow: Dataflow, *, approximate: bool, dtype: DType | None, original: DType | None = None
    ) -> None:
        self._flow, self._approximate, self._dtype, self._original = flow, approximate, dtype, original
        self.decoded: dict[str, None] = {}
        self.folded: dict[str, float] = {}
        self.scales: set[str] = set()

    def tensor(
        self, name: str, weight: InitializerView, *, offset_norm: bool = False, in_out: bool = False
    ) -> StoredTensor:
        """``weight`` under ``name``. ``offset_norm``: the model adds 1 to what Hugging Face stores;
        ``in_out``: Hugging Face stores it [in, out].

        Raises UnsupportedError for what is only an approximation, MappingError for a weight that the graph
        changes in another way.
        """
        if weight.plus_one and not offset_norm:
            raise MappingError(
                f"{self._flow.where}: the graph adds 1 to {weight.name!r}, which {name} does not have"
            )
        tensor = self._decode(weight) if weight.decoder is not None else weight.initializer.stored()
        if offset_norm and not weight.plus_one:
            tensor = self._less_one(tensor)
        (extent,) = tensor.extents
        if weight.item is not None:
            place = extent.offset + weight.item * extent.strides[0]
            extent = extent._replace(offset=place, shape=extent.shape[1:], strides=extent.strides[1:])
            extent = extent._replace(start=(0,) * len(extent.shape))
        if weight.flat:
            count = prod(extent.shape)
            extent = extent._replace(start=(0,), shape=(count,), strides=(tensor.dtype.itemsize,))
        if weight.transposed:
            extent = _turned(extent)
        if weight.rows is not None:
            first, count, period = weight.rows
            if period != extent.shape[0]:
                raise MappingError(
                    f"{self._flow.where}: {weight.name!r} of shape {list(extent.shape)} has {name} group by "
                    f"group, in {period:,} rows each, or is not of {period:,} rows"
                )
            place = extent.offset + first * extent.strides[0]
            extent = extent._replace(offset=place, shape=(count, *extent.shape[1:]))
        if in_out:
            extent = _turned(extent)
        return StoredTensor(name, tensor.dtype, extent.shape, (extent,))

    def _allow(self, what: str) -> None:
        if not self._approximate:
            raise UnsupportedError(
                f"{self._flow.where}: {what}",
                hint="convert the original, or pass --dequantize to accept the approximation",
            )

    def _less_one(self, tensor: StoredTensor) -> StoredTensor:
        from ....resharding.decode.norms import LessOne, is_exact, rounding
        from ....resharding.decode.quantized import decoded

        if not is_exact(tensor, self._original):
            self._allow(f"{tensor.name!r} holds a norm's weight plus 1, rounded: the weight itself is lost")
            self.folded[tensor.name] = rounding(tensor)
        return decoded(tensor.name, LessOne(tensor), tensor.dtype)

    def _decode(self, weight: InitializerView) -> StoredTensor:
        node = weight.decoder
        assert node is not None
        self._allow(f"{weight.name!r} is quantized ({node.op} of {weight.initializer.type.name})")
        readers: dict[str, Callable[[Initializer, OnnxNode], Any]] = {
            "MatMulNBits": self._n_bits,
            "GatherBlockQuantized": self._gathered,
            "DequantizeLinear": self._linear,
        }
        reader = readers.get(node.op)
        if reader is None:
            raise UnsupportedError(
                f"{self._flow.where}: {node} decodes {weight.name!r}, which is not supported"
            )
        from ....resharding.decode.quantized import decoded

        encoding = reader(weight.initializer, node)
        self.decoded[weight.name] = None
        return decoded(weight.name, encoding, self._dtype or encoding.scales.dtype)

    def _given(self, node: OnnxNode, position: int) -> Initializer | None:
        """An input of a node, which must be an initializer where it is given."""
        value = node.inputs[position] if len(node.inputs) > position else ""
        if not value:
            return None
        held = self._flow.onnx.initializers.get(value)
        if held is None:
            raise UnsupportedError(f"{self._flow.where}: {node} computes its input {value!r}")
        self.scales.add(value)
        return held

    def _number(self, node: OnnxNode, name: str, default: int = 0) -> int:
        """An attribute that must be a whole number, and only an axis may be -1 or less."""
        value = node.attributes.get(name, default)
        if type(value) is not int or abs(value) > 1 << 40 or (value < 0 and name != "axis"):
            raise UnsupportedError(f"{self._flow.where}: {node} has {name}={value!r}")
        return value

    def _n_bits(self, held: Initializer, node: OnnxNode) -> Any:
        """MatMulNBits: B uint8 [N, blocks, bytes of a block]; scales [N * blocks]; zero points fill up the
        last byte of each row."""
        rows, columns = self._number(node, "N"), self._number(node, "K")
        bits, width = self._number(node, "bits", 4), self._number(node, "block_size")
        if self._given(node, 4) is not None or bits not in _BITS or not (rows and columns and width):
            raise UnsupportedError(f"{self._flow.where}: {node} has {bits} bits, or an order of its own")
        blocks = -(-columns // width)
        return self._by_rows(held, node, (rows, columns), bits, width, (2, 3), blocks * width)

    def _gathered(self, held: Initializer, node: OnnxNode) -> Any:
        """GatherBlockQuantized: uint8 [rows, bytes of a row], scales for each block of a row."""
        bits, width = self._number(node, "bits", 4), self._number(node, "block_size", 128)
        axes = self._number(node, "gather_axis", 0), self._number(node, "quantize_axis", 1)
        known = held.type.name == "UINT8" and bits in _BITS and axes in ((0, 1), (0, -1)) and width
        if not known or not held.shape or not held.nbytes:
            raise UnsupportedError(f"{self._flow.where}: {node} of {held.type.name} is not supported")
        rows = held.shape[0]
        columns = held.nbytes // rows * (8 // bits)
        return self._by_rows(held, node, (rows, columns), bits, width, (2, 3), columns)

    def _by_rows(
        self,
        held: Initializer,
        node: OnnxNode,
        shape: tuple[int, int],
        bits: int,
        width: int,
        places: tuple[int, int],
        stride: int,
    ) -> Any:
        """Unsigned codes whose rows are cut into blocks; ``places`` are the inputs with scales and zero
        points, which without the latter are in the middle of the codes."""
        from ....resharding.decode.onnx import Affine, PackedIntegers

        scales, zeros = (self._given(node, place) for place in places)
        if scales is None or (zeros is not None and zeros.type.name != "UINT8"):
            raise UnsupportedError(
                f"{self._flow.where}: {node} has no scales, or zero points that are not UINT8"
            )
        points: PackedIntegers | int = 1 << (bits - 1)
        if zeros is not None:
            blocks = -(-shape[1] // width)
            points = PackedIntegers(_as_bytes(zeros), bits, False, -(-blocks * bits // 8) * 8 // bits)
        codes = PackedIntegers(_as_bytes(held), bits, False, stride)
        return Affine(codes, scales.stored(), shape, block=(1, width), zeros=points)

    def _linear(self, held: Initializer, node: OnnxNode) -> Any:
        """DequantizeLinear: one scale, one for each index of an axis, or one for each block of an axis."""
        from ....resharding.decode.onnx import Affine, PackedIntegers

        scales, zeros = self._given(node, 1), self._given(node, 2)
        if scales is None or held.type.name not in _CODES or len(held.shape) != 2 or not held.nbytes:
            raise UnsupportedError(
                f"{self._flow.where}: {node} of {held.type.name} {list(held.shape)} is not supported"
            )
        bits, signed = _CODES[held.type.name]
        rows, columns = held.shape
        axis = self._number(node, "axis", 1) % 2
        width = self._number(node, "block_size")
        if len(scales.shape) == 2:
            block = (width, 1) if axis == 0 else (1, width)
        elif scales.nbytes == scales.type.bits // 8:
            block = (rows, columns)
        else:
            block = (1, columns) if axis == 0 else (rows, 1)
        if not all(block):
            raise UnsupportedError(f"{self._flow.where}: {node} has scales for blocks of no size")
        points: PackedIntegers | int = 0
        if zeros is not None:
            if zeros.type != held.type:
                raise UnsupportedError(
                    f"{self._flow.where}: {node} has zero points of type {zeros.type.name}"
                )
            points = PackedIntegers(_as_bytes(zeros), bits, signed, -(-columns // block[1]))
        codes = PackedIntegers(_as_bytes(held), bits, signed, columns)
        return Affine(codes, scales.stored(), (rows, columns), block=block, zeros=points)


def _turned(extent: Extent) -> Extent:
    """The last two axes exchanged."""
    *outer, rows, columns = extent.shape
    *steps, down, across = extent.strides
    return extent._replace(shape=(*outer, columns, rows), strides=(*steps, across, down))


def joined(name: str, tensors: Sequence[StoredTensor], axis: int) -> StoredTensor:
    """Tensors one after another along an axis, as one. Raises UnsupportedError for those of several types."""
    extents, at = [], 0
    for tensor in tensors:
        if tensor.dtype != tensors[0].dtype:
            raise UnsupportedError(f"{name} is made of {tensor.dtype.name} and {tensors[0].dtype.name}")
        for extent in tensor.extents:
            start = [*extent.start]
            start[axis] += at
            extents.append(extent._replace(start=tuple(start)))
        at += tensor.shape[axis]
    shape = [*tensors[0].shape]
    shape[axis] = at
    return StoredTensor(name, tensors[0].dtype, tuple(shape), tuple(extents))


def _as_bytes(held: Initializer) -> StoredTensor:
    """The bytes of an initializer, whatever its type."""
    if held.file is None:
        raise UnsupportedError(f"{held.name!r} holds {held.type.name}")
    dtype, shape = BY_NAME["uint8"], (held.nbytes,)
    extent = Extent(held.file, held.offset, (0,), shape, contiguous_strides(shape, 1))
    return StoredTensor(held.name, dtype, shape, (extent,))
