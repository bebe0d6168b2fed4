"""``model_config.yaml`` and the tokenizer of a ``.nemo`` to be: what NeMo 1 builds a model from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...errors import LayoutError, UnsupportedArchitecture, UnsupportedConfig
from ...mappings.hf.fields import Value
from ...mappings.nemo1 import families as nemo1_families
from ...mappings.nemo1.entry import Nemo1
from ...mappings.nemo1.families import Family
from ...mappings.nemo1.fields import write_yaml
from ...mappings.nemo2 import classes
from ...mappings.nemo2.fields import harmless, plain, text
from ...mappings.nemo2.known import MAPPED
from ...mappings.table import Table
from ...stores.files import SourceFile
from ...tensors.layout import Layout
from ..archive.archive import artifact_name
from ..hf.checkpoint import TOKENIZER_FILES
from .config import HF_FOLDER

#: keys that say nothing of the model, but that NeMo 1 reads unconditionally when it builds one. Values:
#: NeMo's own examples/nlp/language_modeling/conf/megatron_gpt_config.yaml at 2.4
_RUN: Final[dict[str, Any]] = {
    "restore_from_path": None,
    "micro_batch_size": 1,
    "global_batch_size": 8,
    "use_scaled_init_method": True,
    "ffn_dropout": 0.0,
    "apply_query_key_layer_scaling": False,
    "do_layer_norm_weight_decay": False,
    "pre_process": True,
    "post_process": True,
    "persist_layer_norm": True,
    "headscale": False,
    "transformer_block_type": "pre_ln",
    "normalize_attention_scores": True,
    "attention_type": "multihead",
    "overlap_p2p_comm": False,
    "batch_p2p_comm": True,
    "native_amp_init_scale": 4294967296,
    "native_amp_growth_interval": 1000,
    "hysteresis": 2,
    "fp32_residual_connection": False,
    "fp16_lm_cross_entropy": False,
    "megatron_amp_O2": False,
    "grad_allreduce_chunk_size_mb": 125,
    "grad_div_ar_fusion": True,
    "gradient_accumulation_fusion": False,
    "bias_dropout_add_fusion": True,
    "masked_softmax_fusion": True,
    "get_attention_mask_from_fusion": True,
    "apply_rope_fusion": False,
    "seed": 1234,
    "resume_from_checkpoint": None,
    "use_cpu_initialization": False,
    "onnx_safe": False,
    "apex_transformer_log_level": 30,
    "gradient_as_bucket_view": True,
    "sync_batch_comm": False,
    "activations_checkpoint_granularity": None,
    "activations_checkpoint_method": None,
    "activations_checkpoint_num_layers": None,
    "num_micro_batches_with_partial_activation_checkpoints": None,
    "activations_checkpoint_layers_per_pipeline": None,
    "sequence_parallel": False,
    "transformer_engine": True,
    "fp8": False,
    "fp8_e4m3": False,
    "fp8_hybrid": True,
    "fp8_margin": 0,
    "fp8_interval": 1,
    "fp8_amax_history_len": 1024,
    "fp8_amax_compute_algo": "max",
    "reduce_amax": True,
    "use_emha": False,
    "data": {
        "index_mapping_dir": None,
        "data_impl": "mmap",
        "splits_string": "900,50,50",
        "skip_warmup": True,
        "num_workers": 2,
        "dataloader_type": "single",
        "reset_position_ids": False,
        "reset_attention_mask": False,
        "eod_mask_loss": False,
        "validation_drop_last": True,
        "no_seqlen_plus_one_input_tokens": False,
        "pad_samples_to_global_batch_size": False,
        "shuffle_documents": True,
    },
    "nsys_profile": {
        "enabled": False,
        "start_step": 10,
        "end_step": 10,
        "ranks": [0],
        "gen_shape": False,
    },
    "optim": {
        "name": "fused_adam",
        "lr": 2e-4,
        "weight_decay": 0.01,
        "betas": [0.9, 0.98],
    },
}


#: the last NeMo with Megatron GPT models, whose layout is written
NEMO_VERSION: Final = "2.4.1"
_NONE: Final = object()
_PRECISIONS: Final = {"float32": 32, "float16": 16, "bfloat16": "bf16"}


def family_for(table: Table) -> Family:
    """The NeMo class that can be told to be a table's model. Raises UnsupportedArchitecture."""
    family = nemo1_families.family_for(table.architecture)
    if family is None:
        known = [name for family in nemo1_families.FAMILIES for name in family.architectures]
        raise UnsupportedArchitecture(
            f"no model class of NeMo 1 can be told to be a {table.architecture!r}",
            hint=f"they can be told to be one of: {', '.join(known)}",
        )
    return family


def only_ranks(table: Table) -> bool:
    """Whether only files cut by rank can hold a table's model."""
    entry = family_for(table).entry(table.architecture)
    return entry is not None and entry.only_ranks


def check_stages(family: Family, layout: Layout) -> None:
    """Raise LayoutError for pipeline stages that NeMo 1 does not divide a class's models into."""
    if family.whole_pipeline and layout.pipeline_parallel_size > 1:
        raise LayoutError(
            f"NeMo 1 does not divide this model into pipeline stages: {family.whole_pipeline}",
            hint="leave out --pp",
        )


def build_yaml(
    table: Table,
    config: Mapping[str, Value],
    layout: Layout,
    rows: int,
    tokenizer: Mapping[str, Value],
    *,
    ranks: bool = False,
) -> dict[str, Value]:
    """``model_config.yaml`` that NeMo 1 builds this model from, with ``rows`` of vocabulary; ``ranks``: its
    weights lie cut by rank.

    Raises UnsupportedArchitecture for a table that NeMo 1 needs code of its own for, UnsupportedConfig
    for what it has no word for.
    """
    family, nemo = family_for(table), table.nemo
    entry = family.entry(table.architecture)
    assert entry is not None
    size = {"vocab_size": rows, "tensor_parallel_size": layout.tensor_parallel_size}
    config_class, fields = nemo.write({**config, **size})
    stated = {**_told(nemo.defaults[config_class], family, entry), **fields, **entry.words, **entry.written}
    if stated["gated_linear_unit"]:  # rounding only; NeMo 1 has no such kernel for every gated MLP
        stated["bias_activation_fusion"] = False
    custom = {name: stated.pop(name) for name in entry.customized}
    for name, value in entry.implied.items():
        if plain(stated.pop(name, value)) != value:
            raise UnsupportedConfig(f"NeMo 1 has no word for {name}={text(fields[name])}, only {text(value)}")
    if layout.virtual_pipeline_parallel_size > 1 or layout.stages is not None:
        raise UnsupportedConfig(
            "a .nemo has no interleaved or freely dealt pipeline stages", hint="leave out --vpp and --stages"
        )
    dtype = str(config.get("params_dtype") or "float32")
    if dtype not in _PRECISIONS:
        raise UnsupportedConfig(f"NeMo 1 has no precision for {dtype}", hint="pass --dtype")
    divisor = fields.get("make_vocab_size_divisible_by", _divisor(family, rows, layout))
    own = ranks and family.own_ranks
    return {
        **_RUN,
        family.mcore: not own,
        "transformer_engine": not own,
        "tensor_model_parallel_size": layout.tensor_parallel_size,
        "pipeline_model_parallel_size": layout.pipeline_parallel_size,
        "virtual_pipeline_model_parallel_size": None,
        "expert_model_parallel_size": layout.expert_parallel_size,
        **_ends(layout),
        **write_yaml(stated, family.rules),
        **({"mcore_customization_config": custom} if custom else {}),
        **({} if family.pads_vocabulary else {"override_vocab_size": rows}),
        "make_vocab_size_divisible_by": divisor if family.pads_vocabulary else 1,
        "tokenizer": {**tokenizer, **family.tokenizer},
        "dist_ckpt_format": "torch_dist",
        "precision": _PRECISIONS[dtype],
        "target": (ranks and family.rank_target) or family.target,
        "nemo_version": NEMO_VERSION,
    }


def _told(defaults: Mapping[str, Value], family: Family, entry: Nemo1) -> dict[str, Value]:
    """What NeMo 1 is told of a NeMo 2 class's defaults: first what every decoder is made by, then what it has
    words of its own for, and the rest where megatron-core, to which NeMo 1 leaves it, has it otherwise."""
    core = classes.defaults("TransformerConfig")
    own = {*MAPPED, *entry.customized, *entry.implied}.union(*(rule.fields for rule in family.rules))
    return {
        name: defaults[name]
        for name in dict.fromkeys((*MAPPED, *defaults))
        if name in defaults
        and (name in own or not (harmless(name, defaults) or core.get(name, _NONE) == defaults[name]))
    }


def _divisor(family: Family, rows: int, layout: Layout) -> int:
    """The usual one if that can give ``rows``, else the one that gives them for every smaller vocabulary."""
    count = layout.tensor_parallel_size
    return family.vocab_divisor if rows % (family.vocab_divisor * count) == 0 else rows // count


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
    files: Mapping[str, SourceFile | bytes], model_file: str = "tokenizer.model"
) -> tuple[dict[str, Value], dict[str, bytes], Sequence[str]]:
    """(the ``tokenizer`` section, members to write, notes) for files by their Hugging Face names;
    ``model_file`` is that of a SentencePiece model."""
    contents = {
        name: file if isinstance(file, bytes) else file.pread(file.size, 0) for name, file in files.items()
    }
    section: dict[str, Value] = {"library": None, "type": None, "model": None}
    section |= {"vocab_file": None, "merge_file": None, "sentencepiece_legacy": False}
    members = {f"{HF_FOLDER}/{name}": data for name, data in contents.items() if name != model_file}
    model = contents.get(model_file)
    if model is not None:
        name = artifact_name(model_file, model)
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
