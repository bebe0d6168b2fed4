"""What goes with a speech model's weights: tokenizer, feature extractor, processor, and what only NeMo reads.

``to_hf`` makes the files of a Hugging Face directory out of an archive, ``to_archive`` the other way round.
Settings of NeMo's that transformers has no words for (optimizer, augmentation, decoding) travel in
``nemo_config.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ...errors import UnsupportedConfig
from ...formats import sentencepiece
from ...formats.sentencepiece import SentencePieceModel
from ...formats.text import plain_json, plain_yaml
from ...mappings.families import speech_preprocessor
from ...mappings.families.speech import INERT, YAML, SpeechTable, flatten, nest, write_settings
from ...mappings.families.speech_preprocessor import EXTRACTOR, PROCESSOR, write_extractor
from ...mappings.hf.fields import Value
from ...stores.files import Folder, SourceFile
from ..base import Checkpoint, Model
from ..hf.checkpoint import GENERATION_CONFIG
from . import archive as nemo_archive
from . import speech_tokenizer
from .speech_tokenizer import TokenRoles

#: the part of model_config.yaml that transformers has no words for
REST: Final = "nemo_config.yaml"
_ROLES: Final[Mapping[str, Callable[[SentencePieceModel], TokenRoles]]] = {
    "ctc": speech_tokenizer.ctc_roles,
    "transducer": speech_tokenizer.transducer_roles,
    "aed": speech_tokenizer.canary_roles,
}
#: sections of NeMo's that are written anew, since they name files or tell what the tables tell
_REWRITTEN: Final = (
    "tokenizer",
    "target",
    "nemo_version",
    "model_defaults",
    "train_ds",
    "validation_ds",
    "test_ds",
)
#: how far stored constants may lie from computed ones: older versions of torch and librosa
_TOLERANCE: Final = 1e-5
#: of the prompt tokens that transformers asks for by role; the pieces are NeMo's
_CANARY_ROLES: Final = {
    "bos": "<|startoftranscript|>",
    "eos": "<|endoftext|>",
    "decoder_start": "<|startofcontext|>",
}


CHAT_TEMPLATE: Final = "chat_template.jinja"
#: the prompt of ``prompt_format: canary2`` (nemo/collections/common/prompts/canary2.py), with what a
#: transcription asks for by itself: no context, no emotion, no timestamps
_CHAT_TEMPLATE: Final = """\
{%- for message in messages -%}
{%- for item in message['content'] if item['type'] == 'text' -%}
<|startofcontext|><|startoftranscript|><|emo:undefined|><|{{ item['source_language'] }}|>\
<|{{ item['target_language'] }}|>{{ '<|pnc|>' if item['punctuation'] else '<|nopnc|>' }}\
<|noitn|><|notimestamp|><|nodiarize|>
{%- endfor -%}
{%- endfor -%}
"""
_PROMPT_LITERALS: Final = (
    *("<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|pnc|>", "<|nopnc|>"),
    *("<|noitn|>", "<|notimestamp|>", "<|nodiarize|>"),
)


def tokenizer_files(folder: Folder, config: Mapping[str, Value]) -> dict[str, SourceFile]:
    """The SentencePiece files that model_config.yaml names, by their plain names."""
    section = config.get("tokenizer")
    if not isinstance(section, dict):
        return {}
    named = {speech_tokenizer.MODEL: "model_path", speech_tokenizer.VOCAB: "vocab_path"}
    found = {name: nemo_archive.artifact(folder, section.get(key)) for name, key in named.items()}
    return {name: file for name, file in found.items() if file is not None}


def check_constants(
    checkpoint: Checkpoint, table: SpeechTable, config: Mapping[str, Value], extractor: Mapping[str, Value]
) -> None:
    """The tensors that transformers computes anew must be those that the config describes.

    Raises UnsupportedConfig for a window, filters or positions of another kind.
    """
    if table.constants is None:
        return
    import numpy

    held = set(checkpoint.keys())
    for name, expected in table.constants(config, extractor).items():
        if name not in held:
            continue
        found = checkpoint.read(name)
        exact = found.dtype.itemsize >= 4  # else two or three digits are kept
        if found.shape != expected.shape or not numpy.allclose(
            found.astype(numpy.float64), expected, rtol=0 if exact else 1e-2, atol=_TOLERANCE
        ):
            raise UnsupportedConfig(
                f"{checkpoint.path}: {name} is not what {YAML} describes, and transformers computes it anew",
                hint="convert --to safetensors to have the weights under NeMo's names",
            )


def to_hf(
    folder: Folder,
    yaml: Mapping[str, Value],
    table: SpeechTable,
    config: Mapping[str, Value],
    extractor: Mapping[str, Value],
) -> tuple[dict[str, Value], dict[str, SourceFile | bytes]]:
    """(keys of config.json that do not enter the mathematics, files of the directory)."""
    sources = tokenizer_files(folder, yaml)
    files: dict[str, SourceFile | bytes] = {
        **sources,
        EXTRACTOR: speech_preprocessor.dumps(extractor),
        REST: plain_yaml.dumps({k: v for k, v in yaml.items() if k in INERT and k not in _REWRITTEN}),
    }
    section = yaml.get("tokenizer")
    kind = section.get("type") if isinstance(section, dict) else None
    if speech_tokenizer.MODEL not in sources or kind != "bpe":
        raise UnsupportedConfig(
            f"{folder.path}: the tokenizer is of type {kind!r}"
            + ("" if speech_tokenizer.MODEL in sources else f", without a {speech_tokenizer.MODEL}")
            + "; only a single SentencePiece model has a counterpart",
            hint="convert --to safetensors to have weights and tokenizers as they are",
        )
    source = sources[speech_tokenizer.MODEL]
    pieces = sentencepiece.loads(source.pread(source.size, 0), source.path)
    _check_size(table, len(pieces.pieces), config["vocab_size"], source.path)
    roles = _ROLES[table.head](pieces)
    prompts = _prompt_tokens(pieces) if table.head == "aed" else {}
    ids = {"pad_token_id": roles.pad_id, **{f"{name}_token_id": i for name, (_, i) in prompts.items()}}
    inert = {key: value for key, value in sorted(ids.items()) if value is not None}
    others = {f"{name}_token": prompts[name][0] for name in ("bos", "eos") if name in prompts}
    special = tuple(p.text for p in pieces.pieces if p.text.startswith("<|") and p.text.endswith("|>"))
    if yaml.get("prompt_format") == "canary2" and all(pieces.id_of(t) is not None for t in _PROMPT_LITERALS):
        # SentencePiece begins a text with a space of its own, NeMo's prompts too; transformers does not
        # before a prompt token
        space = "▁" if pieces.add_dummy_prefix else ""
        files[CHAT_TEMPLATE] = _CHAT_TEMPLATE.replace(
            "<|startofcontext|>", space + "<|startofcontext|>"
        ).encode()
    if table.head != "ctc":
        files[GENERATION_CONFIG] = plain_json.dumps(_generation(table, config, inert))
        inert = {**inert, "is_encoder_decoder": True}
    unknown = pieces.unknown[1]
    tokenizer_class = "TokenizersBackend" if table.head == "aed" else "ParakeetTokenizer"
    files[speech_tokenizer.JSON] = speech_tokenizer.tokenizer_json(
        pieces, roles.added, special if table.head == "aed" else ()
    )
    files["tokenizer_config.json"] = speech_tokenizer.tokenizer_config(
        tokenizer_class, unknown, roles.pad, others
    )
    files[PROCESSOR] = plain_json.dumps(_processor(table))
    return inert, files


def _prompt_tokens(pieces: SentencePieceModel) -> dict[str, tuple[str, int]]:
    """(text, id) of Canary's prompt tokens that have roles in transformers, as far as there are any."""
    found = {name: (text, pieces.id_of(text)) for name, text in _CANARY_ROLES.items()}
    return {name: (text, i) for name, (text, i) in found.items() if i is not None}


def _generation(
    table: SpeechTable, config: Mapping[str, Value], ids: Mapping[str, Value]
) -> dict[str, Value]:
    """generation_config.json. A transducer starts from its blank, and never emits a duration as a token."""
    if table.head != "transducer":
        return dict(ids)
    first = config["vocab_size"]
    durations = list(range(first, first + len(config.get("durations", ()))))
    return {
        **ids,
        "decoder_start_token_id": first - 1,
        **({"suppress_tokens": durations} if durations else {}),
    }


def _processor(table: SpeechTable) -> dict[str, Value]:
    """processor_config.json; the feature extractor's own file lies beside it."""
    if table.decoder_type is None:
        return {"processor_class": "CanaryProcessor"}
    return {
        "blank_token": speech_tokenizer.BLANK,
        "decoder_type": table.decoder_type,
        "processor_class": "ParakeetProcessor",
    }


def _check_size(table: SpeechTable, pieces: int, vocab_size: int, where: str) -> None:
    """The model's outputs and the tokenizer must fit each other."""
    wanted = 8 * -(-pieces // 8) if table.head == "aed" else pieces + 1
    if vocab_size != wanted:
        raise UnsupportedConfig(
            f"{where}: has {pieces:,} pieces, for which the model would have {wanted:,} outputs, "
            f"but it has {vocab_size:,}"
        )


def to_archive(model: Model, table: SpeechTable) -> tuple[bytes, dict[str, bytes], dict[str, Any]]:
    """(model_config.yaml, artifacts by member name, tensors that only NeMo keeps) of a model that comes
    from a Hugging Face directory.

    Raises UnsupportedConfig for a directory without a feature extractor or a SentencePiece model.
    """
    extractor = _extractor(model)
    pieces, data = _pieces(model, table)
    _check_size(table, len(pieces.pieces), model.config["vocab_size"], speech_tokenizer.MODEL)
    held = model.files.get(speech_tokenizer.VOCAB)
    vocab = None if held is None else _data(held)
    if vocab is None or speech_tokenizer.is_token_list(vocab):
        vocab = speech_tokenizer.vocab_txt(pieces)
    texts = {speech_tokenizer.MODEL: data, speech_tokenizer.VOCAB: vocab}
    artifacts = {nemo_archive.artifact_name(name, text): text for name, text in texts.items()}
    rest = model.files.get(REST)
    flat: dict[str, Value] = {}
    if rest is not None:
        kept = plain_yaml.loads_mapping(_data(rest), REST)
        flat = dict(flatten({k: v for k, v in kept.items() if k in INERT and k not in _REWRITTEN}))
    flat |= write_extractor(extractor) | write_settings(table.settings, model.config)
    flat |= _labels(table, [piece.text for piece in pieces.pieces])
    model_name, vocab_name = (nemo_archive.ARTIFACT + name for name in artifacts)
    flat |= {
        "tokenizer.dir": "",
        "tokenizer.type": "bpe",
        "tokenizer.model_path": model_name,
        "tokenizer.vocab_path": vocab_name,
        "target": f"{table.nemo.module}.{table.nemo.model}",
    }
    if table.head == "aed":
        flat.setdefault("prompt_format", "canary2")
        flat["tokenizer.custom_tokenizer._target_"] = _CANARY_TOKENIZER
    constants = table.constants(model.config, extractor) if table.constants else {}
    return plain_yaml.dumps(nest(flat)), artifacts, constants


_CANARY_TOKENIZER: Final = "nemo.collections.common.tokenizers.canary_tokenizer.CanaryBPETokenizer"


def _pieces(model: Model, table: SpeechTable) -> tuple[SentencePieceModel, bytes]:
    """The SentencePiece model of a directory, and its file: its own, or one that tokenizer.json gives."""
    own, other = (model.files.get(name) for name in (speech_tokenizer.MODEL, speech_tokenizer.JSON))
    if own is not None:
        data = _data(own)
        return sentencepiece.loads(data, speech_tokenizer.MODEL), data
    if other is None:
        raise UnsupportedConfig(
            f"the directory has neither {speech_tokenizer.MODEL} nor {speech_tokenizer.JSON}, from which "
            "NeMo's tokenizer is made"
        )
    text = _data(other)
    count = model.config["vocab_size"] - 1
    if table.head == "aed":
        count = speech_tokenizer.vocabulary_size(text, speech_tokenizer.JSON)
    pieces = speech_tokenizer.from_tokenizer_json(text, speech_tokenizer.JSON, count)
    return pieces, sentencepiece.dumps(pieces)


def _labels(table: SpeechTable, texts: list[str]) -> dict[str, Value]:
    """The vocabulary, where NeMo's own files repeat it."""
    if table.head == "ctc":
        return {"decoder.vocabulary": texts}
    return {"labels": texts, "joint.vocabulary": texts} if table.head == "transducer" else {}


def _extractor(model: Model) -> dict[str, Value]:
    for name in (EXTRACTOR, PROCESSOR):
        file = model.files.get(name)
        if file is None:
            continue
        data = _data(file)
        if name == EXTRACTOR or "feature_extractor" in plain_json.loads_object(data, name):
            extractor = speech_preprocessor.loads(data, name)
            if extractor["feature_size"] != model.config["feat_in"]:
                raise UnsupportedConfig(
                    f"{name}: feature_size={extractor['feature_size']}, but the encoder takes "
                    f"num_mel_bins={model.config['feat_in']}"
                )
            return extractor
    raise UnsupportedConfig(
        f"the directory has no {EXTRACTOR}, from which NeMo's preprocessor is made",
        hint="save the model's processor into the directory",
    )


def _data(file: SourceFile | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.pread(file.size, 0)
