"""BERT: encoders with the norms after attention and MLP, as a ``BertModel``, with the head that fills masks
(``BertForMaskedLM``), or with that and the one for the next sentence (``BertForPreTraining``).

Source: transformers/models/bert, nemo/collections/llm/bert/model/bert.py and base.py. NeMo's model has a
bias for its output layer even without a head, which nobody reads.

The files of bert-base and bert-large hold all heads, though their config.json says BertForMaskedLM: with
BertForPreTraining for ``architectures`` they are converted whole.
"""

from collections.abc import Mapping
from dataclasses import replace

from nemoconv.mappings import bert_fields, gpt
from nemoconv.mappings.bert_fields import HEADS, Heads
from nemoconv.mappings.config_fields import Value
from nemoconv.mappings.nemo_configs_bert import BERT_DEFAULTS
from nemoconv.mappings.nemo_fields import NemoClasses
from nemoconv.mappings.rules import When, fused_qkv, same, vocabulary
from nemoconv.mappings.table import Module, Part, Rule, Table

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


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    own = {"token_types": config["num_tokentypes"], "hidden_out": config["hidden_size"], "two": 2}
    return gpt.sizes(config) | own


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
ATTENTION = ("core_attention", "linear_proj", "linear_qkv")
BASE = Table(
    architecture="bert",
    hf_class="BertModel",
    nemo=NemoClasses(
        module="nemo.collections.llm.bert.model.bert",
        model="HuggingFaceBertModel",
        config="HuggingFaceBertConfig",
        defaults=BERT_DEFAULTS,
        rules=bert_fields.NEMO_RULES,
    ),
    fields=bert_fields.FIELDS,
    rules=RULES,
    modules=(
        *(Module(NEMO + f"self_attention.{name}") for name in ATTENTION),
        *(Module(NEMO + f"mlp.linear_{name}") for name in ("fc1", "fc2")),
        *(Module(NEMO + name.removesuffix(".")) for name, _ in NORMS),
        Module("output_layer"),
    ),
    ignored=("bert.embeddings.position_ids",),
    tied=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("output_layer.weight", "embedding.word_embeddings.weight"),
    ),
    sizes=sizes,
    spellings=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits, with stand-ins for NeMo's layers",
        "real NeMo import",
    ),
)


def with_heads(hf_class: str, pooler: bool, lm: bool, binary: bool) -> Table:
    """The table of a class with these of :data:`HEADS`."""
    values = pooler, lm, binary
    return replace(
        BASE,
        architecture=f"bert:{hf_class}",
        hf_class=hf_class,
        nemo=replace(BASE.nemo, marks=tuple(zip(HEADS, values, strict=True))),
        fields=(*bert_fields.FIELDS, Heads(values)),
    )


def at_the_top(rule: Rule) -> Rule:
    """The rule for the model without heads, whose tensors have no prefix."""
    return replace(rule, parts=tuple(replace(p, hf=p.hf.removeprefix("bert.")) for p in rule.parts))


MASKED_LM = with_heads("BertForMaskedLM", False, True, False)
PRETRAINING = with_heads("BertForPreTraining", True, True, True)
TABLE = replace(
    with_heads("BertModel", True, False, False),
    architecture="bert",
    rules=tuple(map(at_the_top, RULES)),
    ignored=("embeddings.position_ids",),
    spellings=(*BASE.spellings, (r"^bert\.", "")),
)
