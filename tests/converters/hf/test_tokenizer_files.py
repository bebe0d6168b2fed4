"""tokenizer_config.json of transformers 5 is written so that NeMo's transformers 4 loads it too."""

import json

import pytest

from nemoconv.converters.hf.tokenizer_files import for_transformers_4
from nemoconv.errors import CorruptCheckpoint


def test_what_both_read_is_left_alone_byte_for_byte() -> None:
    data = b'{"tokenizer_class":"PreTrainedTokenizerFast",  "extra_special_tokens": {}}'
    assert for_transformers_4(data, "x") is data


def test_spellings_of_transformers_5_become_those_of_4() -> None:
    new = {"tokenizer_class": "TokenizersBackend", "bos_token": "<s>", "extra_special_tokens": ["<a>"]}
    assert json.loads(for_transformers_4(json.dumps(new).encode(), "x")) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "additional_special_tokens": ["<a>"],
    }


def test_an_older_list_of_special_tokens_wins() -> None:
    both = {"extra_special_tokens": ["<a>"], "additional_special_tokens": ["<b>"]}
    assert json.loads(for_transformers_4(json.dumps(both).encode(), "x")) == {
        "additional_special_tokens": ["<b>"]
    }


def test_a_broken_file_is_named() -> None:
    with pytest.raises(CorruptCheckpoint, match="tokenizer_config.json"):
        for_transformers_4(b"{", "tokenizer_config.json")
