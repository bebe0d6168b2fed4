"""Mamba 2 models in transformers' form (``Mamba2ForCausalLM``), with one group.

With more groups transformers norms all of a mixer's channels at once, Megatron (as the paper's code) each
group by itself, so those are refused.

Source: see :mod:`nemoconv.mappings.families.mamba`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..families import mamba
from ..hf.fields import Dtype, Field, Fixed, Unread, Value
from ..hf.fields_ssm import InnerWidth, StepLimit
from ..nemo2.configs_ssm import MAMBA_DEFAULTS, SSM, Pattern
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields import NemoClasses
from ..nemo2.fields_moe import Harmless
from ..rules import vocabulary
from ..table import Table


def layer_sets(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    """One set: Megatron stores the layers of every model with mixers one by one."""
    return {"mamba": frozenset(range(config["num_layers"]))}


TABLE = Table(
    architecture="mamba2",
    hf_class="Mamba2ForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.ssm",
        model="MambaModel",
        config="SSMConfig",
        defaults=MAMBA_DEFAULTS,
        rules=(
            *SSM,
            NemoFixed("is_hybrid_model", False),
            Pattern("M"),
            Harmless(
                frozenset(
                    """num_attention_heads num_query_groups kv_channels ffn_hidden_size attention_dropout
                    activation_func""".split()
                )
            ),
        ),
        marks=(("is_hybrid_model", False),),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 64),
        Field("hidden_size", "hidden_size", 4096),
        Field("num_heads", "mamba_num_heads", 128),
        Field("head_dim", "mamba_head_dim", 64),
        Field("state_size", "mamba_state_dim", 128),
        Field("vocab_size", "vocab_size", 32768),
        Field("initializer_range", "init_method_std", 0.1, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        InnerWidth(),
        Fixed("layer_norm_epsilon", 1e-5),
        Fixed("hidden_act", "silu"),
        Fixed("conv_kernel", 4),
        Fixed("use_conv_bias", True),
        Fixed("use_bias", False),
        StepLimit(),
        Unread(
            tuple(
                """chunk_size rescale_prenorm_residual residual_in_fp32 time_step_floor time_step_max
                time_step_min time_step_rank norm_before_gate rms_norm layer_types""".split()
            )
        ),
        Dtype(),
    ),
    rules=(
        mamba.EMBEDDING,
        *mamba.mixer("mamba"),
        mamba.FINAL_NORM,
        vocabulary(
            "output_layer.weight", "lm_head.weight", when=(("share_embeddings_and_output_weights", False),)
        ),
    ),
    modules=(*mamba.modules("mamba"), *mamba.END),
    sizes=mamba.sizes,
    layer_sets=layer_sets,
    spellings=mamba.SPELLINGS,
    tied=mamba.TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits (torch in place of its CUDA kernels)",
    ),
)
