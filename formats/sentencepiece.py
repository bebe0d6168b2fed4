"""SentencePiece models (``tokenizer.model``): pieces, scores and settings, without the library.

A model is one protocol buffer message. Sources: sentencepiece_model.proto of google/sentencepiece
(field numbers, defaults), protobuf.dev/programming-guides/encoding (wire format).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from ..errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedError

#: the largest in use have 256,000
MAX_PIECES: Final = 2_000_000
MAX_BYTES: Final = 256 << 20

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_KINDS: Final = frozenset({NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE})

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ALGORITHMS: Final[dict[int, Literal["unigram", "bpe", "word", "char"]]] = {
    1: "unigram",
    2: "bpe",
    3: "word",
    4: "char",
}


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """One entry of the vocabulary; its id is its place. ``kind`` is one of the constants above."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """A tokenizer.model. ``charsmap`` are the compiled normalization rules, empty for none."""

    pieces: tuple[TokenPiece, ...]
    algorithm: Literal["unigram", "bpe", "word", "char"]
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    treat_whitespace_as_suffix: bool

    @property
    def unknown(self) -> tuple[int, str]:
        """(id, text) of the piece that stands for what is not in the vocabulary."""
        return next((i, piece.text) for i, piece in enumerate(self.pieces) if piece.kind == UNKNOWN)

    def id_of(self, text: str) -> int | None:
        """The id of a piece, None when there is none."""
        return next((i for i, piece in enumerate(self.pieces) if piece.text == text), None)


def loads(data: bytes, where: str) -> SentencePieceModel:
    """The model in ``data``; ``where`` names the file in messages.

    Raises CorruptCheckpoint for what is no such model, UnsupportedError for an unknown algorithm.
    """
    if len(data) > MAX_BYTES:
        raise UnsafeCheckpoint(f"{where}: {len(data):,} bytes, more than the {MAX_BYTES:,} allowed")
    try:
        model = _model(data, where)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError):
        raise CorruptCheckpoint(
            f"{where}: is not a SentencePiece model", hint="the file may be cut short or damaged"
        ) from None
    if sum(piece.kind == UNKNOWN for piece in model.pieces) != 1:
        raise CorruptCheckpoint(f"{where}: has no piece, or several, for unknown text")
    return model


def _model(data: bytes, where: str) -> SentencePieceModel:
    pieces: list[TokenPiece] = []
    trainer: dict[int, object] = {}
    normalizer: dict[int, object] = {}
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            pieces.append(_piece(value))
            if len(pieces) > MAX_PIECES:
                raise UnsafeCheckpoint(f"{where}: more than {MAX_PIECES:,} pieces")
        elif field == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))
        elif field == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    kind = trainer.get(3, 1)
    algorithm = _ALGORITHMS.get(kind) if isinstance(kind, int) else None
    if algorithm is None:
        raise UnsupportedError(f"{where}: a SentencePiece model of the unknown type {kind}")
    charsmap = normalizer.get(2, b"")
    if not isinstance(charsmap, bytes):
        raise TypeError
    return SentencePieceModel(
        tuple(pieces),
        algorithm,
        bool(trainer.get(35, 0)),
        charsmap,
        bool(normalizer.get(3, 1)),
        bool(normalizer.get(4, 1)),
        bool(trainer.get(24, 0)),
    )


def _piece(data: bytes) -> TokenPiece:
    text, score, kind = b"", 0.0, NORMAL
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            text = value
        elif field == 2 and isinstance(value, float):
            score = value
        elif field == 3 and isinstance(value, int):
            kind = value
    if kind not in _KINDS:
        raise TypeError
    return TokenPiece(text.decode("utf-8"), score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """(field number, value) of a message, in order; 32-bit fields are floats in this format."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        value: int | float | bytes
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire == _FIXED32:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        elif wire == _FIXED64:
            value, at = struct.unpack_from("<Q", data, at)[0], at + 8
        elif wire == _BYTES:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise IndexError
            value, at = data[at : at + length], at + length
        else:
            raise TypeError
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError


# Writing


def dumps(model: SentencePieceModel) -> bytes:
    """The tokenizer.model of ``model``, which the sentencepiece library loads."""
    out = bytearray()
    for piece in model.pieces:
        body = _text(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score)
        out += _text(1, body + (_number(3, piece.kind) if piece.kind != NORMAL else b""))
    algorithm = next(number for number, name in _ALGORITHMS.items() if name == model.algorithm)
    trainer = _number(3, algorithm) + _number(4, len(model.pieces))
    trainer += _number(24, model.treat_whitespace_as_suffix) + _number(35, model.byte_fallback)
    trainer += _number(40, model.unknown[0]) + _text(45, model.unknown[1].encode())
    trainer += b"".join(_number(field, -1) for field in (41, 42, 43))  # beginning, end, padding: none
    normalizer = _text(2, model.charsmap) + _number(3, model.add_dummy_prefix)
    normalizer += _number(4, model.remove_extra_whitespaces)
    return bytes(out) + _text(2, trainer) + _text(3, normalizer)


def _number(field: int, value: int) -> bytes:
    return _encoded(field << 3) + _encoded(value % (1 << 64))


def _text(field: int, value: bytes) -> bytes:
    return _encoded(field << 3 | _BYTES) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
