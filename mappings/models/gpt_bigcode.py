"""StarCoder and SantaCoder: a ``GPTBigCodeForCausalLM``, a GPT-2 with one key head, in Megatron's own order
of q, k and v.

Source: transformers/models/gpt_bigcode, nemo/collections/llm/gpt/model/starcoder.py.
"""

from ..blocks import MODULES, NEMO
from ..families import gpt
from ..families.gpt import HF
from ..hf.fields_gpt import PlainHeads
from ..nemo2.configs_gpt import STARCODER_DEFAULTS
from ..nemo2.fields import NemoClasses
from ..rules import same
from ..table import Table

ROWS = "(group head head_dim)"

TABLE = Table(
    architecture="gpt_bigcode",
    hf_class="GPTBigCodeForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.starcoder",
        model="StarcoderModel",
        config="StarcoderConfig",
        defaults=STARCODER_DEFAULTS,
        rules=gpt.NEMO_RULES,
    ),
    fields=gpt.fields(PlainHeads(multi_query=True), "gelu_pytorch_tanh"),
    rules=gpt.rules(
        same(
            NEMO + "self_attention.linear_qkv.weight",
            HF + "attn.c_attn.weight",
            ROWS + " hidden",
            cut="group",
        ),
        same(NEMO + "self_attention.linear_qkv.bias", HF + "attn.c_attn.bias", ROWS, cut="group"),
        same(
            NEMO + "self_attention.linear_proj.weight",
            HF + "attn.c_proj.weight",
            "hidden (group query_head head_dim)",
            cut="group",
        ),
        same(NEMO + "mlp.linear_fc1.weight", HF + "mlp.c_fc.weight", "ffn hidden", cut="ffn"),
        same(NEMO + "mlp.linear_fc2.weight", HF + "mlp.c_proj.weight", "hidden ffn", cut="ffn"),
    ),
    modules=MODULES,
    ignored=gpt.IGNORED,
    tied=gpt.TIED,
    sizes=gpt.sizes,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo import of float32, by hand",
    ),
)
