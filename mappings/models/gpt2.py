"""GPT-2 and DistilGPT2: a ``GPT2LMHeadModel``, whose matrices are transposed (Conv1D) and whose q, k and v
are one tensor. NeMo 2 builds it from its plain ``GPTConfig`` and has no importer for it.

Source: transformers/models/gpt2, nemo/collections/llm/gpt/model/base.py. ``gelu_new`` is what Megatron's
``bias_activation_fusion`` computes, see :class:`~nemoconv.mappings.nemo2.fields.FusedGelu`.
"""

from ..families.gpt2 import gpt2_like
from ..hf.fields_gpt import PlainHeads
from ..nemo1.entry import Nemo1
from ..nemo2.entry import Nemo2

GPT2 = gpt2_like(
    "gpt2",
    "GPT2LMHeadModel",
    PlainHeads(),
    "gelu_new",
    Nemo2("nemo.collections.llm.gpt.model.base", "GPTModel", "GPTConfig"),
    transposed=True,
    spellings=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),  # of files without a head
    nemo1=Nemo1(),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
