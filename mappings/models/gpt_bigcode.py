"""StarCoder and SantaCoder: a ``GPTBigCodeForCausalLM``, a GPT-2 with one key head, in Megatron's own order
of q, k and v.

Source: transformers/models/gpt_bigcode, nemo/collections/llm/gpt/model/starcoder.py.
"""

from ..families.gpt2 import gpt2_like
from ..hf.fields_gpt import PlainHeads
from ..nemo1.entry import Nemo1
from ..nemo2.entry import Nemo2

GPT_BIGCODE = gpt2_like(
    "gpt_bigcode",
    "GPTBigCodeForCausalLM",
    PlainHeads(multi_query=True),
    "gelu_pytorch_tanh",
    Nemo2("nemo.collections.llm.gpt.model.starcoder", "StarcoderModel", "StarcoderConfig"),
    by_group=True,
    nemo1=Nemo1(read_as="gpt2"),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo import of float32, by hand",
    ),
)
