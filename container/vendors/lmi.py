"""The settings of AWS's LMI images (DJL Serving): OPTION_*, SERVING_*, a few bare names, and `serving.properties`.

Knows LMI's names and what each means here. An option that is not LMI's own is vLLM's, as LMI passes it on. Sources:
deepjavalibrary/djl-serving at d21927c, serving/docs (lmi/deployment_guide/configurations.md, lmi/user_guides,
configurations_model.md, configurations_global.md) for the names; wlm/…/ModelInfo.java and djl_python's
properties_manager for how values are read.
"""

from container.vendors import vllm
from container.vendors.rules import (
    NotUsedError,
    RefusedError,
    accepted,
    block_size,
    boolean,
    bytes_to_mib,
    dtype,
    integer,
    inverted,
    no_effect,
    refused,
    table,
    to,
)

_ONE_GPU = "one GPU is used"


def _degree(text: str) -> None:
    """A degree of parallelism; `max` means "all there are", which may be one. Raises for two and more."""
    word = text.strip().lower()
    if word in ("max", "auto"):
        raise NotUsedError("one GPU is used, however many there are")
    if word not in ("", "1", "-1"):
        raise RefusedError(_ONE_GPU)


_OPTIONS = table(
    to("model", "model_id"),
    to("dtype", "dtype data_type", dtype),
    to("max_num_seqs", "max_rolling_batch_size max_num_sequences", integer),
    to("max_num_batched_tokens", "max_rolling_batch_prefill_tokens max_num_tokens", integer),
    to("max_model_len", "max_seq_len n_positions", integer),
    to("block_size", "tokens_per_block", block_size, "where it is a multiple of 16"),
    to("enable_prefix_caching", "enable_kv_cache_reuse"),
    to("start_timeout_s", "model_loading_timeout", integer),
    to("request_timeout_s", "predict_timeout", integer),
    to("", "tensor_parallel_degree pipeline_parallel_degree", _degree, "1; `max` is warned about, more refused"),
    refused("weights are served in the type that they have", "quantize load_in_8bit load_in_4bit smoothquant_*"),
    refused("weights are served in the type that they have", "awq_* q_format fp8_scheme gptq_* use_fp8_context_fmha"),
    refused("there is no speculative decoding", "draft_model_id spec_length speculative_draft_model max_draft_len"),
    refused("adapters are not served", "adapters"),
    refused(
        "DJL's handlers are not run",
        "entrypoint handler",
        "djl_python.huggingface djl_python.lmi_vllm.vllm_async_service djl_python.lmi_dist djl_python.tensorrt_llm "
        "djl_python.transformers_neuronx handle",
    ),
    refused("DJL's formatters are not run", "input_formatter"),
    refused("text is generated, nothing else", "task", "auto generate text-generation"),
    refused("text is generated, nothing else", "normalize", "true"),
    refused("config.json is taken as it is", "rotary_*"),
    accepted(
        "batching is always continuous, and a request chooses whether it streams",
        "rolling_batch async_mode mpi_mode enable_streaming engine batch_size backend use_passive_workers",
    ),
    to("inputs_form", "tgi_compat", lambda text: "tgi" if boolean(text) == "true" else None, "true is `tgi`"),
    no_effect(
        "a stream has the format that the request asks for",
        "output_formatter",
        "json jsonlines",
    ),
    no_effect("answers have no other form than LMI's, TGI's and OpenAI's", "bedrock_compat"),
    no_effect("the device and its memory are managed by one engine", "device_map", "auto"),
    no_effect("the device and its memory are managed by one engine", "low_cpu_mem_usage", "true"),
    no_effect(
        "the device and its memory are managed by one engine",
        "num_checkpoint_workers num_engine_workers cluster_size",
        "1",
    ),
    no_effect("weights and KV cache stay on the device", "cpu_offload_gb_per_gpu lmcache_*"),
    no_effect("prompts are always computed in chunks", "enable_chunked_prefill", "true 1", is_on=True),
    no_effect("sessions have settings of their own", "enable_stateful_sessions sessions_path sessions_expiration"),
    no_effect(
        "the device and its memory are managed by one engine",
        "parallel_loading kv_cache_free_gpu_mem_fraction max_input_len max_output_len "
        "max_output_size batch_scheduler_policy enable_trt_overlap use_custom_all_reduce multi_query_mode "
        "use_fused_mlp logits_dtype load_by_shard trtllm_* gpt_model_version "
        "baichuan_model_version chatglm_model_version calib_* waiting_steps optimization",
    ),
    no_effect("there is no DJL inside", "pythonexecutable", "python3"),
    no_effect(
        "there is no DJL inside",
        "enable_venv env modelname modename extrafiles maplocation model_format retry_threshold "
        "trust_insecure_model_files skops_trusted_types max_batch_delay interopnumthreads intraopnumthreads "
        "executionmode optlevel memorypatternoptimization cpuarenaallocator disablepersessionthreads customoplibrary "
        "ortdevice",
    ),
)

# vLLM's own names for what LMI has other rules for are LMI's.
OPTIONS = table(_OPTIONS, {name: rule for name, rule in vllm.RULES.items() if name not in _OPTIONS})

# Keys without `option.`, in serving.properties as they are and in the environment with SERVING_ before them.
SERVING = table(
    to("max_num_waiting", "job_queue_size", integer),
    to("max_body_mb", "max_request_size", bytes_to_mib, "in bytes, at most 1 GiB"),
    to("download_dir", "download_dir"),
    accepted("which engine serves is not a question here", "engine features"),
    refused("one model is served: /opt/ml/model, or what names it", "load_models model_store workflows"),
    refused("TLS is not spoken: a proxy must", "keystore* certificate_file private_key_file"),
    no_effect(
        "one engine batches for all",
        "batch_size max_dynamic_batch_size max_batch_delay max_idle_time minworkers maxworkers min_workers max_workers "
        "gpu.minworkers gpu.maxworkers cpu.minworkers cpu.maxworkers load_on_devices translatorfactory "
        "required_memory_mb gpu.required_memory_mb reserved_memory_mb gpu.reserved_memory_mb",
        "1 *",
    ),
    no_effect("the engine is restarted as `max_engine_restarts` says", "retry_threshold fail_fast"),
    no_effect("the log has its own lines", "log_request_metric metrics_aggregation"),
    no_effect(
        "the front is another one",
        "inference_address management_address cluster_address wait_model_loading allow_multi_status "
        "chunked_read_timeout number_of_netty_threads cors_* error_rate_* bad_request_http_code wlm_error_http_code "
        "throttle_error_http_code "
        "timeout_http_code server_error_http_code request_id_header_key use_native_io io_ratio plugin_folder "
        "model_url_pattern opts health_check_override",
    ),
)

# Of the names without a prefix, those that no other image has.
ONLY_LMIS = frozenset(
    {"TENSOR_PARALLEL_DEGREE", "PIPELINE_PARALLEL_DEGREE", "MODEL_LOADING_TIMEOUT", "PREDICT_TIMEOUT"}
)

BARE = table(
    to("", "TENSOR_PARALLEL_DEGREE PIPELINE_PARALLEL_DEGREE", _degree, "1; `max` is warned about, more refused"),
    to("start_timeout_s", "MODEL_LOADING_TIMEOUT", integer),
    to("request_timeout_s", "PREDICT_TIMEOUT", integer),
    to("enforce_eager", "ENABLE_CUDA_GRAPHS", lambda text: inverted(boolean(text)), "inverted"),
    refused(_ONE_GPU, "DJL_CLUSTER_SIZE", "1"),
    no_effect("there is no DJL inside", "DJL_CACHE_DIR DJL_VENV_DIR LMI_DEBUG_NSYS_ENABLED"),
)
