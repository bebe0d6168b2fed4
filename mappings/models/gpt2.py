"""GPT-2 and DistilGPT2: a ``GPT2LMHeadModel``, whose matrices are transposed (Conv1D) and whose q, k and v
are one tensor. NeMo 2 builds it from its plain ``GPTConfig`` and has no importer for it.

Source: transformers/models/gpt2, nemo/collections/llm/gpt/model/base.py. ``gelu_new`` is what Megatron's
``bias_activation_fusion`` computes, see :class:`~nemoconv.mappings.nemo2.fields.FusedGelu`.
"""

from ..blocks import MODULES, NEMO
from ..families import gpt
from ..families.gpt import HF
from ..hf.fields_gpt import PlainHeads
from ..nemo2.configs_gpt import GPT_DEFAULTS
from ..nemo2.fields import NemoClasses
from ..rules import packed_qkv, transposed
from ..table import Table

TABLE = Table(
    architecture="gpt2",
    hf_class="GPT2LMHeadModel",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.base",
        model="GPTModel",
        config="GPTConfig",
        defaults=GPT_DEFAULTS,
        rules=gpt.NEMO_RULES,
    ),
    fields=gpt.fields(PlainHeads(), "gelu_new"),
    rules=gpt.rules(
        packed_qkv(NEMO + "self_attention.linear_qkv.weight", HF + "attn.c_attn.weight", transposed=True),
        packed_qkv(NEMO + "self_attention.linear_qkv.bias", HF + "attn.c_attn.bias", bias=True),
        transposed(
            NEMO + "self_attention.linear_proj.weight",
            HF + "attn.c_proj.weight",
            "hidden",
            "(group query_head head_dim)",
            cut="group",
        ),
        transposed(NEMO + "mlp.linear_fc1.weight", HF + "mlp.c_fc.weight", "ffn", "hidden", cut="ffn"),
        transposed(NEMO + "mlp.linear_fc2.weight", HF + "mlp.c_proj.weight", "hidden", "ffn", cut="ffn"),
    ),
    modules=MODULES,
    ignored=gpt.IGNORED,
    tied=gpt.TIED,
    sizes=gpt.sizes,
    spellings=gpt.SPELLINGS,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
