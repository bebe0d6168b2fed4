"""Falcon: a ``FalconForCausalLM`` with rotary embeddings (7B, 11B, 40B, 180B), in NeMo 1's archives only.

Its layers run attention and MLP side by side, or one after the other, with norms of their own. NeMo 1 has a
layer for that (``name: megatron_falcon_gpt``); NeMo 2 and megatron-core have none. Keys and values of a group
lie beside their queries on both sides, so no matrix changes.

Source: transformers/models/falcon, scripts/checkpoint_converters/convert_falcon_hf_to_nemo.py and
megatron/falcon of NeMo 1.21 to 2.4.
"""

from ..blocks import NEMO, UNTIED
from ..rules import same, vocabulary
from ..table import Module, Rule, Table
from . import falcon_fields

HF = "transformer.h.{layer}."
ATTENTION = "self_attention."
TWO = (("new_decoder_architecture", True),)
ONE = (("new_decoder_architecture", False),)
SERIAL = (("parallel_attention", False),)
BIASES = (("add_bias_linear", True),)
#: NeMo's name, Hugging Face's, rows, columns, the factor that is cut
LINEARS = (
    (ATTENTION + "linear_qkv.", ATTENTION + "query_key_value.", "(group head head_dim)", "hidden", "group"),
    (ATTENTION + "linear_proj.", ATTENTION + "dense.", "hidden", "(group query_head head_dim)", "group"),
    ("mlp.linear_fc1.", "mlp.dense_h_to_4h.", "ffn", "hidden", "ffn"),
    ("mlp.linear_fc2.", "mlp.dense_4h_to_h.", "hidden", "ffn", "ffn"),
)  # fmt: skip
#: NeMo's name, Hugging Face's, when it is there; all are norms of their own, not parts of a linear layer
NORMS = (
    ("input_layernorm.", "ln_attn.", TWO),
    ("pre_mlp_layernorm.", "ln_mlp.", TWO),
    ("input_layernorm.", "input_layernorm.", ONE),
    ("post_self_attn_layernorm.", "post_attention_layernorm.", SERIAL),
)


def _norm(nemo: str, hf: str, when: tuple[tuple[str, object], ...] = ()) -> tuple[Rule, ...]:
    return tuple(same(nemo + kind, hf + kind, "hidden", when=when) for kind in ("weight", "bias"))


TABLE = Table(
    architecture="falcon",
    hf_class="FalconForCausalLM",
    nemo=falcon_fields.CLASSES,
    fields=falcon_fields.FIELDS,
    rules=(
        vocabulary("embedding.word_embeddings.weight", "transformer.word_embeddings.weight"),
        *(rule for nemo, hf, when in NORMS for rule in _norm(NEMO + nemo, HF + hf, when)),
        *(
            same(NEMO + nemo + "weight", HF + hf + "weight", f"{rows} {columns}", cut=cut)
            for nemo, hf, rows, columns, cut in LINEARS
        ),
        *(
            same(
                NEMO + nemo + "bias",
                HF + hf + "bias",
                rows,
                cut=None if rows == "hidden" else cut,
                when=BIASES,
            )
            for nemo, hf, rows, _, cut in LINEARS
        ),
        *_norm("decoder.final_layernorm.", "transformer.ln_f."),
        vocabulary("output_layer.weight", "lm_head.weight", when=UNTIED),
    ),
    modules=(
        *(Module(NEMO + ATTENTION + name) for name in ("core_attention", "linear_proj", "linear_qkv")),
        *(Module(NEMO + f"mlp.linear_{name}") for name in ("fc1", "fc2")),
        Module(NEMO + "input_layernorm"),
        Module(NEMO + "pre_mlp_layernorm", when=TWO),
        Module(NEMO + "post_self_attn_layernorm", when=SERIAL),
        Module("decoder.final_layernorm"),
    ),
    ignored=tuple(HF + f"self_attention.{name}" for name in ("rotary_emb.inv_freq", "maybe_rotary.inv_freq")),
    tied=(
        ("lm_head.weight", "transformer.word_embeddings.weight"),
        ("output_layer.weight", "embedding.word_embeddings.weight"),
    ),
    verified=(
        "bit-equal",
        "transformers logits",
        "NeMo 1's own restore and logits, with stand-ins for TransformerEngine",
    ),
)
