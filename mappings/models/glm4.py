"""GLM-4-0414 and GLM-Z1: a ``Glm4ForCausalLM``, a GLM that also normalises what attention and MLP give.

NeMo 2 has no class for it, but layers with four norms: those of its Gemma 2. A ``GPTModel`` with a
``Gemma2Config`` builds them without what makes a Gemma 2 of them (soft caps, windows, norms around zero,
scaled embeddings: ``Gemma2Model`` adds the last). The norms after attention and MLP take 1e-05 for their
epsilon, whatever the config says, as the released models do.

Source: transformers/models/glm4, nemo/collections/llm/gpt/model/gemma2.py.
"""

from dataclasses import replace

from .. import blocks
from ..blocks import HF
from ..nemo2.configs_dense import GEMMA2_DEFAULTS, GEMMA2_SPEC, SILU, family
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, NemoClasses, Same, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..rules import same
from ..table import Module, Table
from . import gemma2, glm
from .chatglm import BIASED
from .glm4_fields import HeadScale, PostNormEpsilon

OFF = tuple(
    NemoFixed(name, None, written=True)
    for name in ("window_size", "attn_logit_softcapping", "final_logit_softcapping")
)

TABLE = Table(
    architecture="glm4",
    hf_class="Glm4ForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.gemma2",
        model="GPTModel",
        config="Gemma2Config",
        defaults={"Gemma2Config": family(GEMMA2_DEFAULTS["Gemma2Config"], rotary_interleaved=False)},
        rules=with_rules(
            NEMO_FIELDS,
            NO_BIASES,
            *OFF,
            NemoFixed("layernorm_zero_centered_gamma", False, written=True),
            NemoFixed("activation_func", SILU, written=True),
            NemoFixed("rotary_interleaved", True, written=True),
            NemoFixed("transformer_layer_spec", GEMMA2_SPEC),
            Same("rotary_percent"),
            Same("add_qkv_bias"),
            HeadScale(),
            PostNormEpsilon(1e-5),
        ),
        marks=(("rotary_interleaved", True), ("layernorm_zero_centered_gamma", False)),
    ),
    fields=glm.TABLE.fields,
    rules=(
        blocks.EMBEDDING,
        blocks.input_norm(),
        blocks.QKV,
        replace(blocks.QKV_BIAS, when=BIASED),
        blocks.PROJ,
        same(gemma2.ATTENTION_NORM + ".weight", HF + "post_self_attn_layernorm.weight", "hidden"),
        blocks.mlp_norm(),
        next(rule for rule in glm.TABLE.rules if "linear_fc1.weight" in rule.nemo),
        blocks.FC2,
        same(gemma2.MLP_NORM + ".weight", HF + "post_mlp_layernorm.weight", "hidden"),
        blocks.final_norm(),
        blocks.OUTPUT,
    ),
    modules=(*blocks.MODULES[1:], Module(gemma2.ATTENTION_NORM), Module(gemma2.MLP_NORM)),
    ignored=(blocks.INV_FREQ,),
    tied=blocks.TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits, with stand-ins for NeMo's layers",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
