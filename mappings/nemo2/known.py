"""Which fields of NeMo 2's config classes say what a model computes, and which never do.

A field that nobody reads must be known to be harmless, or a conversion silently changes the model.

Compiled from megatron-core 0.9.0, 0.10.0, 0.11.0, 0.12.3, 0.13.1, 0.14.0, 0.15.3 and 0.16.1
(``TransformerConfig`` with ``ModelParallelConfig``) and nemo-toolkit 2.0.0, 2.1.0, 2.2.1, 2.3.2, 2.4.1,
2.5.3, 2.6.2 and 2.7.3 (``GPTConfig`` and the Llama family). Every field is in exactly one of MAPPED, OFF,
ONLY_WITH and INERT. What a class takes for a field is in :mod:`nemoconv.mappings.nemo2.classes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ...formats.text.fiddle import Symbol


def _names(*texts: str) -> frozenset[str]:
    return frozenset(" ".join(texts).split())


#: Fields that say what a plain decoder computes: a mapping has to read them. In the order of a NeMo 1 yaml.
MAPPED: Final[tuple[str, ...]] = tuple(
    """
    num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels
    vocab_size make_vocab_size_divisible_by seq_length position_embedding_type rotary_base
    rotary_percent seq_len_interpolation_factor scale_factor low_freq_factor high_freq_factor
    old_context_len normalization layernorm_epsilon activation_func gated_linear_unit
    add_bias_linear add_qkv_bias share_embeddings_and_output_weights init_method_std
    attention_dropout bf16 fp16 params_dtype generation_config
    """.split()
)

# Layer specs of nemo.collections.llm.gpt.model.base that build the same layers from other kernels.
_PLAIN_SPECS = tuple(
    Symbol("nemo.collections.llm.gpt.model.base", name)
    for name in ("default_layer_spec", "local_layer_spec", "transformer_engine_layer_spec")
)

#: Fields that change the mathematics, with the values that mean "not used" in a plain decoder.
#: An architecture that uses one has to map it. Compare with ``in``.
OFF: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        "activation_func_clamp_value": (None,),
        "apply_residual_connection_post_layernorm": (False,),
        "attention_output_gate": (False,),
        "experimental_attention_variant": (None,),
        "glu_linear_offset": (0.0,),
        "heterogeneous_block_specs": (False,),
        "is_hybrid_model": (False,),
        "layernorm_zero_centered_gamma": (False,),
        "mrope_section": (None,),
        "mtp_num_layers": (None, 0),
        "multi_latent_attention": (False,),
        "no_rope_freq": (None,),
        "num_moe_experts": (None,),
        "qk_l2_norm": (False,),
        "qk_layernorm": (False,),
        "quant_recipe": (None,),
        "rotary_interleaved": (False,),
        "softmax_scale": (None,),
        "softmax_type": ("vanilla",),
        "transformer_layer_spec": _PLAIN_SPECS,
        "use_kitchen": (False,),
        "use_kitchen_attention": (False,),
        "use_transformer_engine_full_layer_spec": (False,),
        "window_size": (None,),
    }
)

#: Fields that change the mathematics only together with a field of OFF (the key): without it they
#: mean nothing, whatever their value.
ONLY_WITH: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "num_moe_experts": _names(
            """
            moe_apply_probs_on_input moe_enable_routing_replay
            moe_expert_capacity_factor moe_ffn_hidden_size moe_input_jitter_eps
            moe_latent_size moe_layer_freq moe_pad_expert_input_to_capacity
            moe_router_dtype moe_router_enable_expert_bias
            moe_router_force_load_balancing moe_router_group_topk
            moe_router_load_balancing_type moe_router_num_groups moe_router_pre_softmax
            moe_router_score_function moe_router_topk moe_router_topk_limited_devices
            moe_router_topk_scaling_factor moe_shared_expert_gate
            moe_shared_expert_intermediate_size moe_token_drop_policy moe_token_dropping
            moe_use_legacy_grouped_gemm
            """
        ),
        "window_size": _names("window_attn_skip_freq"),
        "experimental_attention_variant": _names(
            """
            dsa_indexer_head_dim dsa_indexer_loss_coeff dsa_indexer_n_heads
            dsa_indexer_topk dsa_indexer_use_sparse_loss linear_attention_freq
            linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads
            linear_num_value_heads linear_value_head_dim
            """
        ),
        "is_hybrid_model": _names("mamba_head_dim mamba_num_groups mamba_num_heads mamba_state_dim"),
        "use_kitchen_attention": _names("kitchen_attention_backend"),
    }
)

#: Fields that never change what the weights compute at inference, beyond rounding.
INERT: Final[frozenset[str]] = _names(
    # Which rank holds and sends what, and when.
    """
    account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split
    async_tensor_model_parallel_allreduce batch_p2p_comm batch_p2p_sync
    context_parallel_size cp_comm_type deallocate_pipeline_outputs
    defer_embedding_wgrad_compute delay_wgrad_compute encoder_pipeline_model_parallel_size
    encoder_tensor_model_parallel_size ep_overlap_early_attn_memory_release
    expert_model_parallel_size expert_tensor_parallel_size first_pipeline_num_layers
    hierarchical_context_parallel_sizes hybrid_context_parallel last_pipeline_num_layers
    max_seqlen_per_dp_cp_rank microbatch_group_size_per_vp_stage
    num_layers_in_first_pipeline_stage num_layers_in_last_pipeline_stage
    num_microbatches_with_partial_activation_checkpoints overlap_moe_expert_parallel_comm
    overlap_p2p_comm overlap_p2p_comm_warmup_flush pipeline_dtype
    pipeline_model_parallel_comm_backend pipeline_model_parallel_layout
    pipeline_model_parallel_size pipeline_model_parallel_split_rank
    scatter_embedding_sequence_parallel sequence_parallel tensor_model_parallel_size
    tp_comm_atomic_ag tp_comm_atomic_rs tp_comm_bootstrap_backend tp_comm_bulk_dgrad
    tp_comm_bulk_wgrad tp_comm_overlap tp_comm_overlap_ag tp_comm_overlap_cfg
    tp_comm_overlap_disable_fc1 tp_comm_overlap_disable_qkv tp_comm_overlap_rs
    tp_comm_overlap_rs_dgrad tp_comm_split_ag tp_comm_split_rs use_ring_exchange_p2p
    variable_seq_lengths virtual_pipeline_model_parallel_size wgrad_deferral_limit
    """,
    # Which kernel computes it, and how it rounds; hetereogenous_dist_checkpoint: only names.
    """
    apply_query_key_layer_scaling apply_rope_fusion attention_backend
    attention_softmax_in_fp32 autocast_dtype batch_invariant_mode bias_activation_fusion
    bias_dropout_add_fusion bias_dropout_fusion clone_scatter_output_in_embedding
    cross_entropy_fusion_impl cross_entropy_loss_fusion deterministic_mode
    disable_bf16_reduced_precision_matmul enable_autocast flash_decode
    fp32_residual_connection fused_single_qkv_rope gradient_accumulation_fusion
    hetereogenous_dist_checkpoint inference_fuse_tp_communication inference_rng_tracker
    inference_sampling_seed masked_softmax_fusion memory_efficient_layer_norm
    mlp_chunks_for_prefill parallel_output persist_layer_norm symmetric_ar_type
    transformer_impl use_fused_weighted_squared_relu use_inference_optimized_layers
    use_te_activation_func use_transformer_engine_op_fuser
    """,
    # Low precision of a run; the tensors of a checkpoint are stored in params_dtype.
    """
    activation_func_fp8_input_store disable_parameter_transpose_cache first_last_layers_bf16
    fp4 fp4_param fp4_quantizer_factory fp4_recipe fp8 fp8_amax_compute_algo
    fp8_amax_history_len fp8_dot_product_attention fp8_interval fp8_margin
    fp8_multi_head_attention fp8_param fp8_quantizer_factory fp8_recipe fp8_wgrad
    num_layers_at_end_in_bf16 num_layers_at_start_in_bf16 tp_only_amax_red
    """,
    # Memory against time.
    """
    _cpu_offloading_context cpu_offloading cpu_offloading_activations
    cpu_offloading_double_buffering cpu_offloading_num_layers cpu_offloading_weights
    cuda_graph_impl cuda_graph_retain_backward_graph cuda_graph_scope
    cuda_graph_use_single_mempool cuda_graph_warmup_steps distribute_saved_activations
    enable_cuda_graph external_cuda_graph fine_grained_activation_offloading
    min_offloaded_tensor_size moe_layer_recompute offload_modules recompute_granularity
    recompute_method recompute_modules recompute_num_layers
    """,
    # Training: initialization, loss, dropout, logging, the clipping of attention logits.
    """
    barrier_with_L1_time calculate_per_token_loss config_logger_dir data_step_fn
    embedding_init_method embedding_init_method_std finalize_model_grads_func
    forward_step_fn fp16_lm_cross_entropy grad_scale_func grad_sync_func hidden_dropout
    init_method init_model_with_meta_device log_max_attention_logit no_sync_func
    output_layer_init_method param_sync_func perform_initialization qk_clip qk_clip_alpha
    qk_clip_threshold test_mode timers use_cpu_initialization use_te_rng_tracker
    """,
    # Mixtures of experts, multi-token prediction and Mamba: transport, kernels and losses.
    """
    moe_aux_loss_coeff moe_deepep_num_sms moe_enable_deepep moe_extended_tp
    moe_flex_dispatcher_backend moe_grouped_gemm moe_hybridep_num_sms moe_per_layer_logging
    moe_permute_fusion moe_router_bias_update_rate moe_router_fusion
    moe_router_padding_for_fp8 moe_router_padding_for_quantization moe_shared_expert_overlap
    moe_token_dispatcher_type moe_z_loss_coeff mtp_loss_scaling_factor mtp_standalone
    use_mamba_mem_eff_path
    """,
)
