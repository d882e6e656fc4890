"""The flags of vLLM's server, as AWS's vLLM image takes them: `SM_VLLM_MAX_MODEL_LEN` is `--max-model-len`.

Knows vLLM's names and what each means here. Sources: docs.vllm.ai (engine arguments and `vllm serve`, v0.5 to v0.14)
and vllm/entrypoints/openai/cli_args.py for the names; scripts/docker/vllm/sagemaker_args.py of
aws/deep-learning-containers (2026-08) for how the image reads values.
"""

from container.vendors.rules import (
    accepted,
    block_size,
    bytes_to,
    dtype,
    first_of_list,
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

_SPECULATION = "there is no speculative decoding"
_LORA = "adapters are not served"
_TOOLS = "tool calls and reasoning are not parsed"
_ONE_GPU = "one GPU is used"
_NO_KEYS = "API keys are not checked: on SageMaker the platform authenticates, elsewhere a proxy must"
_TEMPLATE = "the chat template is the model directory's"
_TEXT = "only text goes in and out"

ENGINE = table(
    same("model revision hf_token download_dir enforce_eager gpu_memory_utilization enable_prefix_caching"),
    same("async_scheduling device"),
    to("served_model_name", "served_model_name", first_of_list, "one name"),
    to("dtype", "dtype", dtype),
    to("max_model_len", "max_model_len", integer),
    to("max_num_seqs", "max_num_seqs", integer),
    to("max_num_batched_tokens", "max_num_batched_tokens", integer),
    to("kv_cache_memory_gib", "kv_cache_memory_bytes", bytes_to(2**30), "in bytes"),
    to("block_size", "block_size", block_size, "where it is a multiple of 16"),
    to("load_format", "load_format", load_format, "loaders of safetensors and dummy; others refused"),
    refused(
        "weights are served in the type that they have",
        "quantization quantization_config quantization_param_path calculate_kv_scales",
    ),
    refused("the KV cache has the model's type", "kv_cache_dtype", "auto"),
    refused(
        _ONE_GPU,
        "tensor_parallel_size pipeline_parallel_size data_parallel_size decode_context_parallel_size "
        "prefill_context_parallel_size nnodes",
        "1",
    ),
    refused(
        _SPECULATION,
        "speculative_* num_speculative_tokens ngram_prompt_lookup_max ngram_prompt_lookup_min spec_method spec_model",
    ),
    refused(_LORA, "enable_lora lora_modules prompt_adapters enable_prompt_adapter default_mm_loras"),
    no_effect(
        _LORA,
        "max_loras max_lora_rank max_cpu_loras lora_dtype lora_extra_vocab_size fully_sharded_loras enable_lora_bias "
        "long_lora_scaling_factors lora_target_modules specialize_active_lora enable_tower_connector_lora "
        "max_prompt_adapters max_prompt_adapter_token",
        "1 4 auto",
    ),
    refused("the tokenizer is the model directory's", "tokenizer tokenizer_revision skip_tokenizer_init"),
    refused("the tokenizer is tokenizer.json", "tokenizer_mode", "auto fast hf"),
    refused(
        "config.json is taken as it is",
        "hf_overrides rope_scaling rope_theta hf_config_path disable_sliding_window override_attention_dtype",
    ),
    refused("config.json is Hugging Face's", "config_format", "auto hf"),
    refused("the defaults of sampling are those of generation_config.json", "generation_config", "auto"),
    refused("the defaults of sampling are those of generation_config.json", "override_generation_config"),
    refused("text is generated, nothing else", "task runner convert", "auto generate"),
    refused("text is generated, nothing else", "override_pooler_config pooler_config"),
    refused("logits are not processed by code of one's own", "logits_processors logits_processor_pattern"),
    refused("a log-probability is the model's own", "logprobs_mode", "raw_logprobs"),
    refused("prompts are token ids and text", "enable_prompt_embeds enable_mm_embeds"),
    no_effect(
        "code from a model's repository is never run; an architecture that needs it is refused when it loads",
        "trust_remote_code code_revision",
    ),
    no_effect(
        _TEXT,
        "limit_mm_per_prompt mm_* media_io_kwargs allowed_local_media_path allowed_media_domains "
        "disable_mm_preprocessor_cache language_model_only interleave_mm_strings skip_mm_profiling video_*",
    ),
    no_effect("what a request may ask for is on the API page", "max_logprobs", "20"),
    no_effect("a request's own seed is what makes it repeatable", "seed"),
    no_effect("prompts are always computed in chunks", "enable_chunked_prefill", "true"),
    # Where chunks are on, it is its negation that asks for something.
    no_effect("prompts are always computed in chunks", "no_enable_chunked_prefill"),
    no_effect(
        "chunks are cut by the step's token budget",
        "max_num_partial_prefills max_long_partial_prefills long_prefill_token_threshold "
        "disable_chunked_mm_input scheduler_reserve_full_isl",
        "1",
    ),
    accepted("a request's `priority` counts, and equal ones are admitted as they arrive", "scheduling_policy"),
    no_effect("a sequence that is put off is computed again", "swap_space", "4 4.0"),
    no_effect("a sequence that is put off is computed again", "preemption_mode num_gpu_blocks_override"),
    no_effect(
        "weights and KV cache stay on the device",
        "cpu_offload_gb cpu_offload_params offload_* kv_offloading_* kv_transfer_config kv_events_config kv_sharing_* "
        "enable_sleep_mode ec_transfer_config weight_transfer_config",
    ),
    no_effect(
        "sequences cannot share more than equal blocks",
        "prefix_caching_hash_algo disable_hybrid_kv_cache_manager",
        "sha256 builtin",
    ),
    no_effect(
        "kernels are chosen at start, by the device",
        "attention_backend moe_backend",
        "auto",
    ),
    no_effect("a step is scheduled at a time", "num_scheduler_steps", "1"),
    no_effect(
        "kernels are chosen at start, by the device",
        "attention_config kernel_config compilation_config optimization_level "
        "max_seq_len_to_capture max_context_len_to_capture cudagraph_* max_cudagraph_capture_size cuda_graph_sizes "
        "use_v2_block_manager disable_cascade_attn num_lookahead_slots multi_step_stream_outputs "
        "scheduler_delay_factor custom_ops mamba_* gdn_* use_tqdm_on_load performance_mode",
    ),
    no_effect(_ONE_GPU, "distributed_executor_backend", "mp uni"),
    no_effect(
        _ONE_GPU,
        "distributed_* data_parallel_* enable_expert_parallel expert_parallel_size all2all_backend enable_eplb eplb_* "
        "enable_dbo dbo_* ubatch_size disable_custom_all_reduce disable_nccl_for_dp_synchronization worker_cls "
        "worker_extension_cls worker_use_ray ray_workers_use_nsight max_parallel_loading_workers master_addr "
        "master_port node_rank dcp_* cp_kv_cache_interleave_size numa_*",
    ),
    no_effect(
        "grammars are refused by the request that asks",
        "guided_decoding_* structured_outputs_config",
        "auto xgrammar",
    ),
    no_effect("loading has no settings of its own", "model_impl", "auto vllm"),
    no_effect("loading has no settings of its own", "safetensors_load_strategy", "auto lazy"),
    no_effect("loading has no settings of its own", "pt_load_map_location", "cpu"),
    no_effect(
        "loading has no settings of its own",
        "model_loader_extra_config ignore_patterns additional_config safetensors_prefetch_* "
        "tokenizer_pool_* renderer_num_workers",
    ),
    to("grace_s", "shutdown_timeout", integer),
    accepted("nothing is logged per request or of statistics", "disable_log_stats disable_log_requests"),
    no_effect("texts stream token by token", "stream_interval", "1"),
    no_effect(
        "the log has its own lines",
        "enable_log_requests aggregate_engine_logging "
        "otlp_traces_endpoint collect_detailed_traces show_hidden_metrics_for_version kv_cache_metrics* "
        "cudagraph_metrics enable_mfu_metrics enable_layerwise_nvtx_tracing enable_logging_iteration_details "
        "profiler_config observability_config fail_on_environ_validation",
    ),
    no_effect("models that reason are served as they are", "reasoning_config"),
)

_SERVER = table(
    same("host port"),
    to("access_log", "disable_uvicorn_access_log", inverted, "inverted"),
    to("log_level", "uvicorn_log_level", log_level),
    refused(_NO_KEYS, "api_key api_keys"),
    refused("TLS is not spoken: a proxy must", "ssl_*"),
    refused("a TCP port is listened to", "uds"),
    refused("paths begin at the root", "root_path"),
    refused("code of one's own is not loaded that way", "middleware tool_parser_plugin reasoning_parser_plugin"),
    refused(_TEMPLATE, "chat_template default_chat_template_kwargs"),
    refused("a template in a request is refused by that request", "trust_request_chat_template"),
    refused("a message's content is given to the template as text", "chat_template_content_format", "auto string"),
    refused(
        _TOOLS,
        "enable_auto_tool_choice tool_call_parser reasoning_parser enable_reasoning tool_server "
        "exclude_tools_when_tool_choice_none",
    ),
    refused("answers come from the assistant", "response_role", "assistant"),
    refused("tokens are shown as text", "return_tokens_as_token_ids tokens_only"),
    refused("gRPC is not spoken", "grpc"),
    to("always_include_usage", "enable_force_include_usage"),
    accepted("`usage` always has them", "enable_prompt_tokens_details"),
    no_effect("no such part in answers", "enable_per_request_metrics fingerprint_*"),
    no_effect(
        "cross-origin requests get no headers that allow them",
        "allowed_origins allowed_methods allowed_headers allow_credentials",
    ),
    refused("settings stand in a file of ours: `--config`, SM_GALLEY_CONFIG", "config"),
    refused("requests come over HTTP", "headless"),
    no_effect("`num_workers` is how many processes answer", "api_server_count", "1"),
    no_effect(
        "the front is another one",
        "disable_fastapi_docs enable_offline_docs enable_request_id_headers h11_* "
        "disable_frontend_multiprocessing enable_ssl_refresh enable_server_load_tracking dp_supervisor_* "
        "enable_tokenizer_info_endpoint enable_flash_late_interaction cohere_* omni stage_*",
    ),
    no_effect(
        "the log has its own lines",
        "max_log_len log_config_file enable_log_outputs enable_log_deltas log_error_stack "
        "disable_access_log_for_endpoints",
    ),
)

RULES = table(ENGINE, _SERVER)

# Variables that vLLM itself reads, whatever image it runs in.
BARE = table(
    to("log_level", "VLLM_LOGGING_LEVEL", log_level),
    refused(_NO_KEYS, "VLLM_API_KEY"),
    refused(_LORA, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
    no_effect("it tunes what is inside vLLM", "VLLM_*"),
)
