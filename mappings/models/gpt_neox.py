"""GPT-NeoX: a ``GPTNeoXForCausalLM``, with the rotary embedding on a quarter of each head.

Source: transformers/models/gpt_neox, nemo/collections/llm/gpt/model/base.py. Pythia and GPT-NeoX-20B run
attention and MLP side by side (``use_parallel_residual``). Neither NeMo 2 nor megatron-core has such
layers, so only models that run one after the other (rinna's and LINE's Japanese ones) have a counterpart.
"""

from ..blocks import MODULES, NEMO, UNTIED, layer_norms
from ..families.gpt import PLAIN_LAYERS
from ..hf.fields import Dtype, Field, Fixed, Unread
from ..hf.fields_gpt import Gelu, NeoXRope, Only, PlainHeads
from ..nemo2.configs_gpt import GPT_DEFAULTS
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields import NemoClasses, Same, with_rules
from ..rules import same, vocabulary
from ..table import Table

HF = "gpt_neox.layers.{layer}."
PARALLEL = "NeMo 2 and megatron-core have no layers that run attention and MLP side by side"
LINEARS = (
    ("self_attention.linear_qkv.", "attention.query_key_value.", "(group head head_dim)", "hidden", "group"),
    ("self_attention.linear_proj.", "attention.dense.", "hidden", "(group query_head head_dim)", "group"),
    ("mlp.linear_fc1.", "mlp.dense_h_to_4h.", "ffn", "hidden", "ffn"),
    ("mlp.linear_fc2.", "mlp.dense_4h_to_h.", "hidden", "ffn", "ffn"),
)

TABLE = Table(
    architecture="gpt_neox",
    hf_class="GPTNeoXForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.base",
        model="GPTModel",
        config="GPTConfig",
        defaults=GPT_DEFAULTS,
        rules=with_rules(
            NEMO_FIELDS,
            *PLAIN_LAYERS,
            NemoFixed("position_embedding_type", "rope", written=True),
            Same("rotary_percent"),
        ),
        marks=(("position_embedding_type", "rope"),),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 44),
        Field("hidden_size", "hidden_size", 6144),
        Field("intermediate_size", "ffn_hidden_size", 24576),
        Field("num_attention_heads", "num_attention_heads", 64),
        PlainHeads(),
        Field("vocab_size", "vocab_size", 50432),
        Field("max_position_embeddings", "seq_length", 2048),
        Field("layer_norm_eps", "layernorm_epsilon", 1e-5, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Only("use_parallel_residual", False, default=True, why=PARALLEL),
        Gelu("hidden_act", "gelu", "gelu_fast"),
        Fixed("attention_bias", True),
        Unread(("hidden_dropout", "classifier_dropout")),
        NeoXRope(),
        Dtype(),
    ),
    rules=(
        vocabulary("embedding.word_embeddings.weight", "gpt_neox.embed_in.weight"),
        *layer_norms("input", HF + "input_layernorm"),
        *layer_norms("mlp", HF + "post_attention_layernorm"),
        *(
            same(NEMO + nemo + "weight", HF + hf + "weight", f"{rows} {columns}", cut=cut)
            for nemo, hf, rows, columns, cut in LINEARS
        ),
        *(
            same(NEMO + nemo + "bias", HF + hf + "bias", rows, cut=None if rows == "hidden" else cut)
            for nemo, hf, rows, _, cut in LINEARS
        ),
        *layer_norms("final", "gpt_neox.final_layer_norm"),
        vocabulary("output_layer.weight", "embed_out.weight", when=UNTIED),
    ),
    modules=MODULES,
    ignored=tuple(HF + f"attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")),
    tied=(
        ("embed_out.weight", "gpt_neox.embed_in.weight"),
        ("output_layer.weight", "embedding.word_embeddings.weight"),
    ),
    spellings=((r"^lm_head\.", "embed_out."),),
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
