"""SentencePiece models: read as the library reads them, refused when they are something else."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoconv.errors import CorruptCheckpoint, NemoconvError, UnsupportedError
from nemoconv.formats import sentencepiece as reader

SAMPLES = Path(__file__).parents[2] / "fixtures" / "speech"


def model_of(sample):
    with tarfile.open(SAMPLES / f"{sample}.nemo") as tar:
        name = next(n for n in tar.getnames() if n.endswith("tokenizer.model"))
        return tar.extractfile(name).read()


UNKNOWN = b"\x0a\x09\x0a\x05<unk>\x18\x02"  # pieces { piece: "<unk>" type: UNKNOWN }
SMALL = model_of("rnnt")


@pytest.mark.parametrize(("sample", "algorithm"), [("ctc", "unigram"), ("rnnt", "bpe"), ("canary", "bpe")])
def test_reads_what_the_library_reads(sample, algorithm):
    library = pytest.importorskip("sentencepiece")
    data = model_of(sample)
    ours, theirs = reader.loads(data, "x"), library.SentencePieceProcessor(model_proto=data)
    assert ours.algorithm == algorithm
    assert [p.text for p in ours.pieces] == [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())]
    assert [p.score for p in ours.pieces] == [theirs.get_score(i) for i in range(theirs.get_piece_size())]
    assert ours.unknown == (theirs.unk_id(), "<unk>")
    assert bool(ours.charsmap) == (sample == "ctc")
    control = [i for i, p in enumerate(ours.pieces) if p.kind == reader.CONTROL]
    assert control == [i for i in range(theirs.get_piece_size()) if theirs.is_control(i)]


def test_defaults_are_the_formats():
    model = reader.loads(UNKNOWN, "x")
    assert (model.algorithm, model.byte_fallback, model.charsmap) == ("unigram", False, b"")
    assert model.add_dummy_prefix
    assert model.remove_extra_whitespaces


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no piece"),
        (b"not a model at all", "is not a SentencePiece model"),
        (UNKNOWN[:-3], "is not a SentencePiece model"),
        (UNKNOWN + b"\x0a\x7fabc", "is not a SentencePiece model"),
        (UNKNOWN + UNKNOWN, "several"),
        (UNKNOWN + b"\x0a\x04\x0a\x02\xff\xfe", "is not a SentencePiece model"),
        (UNKNOWN + b"\x0a" + b"\xff" * 11, "is not a SentencePiece model"),
        (b"\x0a\x09\x0a\x05<unk>\x18\x09", "is not a SentencePiece model"),
    ],
)
def test_what_is_none_is_refused(data, says):
    with pytest.raises(CorruptCheckpoint, match=says):
        reader.loads(data, "x")


def test_an_unknown_algorithm_is_named():
    with pytest.raises(UnsupportedError, match="type 9"):
        reader.loads(UNKNOWN + b"\x12\x02\x18\x09", "x")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255), st.booleans())
def test_damage_is_an_error_or_another_model(at, byte, cut):
    data = SMALL[:at] if cut else SMALL[:at] + bytes([byte]) + SMALL[at + 1 :]
    try:
        reader.loads(data, "x")
    except NemoconvError as error:
        assert "\n" not in str(error)
