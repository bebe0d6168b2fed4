"""SentencePiece models (``tokenizer.model``): pieces, scores and settings, without the library.

A model is one protocol buffer message. Sources: sentencepiece_model.proto of google/sentencepiece
(field numbers, defaults), protobuf.dev/programming-guides/encoding (wire format).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final, Literal

from ..errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedError
from .protobuf import Malformed, ProtobufMessage, Run, field, varint

#: the largest in use have 256,000
MAX_PIECES: Final = 2_000_000
MAX_BYTES: Final = 256 << 20

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_KINDS: Final = frozenset({NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE})

# Tags: the field's number << 3, and 2 for bytes, 5 for a float.
_PIECES, _TRAINER, _NORMALIZER = 1 << 3 | 2, 2 << 3 | 2, 3 << 3 | 2  # ModelProto
_TEXT, _SCORE, _KIND = 1 << 3 | 2, 2 << 3 | 5, 3 << 3  # SentencePiece
_MODEL_TYPE, _VOCAB_SIZE, _SUFFIX, _BYTE_FALLBACK = 3 << 3, 4 << 3, 24 << 3, 35 << 3  # TrainerSpec
_UNKNOWN_ID, _BEGIN_ID, _END_ID, _PADDING_ID, _UNKNOWN_PIECE = 40 << 3, 41 << 3, 42 << 3, 43 << 3, 45 << 3 | 2
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_WHITESPACES = 2 << 3 | 2, 3 << 3, 4 << 3  # NormalizerSpec
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
        model = _model(ProtobufMessage.of(data), where)
    except Malformed as error:
        raise CorruptCheckpoint(
            f"{where}: is not a SentencePiece model: {error}", hint="the file may be cut short or damaged"
        ) from None
    if sum(piece.kind == UNKNOWN for piece in model.pieces) != 1:
        raise CorruptCheckpoint(f"{where}: has no piece, or several, for unknown text")
    return model


def _model(message: ProtobufMessage, where: str) -> SentencePieceModel:
    pieces: list[TokenPiece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for tag, run, _ in message.fields():
        if tag == _PIECES:
            pieces.append(_piece(message, run))
            if len(pieces) > MAX_PIECES:
                raise UnsafeCheckpoint(f"{where}: more than {MAX_PIECES:,} pieces")
        elif tag == _TRAINER:
            trainer = message.values(run)
        elif tag == _NORMALIZER:
            normalizer = message.values(run)
    kind = trainer.get(_MODEL_TYPE, 1)
    algorithm = _ALGORITHMS.get(kind)
    if algorithm is None:
        raise UnsupportedError(f"{where}: a SentencePiece model of the unknown type {kind}")
    return SentencePieceModel(
        tuple(pieces),
        algorithm,
        bool(trainer.get(_BYTE_FALLBACK, 0)),
        normalizer.get(_CHARSMAP, b""),
        bool(normalizer.get(_DUMMY_PREFIX, 1)),
        bool(normalizer.get(_EXTRA_WHITESPACES, 1)),
        bool(trainer.get(_SUFFIX, 0)),
    )


def _piece(message: ProtobufMessage, whole: Run) -> TokenPiece:
    text, score, kind = b"", 0.0, NORMAL
    for tag, run, value in message.fields(whole):
        if tag == _TEXT:
            text = message.bytes(run)
        elif tag == _SCORE:
            (score,) = struct.unpack("<f", message.bytes(run))
        elif tag == _KIND:
            kind = value
    if kind not in _KINDS:
        raise Malformed(f"a piece of the unknown kind {kind}", whole.offset)
    try:
        return TokenPiece(text.decode("utf-8"), score, kind)
    except UnicodeDecodeError:
        raise Malformed("a piece that is not UTF-8", whole.offset) from None


def dumps(model: SentencePieceModel) -> bytes:
    """The tokenizer.model of ``model``, which the sentencepiece library loads."""
    out = bytearray()
    for piece in model.pieces:
        body = field(_TEXT, piece.text.encode()) + varint(_SCORE) + struct.pack("<f", piece.score)
        out += field(_PIECES, body + (field(_KIND, piece.kind) if piece.kind != NORMAL else b""))
    algorithm = next(kind for kind, name in _ALGORITHMS.items() if name == model.algorithm)
    trainer = field(_MODEL_TYPE, algorithm) + field(_VOCAB_SIZE, len(model.pieces))
    trainer += field(_SUFFIX, model.treat_whitespace_as_suffix) + field(_BYTE_FALLBACK, model.byte_fallback)
    trainer += field(_UNKNOWN_ID, model.unknown[0]) + field(_UNKNOWN_PIECE, model.unknown[1].encode())
    trainer += b"".join(field(tag, -1) for tag in (_BEGIN_ID, _END_ID, _PADDING_ID))  # none
    normalizer = field(_CHARSMAP, model.charsmap) + field(_DUMMY_PREFIX, model.add_dummy_prefix)
    normalizer += field(_EXTRA_WHITESPACES, model.remove_extra_whitespaces)
    return bytes(out) + field(_TRAINER, trainer) + field(_NORMALIZER, normalizer)
