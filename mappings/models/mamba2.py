"""Mamba 2 models in transformers' form (``Mamba2ForCausalLM``), with one group.

With more groups transformers norms all of a mixer's channels at once, Megatron (as the paper's code) each
group by itself, so those are refused.

Source: see :mod:`nemoconv.mappings.families.mamba`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..blocks.stack import Blocks
from ..families.mamba import FINAL_NORM, LAYERS, MODULES, NAMES, SPELLINGS, Mixer
from ..hf.fields import Field, Fixed, Unread, Value
from ..hf.fields_ssm import InnerWidth, StepLimit
from ..llama_like import llama_like
from ..nemo2 import classes
from ..nemo2.fields import NemoClasses, NemoFixed
from ..nemo2.fields_moe import Harmless
from ..nemo2.fields_ssm import SSM, Pattern

UNREAD = tuple(
    """chunk_size rescale_prenorm_residual residual_in_fp32 time_step_floor time_step_max time_step_min
    time_step_rank norm_before_gate rms_norm layer_types""".split()
)
#: of layers that there are not
OF_ATTENTION = frozenset(
    """num_attention_heads num_query_groups kv_channels ffn_hidden_size attention_dropout
    activation_func""".split()
)


def layer_sets(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    """One set: Megatron stores the layers of every model with mixers one by one."""
    return {LAYERS: frozenset(range(config["num_layers"]))}


MAMBA2 = llama_like(
    "mamba2",
    "Mamba2ForCausalLM",
    names=NAMES,
    blocks=Blocks(mixer=Mixer(), attention=None, mlp=None),
    keys={"num_attention_heads": "num_heads"},
    defaults={"num_hidden_layers": 64, "vocab_size": 32768, "initializer_range": 0.1},
    without=(
        "intermediate_size",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "attention_dropout",
        "attention_bias",
        "mlp_bias",
        "rope_theta",
    ),
    config=(
        Field("num_heads", "mamba_num_heads", 128),
        Field("head_dim", "mamba_head_dim", 64),
        Field("state_size", "mamba_state_dim", 128),
        InnerWidth(),
        Fixed("layer_norm_epsilon", 1e-5),
        Fixed("conv_kernel", 4),
        Fixed("use_conv_bias", True),
        Fixed("use_bias", False),
        StepLimit(),
        Unread(UNREAD),
    ),
    nemo2=NemoClasses(
        module="nemo.collections.llm.gpt.model.ssm",
        model="MambaModel",
        config="SSMConfig",
        # the size of the vocabulary is the tokenizer's, in a field of the model
        defaults=classes.family(
            "SSMConfig",
            without=("NemotronHConfigBase", "NVIDIAMambaConfig8B", "NVIDIAMambaHybridConfig8B"),
            vocab_size=None,
        ),
        rules=(*SSM, NemoFixed("is_hybrid_model", False), Pattern("M"), Harmless(OF_ATTENTION)),
    ),
    extra=(FINAL_NORM,),
    extra_modules=MODULES,
    layer_sets=layer_sets,
    ignored=(),
    spellings=SPELLINGS,
    samples=({"n_groups": 1},),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits (torch in place of its CUDA kernels)",
    ),
)
