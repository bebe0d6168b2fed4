"""What sets each architecture apart, as data: its names and its blocks.

Sizes, windows and scales are in the model config, which every mapping table reads into the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ....errors import UnsupportedArchitecture
from ....mappings.families.deepseek import layer_sets as dense_first
from ....mappings.hf.fields import Value
from ....mappings.models.llama4_text import layer_sets as llama4_layers
from .blocks import Gated, Norm, PackedGated, Plain
from .experts import Experts, Mlp, Router, ScaledExperts, StackedExperts
from .projections import Latent, Packed, Projections, Separate

RMS, RMS_OF_1_PLUS = Norm("rms"), Norm("rms", offset=1.0)
LAYER, LAYER_OF_1_PLUS = Norm("layer"), Norm("layer", offset=1.0)
LLAMA_PROJECTIONS, LLAMA_MLP = Separate(), Gated()


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder; the defaults are a Llama. Names are Hugging Face's, those in a layer without its prefix.

    ``activation`` None stands for the config's ``hidden_act``. ``positions`` is a learned table, in place
    of rotation. ``whole_every``: every so many layers, one sees all tokens where the others have a window;
    a number or a config field; None: all layers have the window, if the config has one. ``local_rope``:
    layers with a window are rotated by ``rotary_base_local``; ``neighbours``: rotation pairs neighbouring
    elements, not halves. ``sinks``: a logit per head that takes part in the softmax and in nothing else.
    ``dense``: the MLP of layers that ``layer_sets`` (the mapping table's) calls dense. ``chunked``: layers
    that are rotated see only their chunk of ``attention_chunk_size`` tokens and normalize heads afterwards,
    and every ``nope_layer_interval``-th does neither. ``genai``: the kind that onnxruntime-genai
    is told; "decoder" is any. ``generates``: with a cache and a head; else attention goes both ways.
    ``score``: weighs the states of a row, pooled.
    """

    embedding: str = "model.embed_tokens"
    positions: str | None = None
    layer: str = "model.layers.{}."
    final_norm: str = "model.norm"
    head: str = "lm_head"

    norm: Norm = RMS
    attention_norm: str = "input_layernorm"
    projections: Projections = LLAMA_PROJECTIONS
    heads_norms: tuple[str, str] | None = None
    sinks: str | None = None
    attention_output: str = "self_attn.o_proj"
    attention_output_norm: str | None = None
    mlp_norm: str = "post_attention_layernorm"
    mlp: Mlp = LLAMA_MLP
    dense: Mlp | None = None
    layer_sets: Callable[[Mapping[str, Value]], Mapping[str, frozenset[int]]] | None = None
    mlp_output_norm: str | None = None
    activation: str | None = "silu"

    whole_every: int | str | None = None
    local_rope: bool = False
    neighbours: bool = False
    chunked: bool = False
    scaled_embedding: bool = False
    transposed_weights: bool = False
    genai: str = "decoder"
    generates: bool = True
    score: str = ""

    def mlp_of(self, config: Mapping[str, Value], layer: int) -> Mlp:
        """The MLP of a layer."""
        dense = self.layer_sets(config)["dense"] if self.layer_sets is not None else ()
        return self.dense if self.dense is not None and layer in dense else self.mlp

    def has_window(self, config: Mapping[str, Value], layer: int) -> bool:
        """Whether a layer sees a window only, in a model that has one."""
        every = config[self.whole_every] if isinstance(self.whole_every, str) else self.whole_every
        return every is None or (layer + 1) % every != 0


LLAMA = Decoder(genai="llama")
MISTRAL = replace(LLAMA, genai="mistral")
QWEN2 = replace(LLAMA, genai="qwen2")
QWEN3 = replace(LLAMA, heads_norms=("self_attn.q_norm", "self_attn.k_norm"), genai="qwen3")

GEMMA = replace(
    LLAMA,
    norm=RMS_OF_1_PLUS,
    activation="gelu_pytorch_tanh",
    scaled_embedding=True,
    genai="gemma",
)
GEMMA2 = replace(
    GEMMA,
    attention_output_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_output_norm="post_feedforward_layernorm",
    whole_every=2,
    genai="gemma2",
)
GEMMA3 = replace(
    GEMMA2, heads_norms=QWEN3.heads_norms, whole_every="window_pattern", local_rope=True, genai="gemma3_text"
)

PHI3 = replace(
    LLAMA,
    projections=Packed("self_attn.qkv_proj"),
    mlp=PackedGated("mlp.gate_up_proj", "mlp.down_proj"),
    genai="phi3",
)
NEMOTRON = replace(
    LLAMA,
    norm=LAYER_OF_1_PLUS,
    mlp=Plain("mlp.up_proj", "mlp.down_proj"),
    activation="relu2",
    genai="nemotron",
)
STARCODER2 = Decoder(norm=LAYER, mlp=Plain("mlp.c_fc", "mlp.c_proj"), activation=None)

GPT2 = Decoder(
    embedding="transformer.wte",
    positions="transformer.wpe",
    layer="transformer.h.{}.",
    final_norm="transformer.ln_f",
    norm=LAYER,
    attention_norm="ln_1",
    projections=Packed("attn.c_attn"),
    attention_output="attn.c_proj",
    mlp_norm="ln_2",
    mlp=Plain("mlp.c_fc", "mlp.c_proj"),
    activation=None,
    transposed_weights=True,
)
GPT_BIGCODE = replace(GPT2, projections=Packed("attn.c_attn", by_group=True), transposed_weights=False)
GPT_NEOX = Decoder(
    embedding="gpt_neox.embed_in",
    layer="gpt_neox.layers.{}.",
    final_norm="gpt_neox.final_layer_norm",
    head="embed_out",
    norm=LAYER,
    projections=Packed("attention.query_key_value", by_group=True),
    attention_output="attention.dense",
    mlp=Plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    activation=None,
)

MIXTRAL = replace(
    LLAMA,
    mlp=Experts(Router("block_sparse_moe.gate"), "block_sparse_moe.experts.{}.", Gated("w1", "w3", "w2")),
    genai="decoder",
)
QWEN_EXPERTS = Experts(Router("mlp.gate"), "mlp.experts.{}.", Gated("gate_proj", "up_proj", "down_proj"))
QWEN3_MOE = replace(QWEN3, mlp=QWEN_EXPERTS, genai="decoder")

QWEN2_MOE = replace(
    QWEN2,
    mlp=replace(
        QWEN_EXPERTS,
        shared=Gated(*(f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down"))),
        shared_gate="mlp.shared_expert_gate",
    ),
    genai="decoder",
)
GPT_OSS = replace(
    LLAMA,
    sinks="self_attn.sinks",
    mlp=StackedExperts(Router("mlp.router"), "mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    whole_every=2,
    genai="decoder",
)

GLM = replace(LLAMA, mlp=PackedGated("mlp.gate_up_proj", "mlp.down_proj"), neighbours=True, genai="decoder")
GLM4 = replace(
    GLM,
    attention_output_norm="post_self_attn_layernorm",
    mlp_output_norm="post_mlp_layernorm",
)
ERNIE4_5 = replace(LLAMA, neighbours=True, genai="ernie4_5")
SMOLLM3 = replace(LLAMA, genai="smollm3")
SEED_OSS = replace(LLAMA, genai="decoder")
SHARED = Gated(*(f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")))
CORRECTED = Router("mlp.gate", "sigmoid", "mlp.gate.e_score_correction_bias", normalized=True)
GLM4_MOE = replace(
    LLAMA,
    heads_norms=QWEN3.heads_norms,
    mlp=replace(QWEN_EXPERTS, router=CORRECTED, shared=SHARED),
    dense=LLAMA_MLP,
    layer_sets=dense_first,
    genai="decoder",
)
DEEPSEEK_V3 = replace(
    LLAMA,
    projections=Latent(),
    neighbours=True,
    mlp=GLM4_MOE.mlp,
    dense=LLAMA_MLP,
    layer_sets=dense_first,
    genai="decoder",
)
DEEPSEEK_V2 = replace(
    DEEPSEEK_V3,
    mlp=replace(QWEN_EXPERTS, router=Router("mlp.gate", normalized=False), shared=SHARED),
)
LLAMA4 = replace(
    LLAMA,
    mlp=ScaledExperts(
        Router("feed_forward.router", "sigmoid", normalized=False),
        "feed_forward.experts.gate_up_proj",
        "feed_forward.experts.down_proj",
        Gated(*(f"feed_forward.shared_expert.{name}_proj" for name in ("gate", "up", "down"))),
    ),
    dense=Gated(*(f"feed_forward.{name}_proj" for name in ("gate", "up", "down"))),
    layer_sets=llama4_layers,
    neighbours=True,
    chunked=True,
    genai="decoder",
)

LLAMA_BIDIREC = replace(
    LLAMA, embedding="embed_tokens", layer="layers.{}.", final_norm="norm", generates=False
)

DECODERS: Final[Mapping[str, Decoder]] = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "phi3": PHI3,
    "nemotron": NEMOTRON,
    "starcoder2": STARCODER2,
    "gpt2": GPT2,
    "gpt_bigcode": GPT_BIGCODE,
    "gpt_neox": GPT_NEOX,
    "mixtral": MIXTRAL,
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "gpt_oss": GPT_OSS,
    "glm": GLM,
    "glm4": GLM4,
    "ernie4_5": ERNIE4_5,
    "smollm3": SMOLLM3,
    "seed_oss": SEED_OSS,
    "glm4_moe": GLM4_MOE,
    "glm4_moe_lite": DEEPSEEK_V3,
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": DEEPSEEK_V3,
    "llama4_text": LLAMA4,
    "llama_bidirec": LLAMA_BIDIREC,
    "llama_bidirec:LlamaBidirectionalForSequenceClassification": replace(
        LLAMA, generates=False, score="score"
    ),
}


@dataclass(frozen=True, slots=True)
class Encoder:
    """A BERT; it generates nothing. ``prefix`` is of all but the heads. Outputs: ``pooled`` of the first
    token, which is asked about the ``next_sentence`` or not; ``predictions`` of the words, instead of the
    states of all tokens."""

    prefix: str = "bert."
    pooled: str = ""
    next_sentence: bool = False
    predictions: str = ""
    generates: bool = False


ENCODERS: Final[Mapping[str, Encoder]] = {
    "bert": Encoder(prefix="", pooled="pooler_output"),
    "bert:BertForMaskedLM": Encoder(predictions="logits"),
    "bert:BertForPreTraining": Encoder(
        pooled="seq_relationship_logits", next_sentence=True, predictions="prediction_logits"
    ),
}


@dataclass(frozen=True, slots=True)
class Speech:
    """A speech model of several graphs, see :mod:`nemoconv.converters.onnx.graph.speech`; ``head`` is what
    makes text of its encoder's states, ``nemo`` NeMo's class. It generates tokens, but not with one graph and
    a cache."""

    head: str
    nemo: str
    generates: bool = False


SPEECH: Final[Mapping[str, Speech]] = {
    "parakeet_ctc": Speech("ctc", "EncDecCTCModelBPE"),
    "parakeet_rnnt": Speech("transducer", "EncDecRNNTBPEModel"),
    "parakeet_tdt": Speech("transducer", "EncDecRNNTBPEModel"),
    "canary": Speech("aed", "EncDecMultiTaskModel"),
}


def find(architecture: str) -> Decoder | Encoder | Speech:
    """What is known of an architecture. Raises UnsupportedArchitecture, naming those there are."""
    known: Mapping[str, Decoder | Encoder | Speech] = {**DECODERS, **ENCODERS, **SPEECH}
    if architecture not in known:
        raise UnsupportedArchitecture(
            f"there is no ONNX graph for {architecture!r}", hint=f"one of {', '.join(known)}"
        )
    return known[architecture]
