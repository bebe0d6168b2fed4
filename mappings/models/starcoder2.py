"""StarCoder2: a ``Starcoder2ForCausalLM``, with biases everywhere, LayerNorm, and an MLP without a gate.

Source: transformers/models/starcoder2, nemo/collections/llm/gpt/model/starcoder2.py.
"""

from ..blocks.attention import Attention
from ..blocks.mlp import Mlp
from ..blocks.place import ALWAYS, LAYER
from ..blocks.stack import Blocks
from ..hf.fields import Field, Fixed, Nullable, Unread
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from ..nemo2.entry import Nemo2

#: in the files of the released models, read by the code that trained them only
LEFT_OVER = tuple(
    """activation_function attention_softmax_in_fp32 layer_norm_epsilon mlp_type norm_type
    scale_attention_softmax_in_fp32 scale_attn_weights""".split()
)

STARCODER2 = llama_like(
    "starcoder2",
    "Starcoder2ForCausalLM",
    names={"gate": "", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    blocks=Blocks(LAYER, Attention(bias=ALWAYS, output_bias=ALWAYS), Mlp(bias=ALWAYS), activation=None),
    keys={"rms_norm_eps": "norm_epsilon"},
    defaults={
        "num_hidden_layers": 30,
        "hidden_size": 3072,
        "intermediate_size": 12288,
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "vocab_size": 49152,
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "initializer_range": 0.018042,
        "tie_word_embeddings": True,
    },
    config=(
        Field("hidden_act", "hidden_act", "gelu_pytorch_tanh", kind=str),
        Nullable("sliding_window", "sliding_window"),
        Fixed("use_bias", True),
        Unread(("residual_dropout", "embedding_dropout", *LEFT_OVER)),
    ),
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.starcoder2",
        "Starcoder2Model",
        "Starcoder2Config",
    ),
    nemo1=Nemo1(),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo import, export of float32",
    ),
)
