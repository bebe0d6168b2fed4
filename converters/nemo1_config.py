"""What model a ``.nemo`` of Megatron GPT is: its table, model config and tokenizer, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from nemoconv.converters import tokenizer_files
from nemoconv.converters.hf import GENERATION_CONFIG, TOKENIZER_FILES
from nemoconv.converters.nemo1_run import RUN
from nemoconv.converters.nemo_archive import artifact, artifact_name, original_name
from nemoconv.errors import (
    CorruptCheckpoint,
    NemoconvError,
    UnsupportedArchitecture,
    UnsupportedConfig,
    UnsupportedError,
)
from nemoconv.formats import plain_json, sentencepiece
from nemoconv.formats.fiddle import Symbol
from nemoconv.formats.files import Folder, SourceFile
from nemoconv.mappings import architectures, load_table
from nemoconv.mappings.config_fields import Value, write_config
from nemoconv.mappings.nemo1_fields import defaults, read_fields, write_yaml
from nemoconv.mappings.rules import padded_vocab_size
from nemoconv.mappings.table import Table
from nemoconv.resharding.layout import Layout

TARGET: Final = "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"
#: the last NeMo with Megatron GPT models, whose layout is written
NEMO_VERSION: Final = "2.4.1"
#: where the tokenizer's files lie that NeMo 1 has no key for
HF_FOLDER: Final = "huggingface"
#: tables whose models NeMo 1 builds from model_config.yaml alone; where several fit, the first is meant
ARCHITECTURES: Final = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "nemotron",
    "starcoder2",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "qwen2_moe",
    "phi3",
    "glm",
    "chatglm",
)
_PRECISIONS: Final = {"float32": 32, "float16": 16, "bfloat16": "bf16"}


def is_megatron(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a Megatron language model, from what all of them state."""
    target = str(config.get("target", ""))
    if target.startswith("nemo.collections.nlp."):
        return ".Megatron" in target
    if target and not target.startswith("nemo_aligner."):
        return False
    return all(name in config for name in ("num_layers", "hidden_size", "num_attention_heads"))


def check_target(config: Mapping[str, Any], where: str) -> None:
    """Raise UnsupportedArchitecture for Megatron models that are not GPT's, or have another head, by name."""
    name = str(config.get("target", "")).rpartition(".")[2]
    if name and ("GPT" not in name or any(head in name for head in _OTHER_HEADS)):
        raise UnsupportedArchitecture(
            f"{where}: is a {name[:100]}; of Megatron's models GPT with its language model head is supported"
        )


#: of NeMo-Aligner: what rates texts instead of writing them
_OTHER_HEADS: Final = ("Reward", "Critic")


def model_of(
    yaml: Mapping[str, Any],
    where: str,
    *,
    written_as: str | None = None,
    allow_ignored: Collection[str] = (),
) -> tuple[Table, dict[str, Value]]:
    """The table and model config that ``model_config.yaml`` describes.

    ``written_as`` is the architecture that a manifest names; it is taken where it fits. Raises
    UnsupportedArchitecture, with what each candidate does not describe, UnsupportedConfig.
    """
    fields = read_fields(yaml, where, allow_ignored)
    fields["vocab_size"] = yaml.get("override_vocab_size")
    base = defaults()
    reasons: list[tuple[str, Exception]] = []
    preferred = [written_as] if written_as in ARCHITECTURES else []
    known = set(architectures())
    for name in dict.fromkeys((*preferred, *ARCHITECTURES)):
        if name not in known:
            continue
        table = load_table(str(name))
        try:
            config = _read(table, fields, base, where, allow_ignored)
            write_config(table.fields, config)  # some tables differ in what config.json can say only
            config["params_dtype"] = None  # what the tensors are; precision is that of a run
            return table, config
        except (UnsupportedError, CorruptCheckpoint) as error:
            reasons.append((table.architecture, error))
    corrupt = next((error for _, error in reasons[:1] if isinstance(error, CorruptCheckpoint)), None)
    if corrupt is not None:
        raise corrupt
    said = "; ".join(f"as {name}: {_short(error, where)}" for name, error in reasons[:4])
    raise UnsupportedArchitecture(
        f"{where}: no table describes this model ({said})",
        hint="if a config.json of the model exists, pass --config",
    )


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
    nemo = table.nemo
    owned = frozenset().union(*(rule.names for rule in nemo.rules)) | nemo.defaults[nemo.config].keys()
    given = {
        name: value
        for name, value in fields.items()
        if name in owned or (name not in _NOT_OF_ALL and (name not in base or base[name] != value))
    }
    return nemo.read(Symbol(nemo.module, nemo.config), given, where, allow_ignored)


#: says nothing that ``seq_length`` does not, for classes without it
_NOT_OF_ALL: Final = frozenset({"max_position_embeddings"})


_ADDED_TOKENS: Final = ("special_tokens", "additional_special_tokens")


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
    for key in ("model", "vocab_file", "merge_file"):
        file = artifact(folder, tokenizer.get(key))
        if file is not None:
            found.setdefault(_hf_name(key, original_name(file.name)), file)
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
    for key, text in (("bos_token", "<s>"), ("eos_token", "</s>")):
        if found.id_of(text) is not None:
            config[key] = text
    config |= {"add_bos_token": "bos_token" in config, "add_eos_token": False}
    config["add_prefix_space"] = found.add_dummy_prefix
    return plain_json.dumps(config)


def _hf_name(key: str, name: str) -> str:
    """What Hugging Face calls the file that ``tokenizer.<key>`` names."""
    suffix = name.rpartition(".")[2]
    if key == "model":
        return "tokenizer.json" if suffix == "json" else "tokenizer.model"
    if key == "merge_file":
        return "merges.txt"
    return "vocab.json" if suffix == "json" else "vocab.txt"


# Writing

#: NeMo 2's classes have these by default, NeMo 1 has not
_UNSTATED: Final = {"hidden_dropout": 0.0, "bias_activation_fusion": False}


def build_yaml(
    table: Table, config: Mapping[str, Value], layout: Layout, rows: int, tokenizer: Mapping[str, Value]
) -> dict[str, Value]:
    """``model_config.yaml`` that NeMo 1 builds this model from, with ``rows`` of vocabulary.

    Raises UnsupportedArchitecture for a table that NeMo 1 needs code of its own for, UnsupportedConfig
    for what it has no word for.
    """
    if table.architecture not in ARCHITECTURES:
        raise UnsupportedArchitecture(
            f"NeMo 1's MegatronGPTModel cannot be told to be a {table.architecture!r}",
            hint=f"it can be told to be one of: {', '.join(ARCHITECTURES)}",
        )
    nemo = table.nemo
    config_class, fields = nemo.write({**config, "vocab_size": rows})
    stated = {**_UNSTATED, **nemo.defaults[config_class], **fields}
    if layout.virtual_pipeline_parallel_size > 1 or layout.stages is not None:
        raise UnsupportedConfig(
            "a .nemo has no interleaved or freely dealt pipeline stages", hint="leave out --vpp and --stages"
        )
    dtype = str(config.get("params_dtype") or "float32")
    if dtype not in _PRECISIONS:
        raise UnsupportedConfig(f"NeMo 1 has no precision for {dtype}", hint="pass --dtype")
    return {
        **RUN,
        "mcore_gpt": True,
        "tensor_model_parallel_size": layout.tensor_parallel_size,
        "pipeline_model_parallel_size": layout.pipeline_parallel_size,
        "virtual_pipeline_model_parallel_size": None,
        "expert_model_parallel_size": layout.expert_parallel_size,
        **_ends(layout),
        **write_yaml(stated),
        "override_vocab_size": rows,
        "make_vocab_size_divisible_by": 1,
        "tokenizer": dict(tokenizer),
        "dist_ckpt_format": "torch_dist",
        "precision": _PRECISIONS[dtype],
        "target": TARGET,
        "nemo_version": NEMO_VERSION,
    }


def _ends(layout: Layout) -> dict[str, Value]:
    """How the ends of the pipeline differ, where they do."""
    said = {
        "num_layers_in_first_pipeline_stage": layout.num_layers_in_first_pipeline_stage,
        "num_layers_in_last_pipeline_stage": layout.num_layers_in_last_pipeline_stage,
        "account_for_embedding_in_pipeline_split": layout.account_for_embedding_in_pipeline_split or None,
        "account_for_loss_in_pipeline_split": layout.account_for_loss_in_pipeline_split or None,
    }
    return {name: value for name, value in said.items() if value is not None}


def build_tokenizer(
    files: Mapping[str, SourceFile | bytes],
) -> tuple[dict[str, Value], dict[str, bytes], Sequence[str]]:
    """(the ``tokenizer`` section, members to write, notes) for files by their Hugging Face names."""
    contents = {
        name: file if isinstance(file, bytes) else file.pread(file.size, 0) for name, file in files.items()
    }
    section: dict[str, Value] = {"library": None, "type": None, "model": None}
    section |= {"vocab_file": None, "merge_file": None, "sentencepiece_legacy": False}
    members = {f"{HF_FOLDER}/{name}": data for name, data in contents.items() if name != "tokenizer.model"}
    model = contents.get("tokenizer.model")
    if model is not None:
        name = artifact_name("tokenizer.model", model)
        section |= {"library": "sentencepiece", "model": f"nemo:{name}"}
        return section, {name: model, **members}, ()
    section["library"] = "huggingface"
    if not any(name in TOKENIZER_FILES for name in contents):
        return section, members, ("the source has no tokenizer, without which NeMo 1 restores no model",)
    note = (
        "NeMo 1 finds a Hugging Face tokenizer by its name only: set tokenizer.type to a hub id or a path "
        f"when it restores this file (the tokenizer's files are kept in {HF_FOLDER}/)"
    )
    return section, members, (note,)
