"""The tensors of BERT, with all heads.

Source: transformers/models/bert, nemo/collections/llm/bert/model/bert.py and base.py. NeMo's model has a
bias for its output layer even without a head, which nobody reads.
"""

from ..rules import When, fused_qkv, same, vocabulary
from ..table import Part, Rule
from .bert_fields import HEADS

HF, NEMO = "bert.encoder.layer.{layer}.", "encoder.layers.{layer}."
QKV = ("query", "key", "value")
POOLER, LM_HEAD, BINARY = (((name, True),) for name in HEADS)
#: NeMo's name, Hugging Face's, the axes of the weight, the factor that is cut; the bias has the first axis
LINEARS = (
    ("self_attention.linear_proj.", "attention.output.dense.", "hidden (group query_head head_dim)", "group"),
    ("mlp.linear_fc1.", "intermediate.dense.", "ffn hidden", "ffn"),
    ("mlp.linear_fc2.", "output.dense.", "hidden ffn", "ffn"),
)
NORMS = (
    ("post_att_layernorm.", "attention.output.LayerNorm."),
    ("post_mlp_layernorm.", "output.LayerNorm."),
)
#: beside the embeddings and the layers: NeMo's name, Hugging Face's, the axes of the weight, when it is there
HEAD_LAYERS = (
    ("lm_head.dense.", "cls.predictions.transform.dense.", "hidden_out hidden", LM_HEAD),
    ("lm_head.layer_norm.", "cls.predictions.transform.LayerNorm.", "hidden", LM_HEAD),
    ("binary_head.", "cls.seq_relationship.", "two hidden", BINARY),
)
KINDS = ("weight", "bias")


def both(nemo: str, hf: str, axes: str, cut: str | None = None, when: When = ()) -> tuple[Rule, Rule]:
    """Weight and bias of a layer; a bias has the weight's first axis."""
    first = Rule(nemo, axes, ()).view.axes[0]
    rows = f"({' '.join(first)})"
    return (
        same(nemo + "weight", hf + "weight", axes, cut=cut, when=when),
        same(nemo + "bias", hf + "bias", rows, cut=cut if cut in first else None, when=when),
    )


RULES = (
    vocabulary("embedding.word_embeddings.weight", "bert.embeddings.word_embeddings.weight"),
    same(
        "embedding.position_embeddings.weight",
        "bert.embeddings.position_embeddings.weight",
        "positions hidden",
    ),
    same(
        "embedding.tokentype_embeddings.weight",
        "bert.embeddings.token_type_embeddings.weight",
        "token_types hidden",
    ),
    *both("encoder.initial_layernorm.", "bert.embeddings.LayerNorm.", "hidden"),
    *(
        fused_qkv(
            NEMO + f"self_attention.linear_qkv.{kind}",
            *(HF + f"attention.self.{name}.{kind}" for name in QKV),
            bias=kind == "bias",
        )
        for kind in KINDS
    ),
    *(rule for nemo, hf, axes, cut in LINEARS for rule in both(NEMO + nemo, HF + hf, axes, cut)),
    *(rule for nemo, hf in NORMS for rule in both(NEMO + nemo, HF + hf, "hidden")),
    *both("pooler.dense.", "bert.pooler.dense.", "hidden_out hidden", when=POOLER),
    *(rule for nemo, hf, axes, when in HEAD_LAYERS for rule in both(nemo, hf, axes, when=when)),
    Rule(
        "output_layer.bias",
        "vocab",
        (Part("cls.predictions.bias", "vocab", (("vocab", 0, "true_vocab"),)),),
        cut="vocab",
        pad="vocab",
        hf_when=LM_HEAD,
        idle=True,
    ),
)
