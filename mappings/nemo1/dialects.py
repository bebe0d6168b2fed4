"""What NeMo 1's own implementation (``mcore_gpt``, ``mcore_bert`` or ``mcore_t5`` off) calls the tensors that
the tables name in megatron-core's words.

Source: megatron/gpt_model.py, megatron/bert/bert_model.py and, of modules/common/megatron, transformer.py and
token_level_encoder_decoder.py of NeMo 1.0 to 2.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Dialect:
    """Pairs (NeMo's own, the table's): ``wholes`` of whole names, ``tops`` of their beginnings, ``modules``
    of what stands inside. ``stack`` is the module that holds the layers. ``older`` are pairs (first name of
    a module, what NeMo itself calls it now).

    Where several of NeMo's names stand for one of the table's, the first is the one that is written.
    """

    stack: str
    wholes: tuple[tuple[str, str], ...]
    tops: tuple[tuple[str, str], ...]
    modules: tuple[tuple[str, str], ...]
    older: tuple[tuple[str, str], ...] = ()
    #: (a module's beginning in the table's words, pairs as in ``modules`` that hold only inside it)
    within: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    #: what all names of the class begin with
    prefix: str = "model."
    #: (copy, original) of whole names that every file has both of
    copies: tuple[tuple[str, str], ...] = ()

    def _inside(self, name: str) -> tuple[tuple[str, str], ...]:
        return next((pairs for start, pairs in self.within if name.startswith(start)), ())

    def read(self, key: str) -> str:
        """The table's name of what a state dict calls ``key``, in either implementation."""
        for own, ours in self.wholes:
            if key == own:
                return ours
        for own, ours in self.tops:
            if key.startswith(own):
                key = ours + key[len(own) :]
                break
        for own, ours in (*self.older, *self._inside(key), *self.modules):
            key = key.replace(own, ours)
        return key

    def write(self, name: str) -> str:
        """What NeMo's own implementation calls a tensor of the table."""
        for own, ours in self.wholes:
            if name == ours:
                return own
        for own, ours in (*self._inside(name), *self.modules):
            name = name.replace(ours, own)
        for own, ours in self.tops:
            if name.startswith(ours):
                return own + name[len(ours) :]
        return name


_EMBEDDING: Final = ("language_model.embedding.", "embedding.")
_LAYERS: Final = (
    (".self_attention.query_key_value.", ".self_attention.linear_qkv."),
    (".self_attention.dense.", ".self_attention.linear_proj."),
    (".mlp.dense_h_to_4h.", ".mlp.linear_fc1."),
    (".mlp.dense_4h_to_h.", ".mlp.linear_fc2."),
)
#: the last pipeline stage's copy of a tied embedding
_COPY: Final = ("word_embeddings.weight", "output_layer.weight")

GPT: Final = Dialect(
    stack="decoder",
    wholes=(_COPY,),
    tops=(
        _EMBEDDING,
        ("language_model.output_layer.", "output_layer."),
        ("language_model.rotary_pos_emb.", "rotary_pos_emb."),
        ("language_model.encoder.", "decoder."),
        ("language_model.transformer.", "decoder."),
    ),
    modules=(*_LAYERS, (".post_attention_layernorm.", ".pre_mlp_layernorm.")),
    older=((".attention.", ".self_attention."),),
)
_BERT_TOPS: Final = (
    _EMBEDDING,
    ("language_model.encoder.", "encoder."),
    ("language_model.pooler.", "pooler."),
    ("lm_head.layernorm.", "lm_head.layer_norm."),
)
_BERT_WHOLES: Final = (_COPY, ("lm_head.bias", "output_layer.bias"))
#: with the norms after attention and MLP, which NeMo's layers keep under the names of those before them
BERT: Final = Dialect(
    stack="encoder",
    wholes=_BERT_WHOLES,
    tops=_BERT_TOPS,
    modules=(
        *_LAYERS,
        (".input_layernorm.", ".post_att_layernorm."),
        (".post_attention_layernorm.", ".post_mlp_layernorm."),
    ),
)
#: with the norms before them
MEGATRON_BERT: Final = Dialect(
    stack="encoder",
    wholes=_BERT_WHOLES,
    tops=_BERT_TOPS,
    modules=(
        (".input_layernorm.", ".self_attention.linear_qkv.layer_norm_"),
        (".post_attention_layernorm.", ".mlp.linear_fc1.layer_norm_"),
        *_LAYERS,
    ),
)
_T5_STACKS: Final = tuple((f"enc_dec_model.{stack}.model.", f"{stack}.") for stack in ("encoder", "decoder"))
_FIRST_NORM: Final = (".input_layernorm.", ".self_attention.linear_qkv.layer_norm_")
_MLP_NORM: Final = ".mlp.linear_fc1.layer_norm_"
#: ``post_attention_layernorm`` stands before what follows attention: the MLP, or attention to the encoder
T5: Final = Dialect(
    stack="decoder",
    wholes=tuple(
        (
            f"{stack}_relative_position_embedding.relative_position_embedding.weight",
            f"{stack}_relative_pos_emb.relative_attention_bias.weight",
        )
        for stack in ("encoder", "decoder")
    ),
    tops=(
        ("encoder_embedding.", "embedding."),
        ("decoder_embedding.", "embedding."),
        ("tokens_head.", "lm_head.output_layer."),
        *_T5_STACKS,
    ),
    modules=(
        *_LAYERS,
        (".inter_attention.query.", ".cross_attention.linear_q."),
        (".inter_attention.key_value.", ".cross_attention.linear_kv."),
        (".inter_attention.dense.", ".cross_attention.linear_proj."),
    ),
    within=(
        ("encoder.", (_FIRST_NORM, (".post_attention_layernorm.", _MLP_NORM))),
        (
            "decoder.",
            (
                _FIRST_NORM,
                (".post_inter_attention_layernorm.", _MLP_NORM),
                (".post_attention_layernorm.", ".pre_cross_attn_layernorm."),
            ),
        ),
    ),
    prefix="enc_dec_model.",
    copies=(("decoder_embedding.word_embeddings.weight", "encoder_embedding.word_embeddings.weight"),),
)
