"""The tokenizer of a speech model: NeMo's SentencePiece file <-> the files that transformers loads.

``tokenizer.json`` is the format of the ``tokenizers`` library, written here as data. SentencePiece's merges
follow from its scores. NeMo needs ``tokenizer.model`` and ``vocab.txt``; both travel in a Hugging Face
directory beside ``tokenizer.json``, so that nothing is lost on the way back.

Sources: sentencepiece_model.proto; docs of the tokenizers library (models, normalizers, pre-tokenizers);
transformers/tokenization_utils_tokenizers.py, models/parakeet/{tokenization, processing}_parakeet.py;
nemo/collections/common/tokenizers/sentencepiece_tokenizer.py.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ...errors import CorruptCheckpoint, UnsupportedError
from ...formats import sentencepiece
from ...formats.sentencepiece import SentencePieceModel
from ...formats.text import plain_json
from ...mappings.hf.fields import Value

MODEL: Final = "tokenizer.model"
VOCAB: Final = "vocab.txt"
JSON: Final = "tokenizer.json"
BLANK: Final = "<blank>"
PAD: Final = "<pad>"
_SPACE: Final = "▁"


@dataclass(frozen=True, slots=True)
class TokenRoles:
    """Which ids mean what. ``pad`` and ``blank`` are texts; ``added`` are those that the SentencePiece model
    lacks, in the order of their ids behind its own."""

    pad: str | None
    pad_id: int | None
    added: tuple[str, ...]


def ctc_roles(model: SentencePieceModel) -> TokenRoles:
    """A CTC model's blank is the last output. transformers drops pad tokens, so the blank is called that."""
    name = PAD if model.id_of(PAD) is None else BLANK
    return TokenRoles(name, len(model.pieces), (name,))


def transducer_roles(model: SentencePieceModel) -> TokenRoles:
    """A transducer's blank is the last output. It pads too, unless the model has a piece for that."""
    pad = model.id_of(PAD)
    return TokenRoles(BLANK if pad is None else PAD, len(model.pieces) if pad is None else pad, (BLANK,))


def canary_roles(model: SentencePieceModel) -> TokenRoles:
    """Canary's vocabulary has its own padding and prompt tokens."""
    pad = model.id_of(PAD)
    return TokenRoles(None if pad is None else PAD, pad, ())


def tokenizer_json(model: SentencePieceModel, added: Sequence[str], special: Sequence[str] = ()) -> bytes:
    """tokenizer.json of a SentencePiece model; ``added`` follow its pieces, ``special`` are pieces that are
    skipped in decoded text beside the control pieces.

    Raises UnsupportedError for an algorithm that the tokenizers library lacks.
    """
    scored = [(piece.text, piece.score) for piece in model.pieces]
    unknown_id, unknown = model.unknown
    if model.algorithm == "bpe":
        core: dict[str, Value] = {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.byte_fallback,
            "ignore_merges": False,
            "vocab": _vocabulary(scored),
            "merges": _merges(scored),
        }
    elif model.algorithm == "unigram":
        core = {
            "type": "Unigram",
            "unk_id": unknown_id,
            "vocab": [[text, score] for text, score in scored],
            "byte_fallback": model.byte_fallback,
        }
    else:
        raise UnsupportedError(f"a SentencePiece model of the type {model.algorithm!r} has no counterpart")
    if model.treat_whitespace_as_suffix:
        raise UnsupportedError("a SentencePiece model with whitespace as suffix has no counterpart")
    tokens = [
        (i, piece.text, piece.kind == sentencepiece.CONTROL or piece.text in special)
        for i, piece in enumerate(model.pieces)
        if piece.kind in (sentencepiece.CONTROL, sentencepiece.USER_DEFINED)
    ]
    tokens.append((unknown_id, unknown, True))
    tokens += [(len(scored) + i, text, True) for i, text in enumerate(added)]
    metaspace = {
        "type": "Metaspace",
        "replacement": _SPACE,
        "prepend_scheme": "always" if model.add_dummy_prefix else "never",
        "split": True,
    }
    decoder: dict[str, Value] = metaspace
    if model.byte_fallback:
        decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]}
    return plain_json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added_token(*token) for token in sorted(tokens)],
            "normalizer": _normalizer(model),
            "pre_tokenizer": metaspace,
            "post_processor": None,
            "decoder": decoder,
            "model": core,
        }
    )


def _vocabulary(scored: Sequence[tuple[str, float]]) -> dict[str, int]:
    ids = {text: i for i, (text, _) in enumerate(scored)}
    if len(ids) != len(scored):
        raise CorruptCheckpoint("a SentencePiece model with two pieces of one text")
    return ids


def _merges(scored: Sequence[tuple[str, float]]) -> list[list[str]]:
    """Pairs of pieces in the order in which SentencePiece prefers to join them: by the score of the whole.

    Of several ways to make one piece, the one with the longer left part comes first.
    """
    ids = _vocabulary(scored)
    found: list[tuple[float, int, int, int, int, str, str]] = []
    for text, score in scored:
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                found.append((-score, -len(left), -len(right), ids[left], ids[right], left, right))
    found.sort(key=lambda row: row[:3])  # stable: pieces keep the order of their ids
    return [[row[5], row[6]] for row in found]


def _added_token(number: int, text: str, special: bool) -> dict[str, Value]:
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _normalizer(model: SentencePieceModel) -> dict[str, Value]:
    steps: list[dict[str, Value]] = []
    if model.charsmap:
        charsmap = base64.b64encode(model.charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.remove_extra_whitespaces:
        steps += [
            {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": _SPACE},
        ]
    return {"type": "Sequence", "normalizers": steps}


def tokenizer_config(kind: str, unknown: str, pad: str | None, others: Mapping[str, str]) -> bytes:
    """tokenizer_config.json; ``others`` gives further roles such as ``bos_token``."""
    config: dict[str, Value] = {
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": kind,
        "unk_token": unknown,
        **others,
    }
    if pad is not None:
        config["pad_token"] = pad
    return plain_json.dumps(config, sort_keys=True)


def vocab_txt(model: SentencePieceModel) -> bytes:
    """NeMo's vocab.txt: a piece a line without the unknown one; ``##`` marks what continues a word.

    Source: ``create_spt_model`` of sentencepiece_tokenizer.py. NeMo wants the file, and does not use it.
    """
    lines = [
        piece.text[1:] if piece.text.startswith(_SPACE) else "##" + piece.text
        for piece in model.pieces
        if piece.kind != sentencepiece.UNKNOWN
    ]
    return ("\n".join(lines) + "\n").encode()


def is_token_list(data: bytes) -> bool:
    """Whether a vocab.txt is the list of tokens and their numbers that lies beside ONNX graphs, and not the
    one of :func:`vocab_txt`."""
    lines = data.splitlines()
    return bool(lines) and all(line.endswith(b" %d" % number) for number, line in enumerate(lines))


def from_tokenizer_json(data: bytes, where: str, count: int) -> SentencePieceModel:
    """The SentencePiece model of which the first ``count`` tokens of a tokenizer.json were made.

    Raises UnsupportedError for a tokenizer that a SentencePiece model would not tokenize like: what it
    gives is turned into a tokenizer.json again and compared.
    """
    given = plain_json.loads_object(data, where, max_bytes=sentencepiece.MAX_BYTES)
    try:
        model = _as_model(given, count)
        again = plain_json.loads_object(tokenizer_json(model, ()), where, max_bytes=sentencepiece.MAX_BYTES)
        same = _essence(given, count) == _essence(again, count)
    except (*_MALFORMED, CorruptCheckpoint):
        same = False
    if not same:
        raise UnsupportedError(
            f"{where}: no SentencePiece model gives this tokenizer, and NeMo needs one",
            hint=f"put the model's {MODEL} into the directory",
        )
    return model


_MALFORMED: Final = (KeyError, TypeError, ValueError, IndexError, StopIteration, OverflowError, struct.error)


def vocabulary_size(data: bytes, where: str) -> int:
    """How many tokens the model in a tokenizer.json has."""
    core = plain_json.loads_object(data, where, max_bytes=sentencepiece.MAX_BYTES).get("model")
    vocab = core.get("vocab") if isinstance(core, dict) else None
    return len(vocab) if isinstance(vocab, (dict, list)) else 0


def _essence(value: Mapping[str, Value], count: int) -> tuple[Value, ...]:
    """What of a tokenizer.json decides which ids a text has, in one spelling."""
    core, words = _object(value["model"]), _object(value["pre_tokenizer"])
    vocab = core["vocab"]
    if isinstance(vocab, dict):
        vocab = sorted((number, text) for text, number in vocab.items() if number < count)
    else:
        vocab = [(text, _single(score)) for text, score in vocab]
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in core.get("merges", [])]
    return (
        *(core.get(key) for key in ("type", "unk_token", "unk_id", "fuse_unk", "byte_fallback")),
        *(core.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")),
        core.get("ignore_merges", False),
        vocab,
        merges,
        value["normalizer"],
        *(words.get(key) for key in ("type", "replacement", "prepend_scheme")),
    )


def _as_model(given: Mapping[str, Value], count: int) -> SentencePieceModel:
    """What a tokenizer.json would come from; KeyError and the like where it is of another kind."""
    core = _object(given["model"])
    steps = {step["type"]: step for step in _object(given["normalizer"])["normalizers"]}
    added = {token["id"]: token for token in given["added_tokens"]}
    if core["type"] == "BPE":
        scores = _scores(core["merges"])
        texts = [text for text, _ in sorted(core["vocab"].items(), key=lambda item: int(item[1]))][:count]
        scored = [(text, scores.get(text, -float(len(scores)))) for text in texts]
        unknown = texts.index(core["unk_token"])
    else:
        scored = [(str(text), _single(score)) for text, score in core["vocab"]]
        unknown = int(core["unk_id"])
    if len(scored) != count:
        raise ValueError
    charsmap = steps["Precompiled"]["precompiled_charsmap"] if "Precompiled" in steps else ""
    return SentencePieceModel(
        tuple(
            sentencepiece.TokenPiece(
                text, score, _kind(i, text, added.get(i), unknown, core["byte_fallback"])
            )
            for i, (text, score) in enumerate(scored)
        ),
        "bpe" if core["type"] == "BPE" else "unigram",
        core["byte_fallback"] is True,
        base64.b64decode(charsmap, validate=True),
        _object(given["pre_tokenizer"])["prepend_scheme"] == "always",
        "Strip" in steps,
        False,
    )


def _single(score: float) -> float:
    """A score as SentencePiece keeps it; the tokenizers library writes more digits than it has."""
    rounded: float = struct.unpack("<f", struct.pack("<f", score))[0]
    return rounded


def _kind(number: int, text: str, added: Mapping[str, Value] | None, unknown: int, bytes_too: bool) -> int:
    if number == unknown:
        return sentencepiece.UNKNOWN
    if added is not None:  # prompt tokens are special here, and found in text by SentencePiece too
        prompt = text.startswith("<|") and text.endswith("|>")
        return sentencepiece.CONTROL if added["special"] and not prompt else sentencepiece.USER_DEFINED
    is_byte = bytes_too and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return sentencepiece.BYTE if is_byte else sentencepiece.NORMAL


def _scores(merges: Sequence[Value]) -> dict[str, float]:
    """SentencePiece joins what makes the piece of the highest score; merges come in that order."""
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    scores: dict[str, float] = {}
    for left, right in pairs:
        scores.setdefault(left + right, -float(len(scores)))
    return scores


def _object(value: Value) -> dict[str, Value]:
    if not isinstance(value, dict):
        raise TypeError
    return dict(value)
