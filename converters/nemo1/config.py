"""What model a ``.nemo`` of a Megatron language model is: its table, model config and tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ...errors import (
    CorruptCheckpoint,
    NemoconvError,
    UnsupportedArchitecture,
    UnsupportedConfig,
    UnsupportedError,
    some,
)
from ...formats import sentencepiece
from ...formats.text import plain_json
from ...formats.text.fiddle import Symbol
from ...mappings import load_table
from ...mappings.choosing import complaints
from ...mappings.hf.fields import Value, write_config
from ...mappings.nemo1 import families as nemo1_families
from ...mappings.nemo1.entry import Nemo1
from ...mappings.nemo1.families import Family
from ...mappings.nemo1.fields import defaults, read_fields
from ...mappings.nemo1.rules import Word
from ...mappings.nemo2.fields import text
from ...mappings.rules import padded_vocab_size
from ...mappings.table import Table
from ...stores.files import Folder, SourceFile
from ...tensors.layout import Layout
from ..archive.archive import artifact, original_name
from ..hf import tokenizer_files
from ..hf.checkpoint import GENERATION_CONFIG, TOKENIZER_FILES

#: where the tokenizer's files lie that NeMo 1 has no key for
HF_FOLDER: Final = "huggingface"
_CENTERED: Final = "layernorm_zero_centered_gamma"


def is_megatron(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a Megatron language model, from what all of them state."""
    target = str(config.get("target", ""))
    if target.startswith("nemo.collections.nlp."):
        return ".Megatron" in target
    if target and not target.startswith("nemo_aligner."):
        return False
    return all(name in config for name in ("num_layers", "hidden_size", "num_attention_heads"))


def family_of(config: Mapping[str, Any]) -> Family | None:
    """What NeMo class a config is of, None for one that no table describes."""
    block = str(config.get("transformer_block_type", "pre_ln"))
    return nemo1_families.family_of(str(config.get("target", "")).rpartition(".")[2], block)


def check_family(config: Mapping[str, Any], where: str) -> Family:
    """The family of a config. Raises UnsupportedArchitecture for other Megatron models, by name."""
    family = family_of(config)
    if family is None:
        name = str(config.get("target", "")).rpartition(".")[2]
        why = nemo1_families.why_unknown(name)
        raise UnsupportedArchitecture(
            f"{where}: is a {name[:100]}{': ' if why else ''}{why}; of Megatron's models GPT with its "
            "language model head, BERT and T5 are supported",
            hint="convert --to safetensors to have its weights and config",
        )
    return family


class Described(NamedTuple):
    """What model_config.yaml says; ``plain_norms``: norms hold 1 + the weights that the table means."""

    table: Table
    config: dict[str, Value]
    plain_norms: bool


def model_of(
    yaml: Mapping[str, Any],
    where: str,
    *,
    held: Collection[str] = (),
    written_as: str | None = None,
    allow_ignored: Collection[str] = (),
) -> Described:
    """The table and model config that ``model_config.yaml`` describes.

    ``held`` are the names of the tensors; ``written_as`` is the architecture that a manifest names, which is
    taken where it fits. Raises UnsupportedArchitecture, with what each candidate does not describe,
    UnsupportedConfig.
    """
    family = check_family(yaml, where)
    fields = read_fields(yaml, where, allow_ignored, family.rules, family.inert)
    for name, why in family.foreign.items():
        if name in held:
            raise UnsupportedArchitecture(f"{where}: {why} (it holds {name})")
    fields |= {name: tensor in held for name, tensor in family.told.items()}
    stated = None if family.pads_vocabulary else yaml.get("override_vocab_size")
    if stated is not None and (isinstance(stated, bool) or not isinstance(stated, int) or stated < 1):
        raise CorruptCheckpoint(f"{where}: override_vocab_size={text(stated)} is not a number of tokens")
    fields["vocab_size"] = stated
    base = defaults(family.rules)
    reasons: list[tuple[int, str, Exception]] = []
    for name in sorted(family.architectures, key=lambda name: name != written_as):
        table, entry = load_table(name), family.entry(name)
        assert entry is not None
        try:
            rest = _without_words(family, entry, fields, where)
            plain_norms = entry.plain_norms and not rest[_CENTERED]
            if plain_norms:
                rest[_CENTERED] = True
            config = _read(table, rest, base, where, allow_ignored)
            write_config(table.fields, config)  # some tables differ in what config.json can say only
            config["params_dtype"] = None  # what the tensors are; precision is that of a run
            return Described(table, config, plain_norms)
        except (UnsupportedError, CorruptCheckpoint) as error:
            reason = error.with_traceback(None)  # whose frames hold the list, and the checkpoint
            reasons.append((_complaints(family, table, entry, fields, base), name, reason))
    corrupt = [error for _, _, error in reasons if isinstance(error, CorruptCheckpoint)]
    if 2 * len(corrupt) > len(reasons):
        raise corrupt[0]
    reasons.sort(key=lambda each: each[0])
    said = "; ".join(_grouped([(name, _short(error, where)) for _, name, error in reasons]))
    raise UnsupportedArchitecture(
        f"{where}: no table describes this model ({said})",
        hint="if a config.json of the model exists, pass --config; a key of which you know that it changes "
        "nothing, pass with --allow-ignored",
    )


def _without_words(family: Family, entry: Nemo1, fields: Mapping[str, Value], where: str) -> dict[str, Value]:
    """``fields`` without those that only say which architecture is meant, if they say ``entry``."""
    words = _words(family)
    for name, usual in words.items():
        expected = entry.words.get(name, usual)
        if fields[name] != expected:
            raise UnsupportedConfig(f"{where}: {name}={fields[name]!r}, where {expected!r} is expected")
    return {name: value for name, value in fields.items() if name not in words}


def _words(family: Family) -> dict[str, Value]:
    """The fields that only say which architecture is meant, with what they say of most."""
    return {rule.name: rule.values[0] for rule in family.rules if isinstance(rule, Word)}


def _complaints(
    family: Family, table: Table, entry: Nemo1, fields: Mapping[str, Value], base: Mapping[str, Value]
) -> int:
    """How many fields an architecture cannot have written: how far the model is from it."""
    words = _words(family)
    wrong = sum(bool(fields[name] != entry.words.get(name, usual)) for name, usual in words.items())
    rest = {name: value for name, value in fields.items() if name not in words}
    symbol = Symbol(table.nemo.module, table.nemo.config)
    return wrong + complaints(table, symbol, _given(table, rest, base))


def _grouped(reasons: Sequence[tuple[str, str]]) -> list[str]:
    """Up to four reasons with the candidates that have them: that of most, then those of the nearest, which
    come first in ``reasons``."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons:
        names.setdefault(reason, []).append(name)
    most = max(names.items(), key=lambda item: len(item[1]))
    groups = [most, *[item for item in names.items() if item != most][:3]]
    return [f"as {some(candidates, 3)}: {reason}" for reason, candidates in groups]


def _short(error: Exception, where: str) -> str:
    message = getattr(error, "message", str(error))
    return str(message).removeprefix(f"{where}: ").removeprefix("the NeMo config says ")[:120]


def _read(
    table: Table,
    fields: Mapping[str, Value],
    base: Mapping[str, Value],
    where: str,
    allow_ignored: Collection[str],
) -> dict[str, Value]:
    """The model config, if the table's classes have a word for every field that is not at its default."""
    symbol = Symbol(table.nemo.module, table.nemo.config)
    return table.nemo.read(symbol, _given(table, fields, base), where, allow_ignored)


def _given(table: Table, fields: Mapping[str, Value], base: Mapping[str, Value]) -> dict[str, Value]:
    """The fields that a table's config class has, and those that are not at their default."""
    nemo = table.nemo
    owned = frozenset().union(*(rule.names for rule in nemo.rules))
    return {
        name: value
        for name, value in fields.items()
        if name in owned or (name not in _NOT_OF_ALL and (name not in base or base[name] != value))
    }


#: says nothing that ``seq_length`` does not, for classes without it
_NOT_OF_ALL: Final = frozenset({"max_position_embeddings"})


_ADDED_TOKENS: Final = ("special_tokens", "additional_special_tokens", "num_sentinel_tokens")


def true_vocab_size(
    yaml: Mapping[str, Any], files: Mapping[str, SourceFile], rows: int | None, layout: Layout
) -> int | None:
    """The vocabulary without padding: the tokenizer's size, where NeMo would pad it to just these rows and
    gives the tokenizer no more tokens than its file has."""
    section = yaml.get("tokenizer")
    if isinstance(section, dict) and any(section.get(key) for key in _ADDED_TOKENS):
        return rows
    size = tokenizer_files.vocabulary_size(files)
    divisor = yaml.get("make_vocab_size_divisible_by", 128)
    if size is None or rows is None or not isinstance(divisor, int) or not 0 < size <= rows:
        return rows
    steps = {padded_vocab_size(size, max(1, divisor), count) for count in (1, layout.tensor_parallel_size)}
    return size if rows in steps else rows


def tokenizer_of(folder: Folder, yaml: Mapping[str, Any]) -> dict[str, SourceFile]:
    """Tokenizer files by their Hugging Face names."""
    found = {
        name: folder.file(f"{HF_FOLDER}/{name}")
        for name in (*TOKENIZER_FILES, GENERATION_CONFIG)
        if folder.exists(f"{HF_FOLDER}/{name}")
    }
    tokenizer = yaml.get("tokenizer")
    if not isinstance(tokenizer, dict):
        return found
    family = family_of(yaml)
    model_file = family.tokenizer_file if family else "tokenizer.model"
    for key in ("model", "vocab_file", "merge_file"):
        file = artifact(folder, tokenizer.get(key))
        if file is not None:
            found.setdefault(_hf_name(key, original_name(file.name), model_file), file)
    return found


def tokenizer_config(files: Mapping[str, SourceFile]) -> bytes | None:
    """``tokenizer_config.json`` for a SentencePiece model that comes alone, without which transformers 5
    takes the wrong class; None where it is not needed, or the model is of a kind that Llama's class is not.

    The beginning of a text is marked by default, as by Llama's class in transformers 4.
    """
    model = files.get("tokenizer.model")
    if model is None or tokenizer_files.CONFIG in files or "tokenizer.json" in files:
        return None
    try:
        found = sentencepiece.loads(model.pread(model.size, 0), model.path)
    except NemoconvError:  # another kind of tokenizer under that name
        return None
    if found.algorithm != "bpe":
        return None
    config: dict[str, Value] = {"tokenizer_class": "LlamaTokenizer", "unk_token": found.unknown[1]}
    for key, token in (("bos_token", "<s>"), ("eos_token", "</s>")):
        if found.id_of(token) is not None:
            config[key] = token
    config |= {"add_bos_token": "bos_token" in config, "add_eos_token": False}
    config["add_prefix_space"] = found.add_dummy_prefix
    return plain_json.dumps(config)


def _hf_name(key: str, name: str, model_file: str) -> str:
    """What Hugging Face calls the file that ``tokenizer.<key>`` names, ``model_file`` for SentencePiece."""
    suffix = name.rpartition(".")[2]
    if key == "model":
        return "tokenizer.json" if suffix == "json" else model_file
    if key == "merge_file":
        return "merges.txt"
    return "vocab.json" if suffix == "json" else "vocab.txt"
