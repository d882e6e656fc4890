"""The flags of SGLang's server, as AWS's SGLang image takes them: `SM_SGLANG_CONTEXT_LENGTH` is `--context-length`.

Knows SGLang's names and what each means here. Sources: sglang 0.5.23 (srt/server_args.py and srt/arg_groups/fields) for
the names; scripts/docker/sglang/sagemaker_entrypoint.sh of aws/deep-learning-containers (2026-08) for how values are
read.
"""

from container.vendors.rules import (
    Convert,
    NotUsedError,
    accepted,
    block_size,
    dtype,
    integer,
    inverted,
    load_format,
    log_level,
    no_effect,
    refused,
    same,
    table,
    to,
)

_ONE_GPU = "one GPU is used"
_LORA = "adapters are not served"
_KERNELS = "kernels are chosen at start, by the device"


def _chunk(text: str) -> str | None:
    if text.strip() == "-1":
        raise NotUsedError("prompts are always computed in chunks")
    return integer(text)


def _only(*words: str) -> Convert:
    def convert(text: str) -> str | None:
        word = text.strip().lower()
        if word in words:
            return word
        raise NotUsedError(f"only {' and '.join(words)} have a meaning here")

    return convert


RULES = table(
    same("host port served_model_name revision download_dir"),
    to("model", "model_path model"),
    to("max_model_len", "context_length", integer),
    to("gpu_memory_utilization", "mem_fraction_static", why="SGLang counts weights and KV cache only"),
    to("max_num_seqs", "max_running_requests", integer),
    to("max_num_waiting", "max_queued_requests", integer),
    to("max_num_batched_tokens", "chunked_prefill_size", _chunk, "-1 has no effect"),
    to("dtype", "dtype", dtype),
    to("load_format", "load_format", load_format, "loaders of safetensors and dummy; others refused"),
    to("block_size", "page_size", block_size, "where it is a multiple of 16"),
    to("enable_prefix_caching", "disable_radix_cache", inverted, "inverted"),
    to("enforce_eager", "disable_cuda_graph disable_decode_cuda_graph"),
    to("async_scheduling", "disable_overlap_schedule", inverted, "inverted"),
    to("device", "device", _only("cuda", "cpu")),
    to("log_level", "log_level", log_level),
    refused(_ONE_GPU, "tp tp_size tensor_parallel_size dp dp_size data_parallel_size pp pp_size", "1"),
    refused(_ONE_GPU, "pipeline_parallel_size ep ep_size expert_parallel_size nnodes", "1"),
    refused("prompts and texts are computed in one place", "disaggregation_* encoder_only language_only", "null"),
    refused(
        "weights are served in the type that they have",
        "quantization quantization_param_path quantize_and_serve torchao_config modelopt_* rl_quant_profile",
    ),
    refused("the KV cache has the model's type", "kv_cache_dtype", "auto"),
    refused("there is no speculative decoding", "speculative_* decoupled_spec_*"),
    refused(_LORA, "enable_lora lora_paths"),
    no_effect(_LORA, "max_lora_* max_loras_* max_loaded_loras lora_*"),
    refused("the tokenizer is the model directory's", "tokenizer_path skip_tokenizer_init"),
    refused("the tokenizer is tokenizer.json", "tokenizer_mode", "auto"),
    refused(
        "the chat template is the model directory's",
        "chat_template completion_template hf_chat_template_name default_chat_template_kwargs",
    ),
    refused("a template in a request is refused by that request", "trust_request_chat_template"),
    refused(
        "tool calls and reasoning are not parsed",
        "tool_call_parser reasoning_parser tool_server enable_strict_thinking",
    ),
    refused("config.json is taken as it is", "json_model_override_args decrypted_config_file"),
    refused("text is generated, nothing else", "is_embedding dllm_*"),
    refused("the defaults of sampling are those of generation_config.json", "sampling_defaults", "model"),
    refused("logits are not processed by code of one's own", "enable_custom_logit_processor custom_weight_loader"),
    refused(
        "bitwise the same answers whatever runs beside them are promised on CPUs only (`deterministic`)",
        "enable_deterministic_inference rl_on_policy_target",
    ),
    refused(
        "API keys are not checked: on SageMaker the platform authenticates, elsewhere a proxy must",
        "api_key admin_api_key",
    ),
    refused("TLS is not spoken: a proxy must", "ssl_* enable_ssl_refresh"),
    refused("gRPC is not spoken", "grpc_mode smg_grpc_mode"),
    refused("paths begin at the root", "fastapi_root_path"),
    refused("a prompt that is too long is refused", "allow_auto_truncate"),
    refused("texts are not watermarked", "enable_watermark watermark_*"),
    no_effect(
        "code from a model's repository is never run; an architecture that needs it is refused when it loads",
        "trust_remote_code",
    ),
    no_effect("a request's own seed is what makes it repeatable", "random_seed"),
    no_effect("the KV cache takes what gpu_memory_utilization leaves", "max_total_tokens swa_full_tokens_ratio"),
    no_effect(
        "requests are admitted in the order of their arrival",
        "schedule_* disable_priority_preemption priority_* default_priority_value "
        "abort_on_priority_when_disabled retraction_policy prefill_* max_prefill_tokens enable_mixed_chunk "
        "enable_prefill_delayer num_reserved_decode_tokens num_continuous_decode_steps enable_dynamic_chunking",
        "fcfs lpm",
    ),
    no_effect(
        "prefixes are kept in the device's memory only",
        "enable_hierarchical_cache enable_hicache hicache_* enable_lmcache lmcache_* radix_* enable_flexkv flexkv_* "
        "enable_session_radix_cache cpu_offload_gb offload_* ple_offload_* enable_unified_memory kt_* unified_cache_*",
        "lru",
    ),
    no_effect(
        _KERNELS,
        "attention_backend decode_attention_backend sampling_backend mm_attention_backend "
        "fp8_gemm_backend fp4_gemm_backend bf16_gemm_backend moe_runner_backend linear_attn_* dsa_* mamba_* "
        "cuda_graph_* disable_cuda_graph_padding disable_prefill_cuda_graph enable_torch_compile* torch_compile_* "
        "triton_attention_* flashinfer_* disable_flashinfer_autotune enable_profile_cuda_graph enable_cudagraph_gc "
        "enable_fused_* enable_tf32_matmul disable_chunked_prefix_cache disable_shared_experts_fusion "
        "enable_memory_saver model_impl",
        "auto",
    ),
    no_effect(
        _ONE_GPU,
        "dist_* node_rank base_gpu_id gpu_id_step nccl_port enable_dp_attention enable_dp_lm_head moe_* deepep_* "
        "eplb_* enable_eplb ep_* elastic_ep_* init_expert_location expert_distribution_* load_balance_method numa_node "
        "disable_custom_all_reduce enable_mscclpp enable_symm_mem enable_torch_symm_mem enable_nccl_nvls "
        "enable_p2p_check enable_two_batch_overlap enable_single_batch_overlap tbo_* pp_* attn_* use_ray",
    ),
    no_effect("grammars are refused by the request that asks", "grammar_backend constrained_json_*", "xgrammar"),
    no_effect(
        "only text goes in and out",
        "enable_multimodal mm_* limit_mm_data_per_request image_processor_backend disable_fast_image_processor "
        "keep_mm_feature_on_device enable_prefix_mm_cache allowed_media_domains media_url_* encoder_* asr_*",
    ),
    no_effect("loading has no settings of its own", "model_loader_extra_config weight_* model_checksum"),
    no_effect("the front is another one", "tokenizer_worker_num detokenizer_worker_num tokenizer_backend enable_http2"),
    no_effect("the front is another one", "http2_* enable_tokenizer_batch_encode file_storage_path warmups sidecar*"),
    no_effect("texts stream token by token", "stream_interval incremental_streaming_output stream_output", "1"),
    no_effect("`stall_limit_s` watches over the engine", "watchdog_timeout soft_watchdog_timeout sleep_on_idle"),
    no_effect("a real generation always runs first", "skip_server_warmup"),
    no_effect(
        "the log and the answers have their own lines",
        "log_level_http log_requests* show_time_cost enable_metrics* bucket_* prompt_tokens_buckets "
        "generation_tokens_buckets collect_tokens_histogram decode_log_interval enable_request_time_stats_logging "
        "kv_events_config enable_trace otlp_* trace_* crash_dump_folder uvicorn_access_log_exclude_prefixes gc_* "
        "export_metrics_* extra_metric_labels enable_mfu_metrics "
        "tokenizer_metrics_* debug_* weight_version scheduler_recv_interval",
    ),
    to("always_include_usage", "stream_response_default_include_usage"),
    accepted("`usage` always has the cached tokens", "enable_cache_report"),
    accepted("a request's `priority` counts", "enable_priority_scheduling"),
    refused("the defaults of sampling are those of generation_config.json", "preferred_sampling_params"),
    refused("settings stand in a file of ours: `--config`, SM_GALLEY_CONFIG", "config"),
)

# Variables that SGLang itself reads, whatever image it runs in.
BARE = table(no_effect("it tunes what is inside SGLang", "SGLANG_*"))
