"""tokenizer.json made of a SentencePiece model gives the ids that SentencePiece gives."""

from __future__ import annotations

import json
import random

import pytest

from nemoconv.converters.archive import speech_tokenizer
from nemoconv.errors import CorruptCheckpoint, UnsupportedError
from nemoconv.formats import sentencepiece as reader

library = pytest.importorskip("sentencepiece")
tokenizers = pytest.importorskip("tokenizers")

WORDS = (
    "she sells sea shells by the sea shore how much wood would a woodchuck chuck if a woodchuck could "
    "chuck wood the quick brown fox jumps over the lazy dog pack my box with five dozen liquor jugs"
).split()


def trained(tmp_path, **options):
    lines = (" ".join(random.Random(i).sample(WORDS, 6)) for i in range(200))
    prefix = tmp_path / "t"
    library.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(prefix), hard_vocab_limit=False, minloglevel=2, **options
    )
    return prefix.with_suffix(".model").read_bytes()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("rules", ["nmt_nfkc", "identity", "nmt_nfkc_cf"])
@pytest.mark.parametrize("fallback", [False, True])
def test_ids_are_sentencepieces(tmp_path, kind, rules, fallback):
    data = trained(
        tmp_path,
        model_type=kind,
        vocab_size=330 if fallback else 70,
        normalization_rule_name=rules,
        byte_fallback=fallback,
        bos_id=-1,
        eos_id=-1,
        user_defined_symbols=["<|en|>"],
    )
    model = reader.loads(data, "x")
    ours = tokenizers.Tokenizer.from_str(speech_tokenizer.tokenizer_json(model, ["<blank>"]).decode())
    theirs = library.SentencePieceProcessor(model_proto=data)
    assert ours.token_to_id("<blank>") == theirs.get_piece_size()
    assert ours.get_vocab_size() == theirs.get_piece_size() + 1
    generator = random.Random(0)
    texts = ["", "a", "  two  spaces ", "Shells & ½ ﬁne ÅÉ", "unseen ☃ snow", "\ttab\nline"]
    texts += [" ".join(generator.choices(WORDS, k=generator.randint(1, 9))) for _ in range(60)]
    texts += ["".join(generator.choices("aeiou shelwodckty.'", k=20)) for _ in range(60)]
    for text in texts:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text
    for text in texts[6:66] + ([texts[4]] if fallback else []):
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text)), text


def test_white_space_can_matter(tmp_path):
    data = trained(
        tmp_path, model_type="bpe", vocab_size=70, remove_extra_whitespaces=False, add_dummy_prefix=False
    )
    model = reader.loads(data, "x")
    ours = tokenizers.Tokenizer.from_str(speech_tokenizer.tokenizer_json(model, []).decode())
    theirs = library.SentencePieceProcessor(model_proto=data)
    for text in ("sea shore", "  sea", "sea  ", "s"):
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text


@pytest.mark.parametrize(
    ("kind", "options"), [("char", {}), ("word", {}), ("bpe", {"treat_whitespace_as_suffix": True})]
)
def test_other_algorithms_are_refused(tmp_path, kind, options):
    model = reader.loads(trained(tmp_path, model_type=kind, vocab_size=40, **options), "x")
    with pytest.raises(UnsupportedError, match="counterpart"):
        speech_tokenizer.tokenizer_json(model, [])


def test_two_pieces_of_one_text_are_refused():
    piece = b"\x0a\x05\x0a\x01a\x18\x01"
    model = reader.loads(b"\x0a\x09\x0a\x05<unk>\x18\x02" + 2 * piece + b"\x12\x02\x18\x02", "x")
    with pytest.raises(CorruptCheckpoint, match="two pieces"):
        speech_tokenizer.tokenizer_json(model, [])


def test_blank_and_padding_have_their_roles():
    unknown, pad = b"\x0a\x09\x0a\x05<unk>\x18\x02", b"\x0a\x09\x0a\x05<pad>\x18\x03"
    plain, padded = reader.loads(unknown, "x"), reader.loads(unknown + pad, "x")
    assert speech_tokenizer.ctc_roles(plain) == speech_tokenizer.TokenRoles("<pad>", 1, ("<pad>",))
    assert speech_tokenizer.ctc_roles(padded) == speech_tokenizer.TokenRoles("<blank>", 2, ("<blank>",))
    assert speech_tokenizer.transducer_roles(plain) == speech_tokenizer.TokenRoles("<blank>", 1, ("<blank>",))
    assert speech_tokenizer.transducer_roles(padded) == speech_tokenizer.TokenRoles("<pad>", 1, ("<blank>",))
    tokens = json.loads(speech_tokenizer.tokenizer_json(padded, ["<blank>"]))["added_tokens"]
    assert [(t["id"], t["content"], t["special"]) for t in tokens] == [
        (0, "<unk>", True),
        (1, "<pad>", True),
        (2, "<blank>", True),
    ]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("rules", ["nmt_nfkc", "identity"])
@pytest.mark.parametrize("fallback", [False, True])
def test_a_tokenizer_json_gives_its_model_back(tmp_path, kind, rules, fallback):
    data = trained(
        tmp_path,
        model_type=kind,
        vocab_size=330 if fallback else 70,
        normalization_rule_name=rules,
        byte_fallback=fallback,
        bos_id=-1,
        eos_id=-1,
        user_defined_symbols=["<|en|>", "*"],
        control_symbols=["<pad>"],
    )
    model = reader.loads(data, "x")
    text = speech_tokenizer.tokenizer_json(model, ["<blank>"], ["<|en|>"])
    count = len(model.pieces)
    again = speech_tokenizer.from_tokenizer_json(text, "x", count)
    assert [(p.text, p.kind) for p in again.pieces] == [(p.text, p.kind) for p in model.pieces]
    theirs, ours = (library.SentencePieceProcessor(model_proto=d) for d in (data, reader.dumps(again)))
    generator = random.Random(1)
    texts = ["", " a  b ", "<|en|>she* sells", "½ ﬁne ☃"]
    texts += [" ".join(generator.choices(WORDS, k=7)) for _ in range(40)]
    texts += ["".join(generator.choices("aeiou shelwodckty.'", k=20)) for _ in range(40)]
    for sample in texts:
        assert ours.encode(sample) == theirs.encode(sample), sample
    # what the tokenizers library saves of it, which spells merges and settings in its own way
    saved = tokenizers.Tokenizer.from_str(text.decode()).to_str().encode()
    assert speech_tokenizer.from_tokenizer_json(saved, "x", count) == again


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    model = reader.loads(trained(tmp_path, model_type="bpe", vocab_size=70), "x")
    good = json.loads(speech_tokenizer.tokenizer_json(model, []))
    count = len(model.pieces)

    def changed(**parts):
        return json.dumps({**good, **parts}).encode()

    core = good["model"]
    for data in (
        b"{}",
        changed(model={**core, "type": "WordPiece"}),
        changed(model={**core, "merges": [*core["merges"][1:], ["zz", "zz"]]}),
        changed(model={**core, "merges": core["merges"][:-1]}),
        changed(model={**core, "dropout": 0.1}),
        changed(normalizer={"type": "Lowercase"}),
        changed(pre_tokenizer={"type": "Whitespace"}),
        changed(model={**core, "vocab": {"a": "b"}}),
    ):
        with pytest.raises(UnsupportedError, match="tokenizer.model"):
            speech_tokenizer.from_tokenizer_json(data, "x", count)
    assert speech_tokenizer.from_tokenizer_json(changed(), "x", count).algorithm == "bpe"
