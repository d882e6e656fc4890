"""TGI's variables, and those of the Hugging Face Hub that all images share.

Knows their names and what each means here. MODEL_ID is not among them: TGI on SageMaker puts HF_MODEL_ID there.
Sources: huggingface/text-generation-inference at db931fc (docs/source/reference/launcher.md, sagemaker-
entrypoint.sh); huggingface_hub's environment variables
(https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables); LMI's starting guide for
HF_REVISION.
"""

from container.vendors.rules import (
    NotUsedError,
    accepted,
    bytes_to_mib,
    dtype,
    integer,
    no_effect,
    refused,
    same,
    table,
    to,
)

_QUANTIZED = "weights are served in the type that they have"
_ONE_GPU = "one GPU is used"
_REMOTE_CODE = "code from a model's repository is never run; an architecture that needs it is refused when it loads"


def _cuda_graphs(text: str) -> str | None:
    if text.strip() == "0":
        return "true"
    raise NotUsedError("the batch sizes of CUDA graphs are chosen at start")


def _under_home(text: str) -> str:
    return text.rstrip("/") + "/hub"


READ_BY_LIBRARIES = "HF_HUB_OFFLINE HF_ENDPOINT HF_HUB_ENABLE_HF_TRANSFER"

# In whatever image: the Hub's own names and the SDK's.
HUB = table(
    to("model", "HF_MODEL_ID", why="only while /opt/ml/model holds no model, unless it is a path"),
    to("revision", "HF_MODEL_REVISION HF_REVISION"),
    to("hf_token", "HF_TOKEN HUGGING_FACE_HUB_TOKEN HF_API_TOKEN HUGGINGFACE_HUB_TOKEN"),
    to("download_dir", "HF_HUB_CACHE HUGGINGFACE_HUB_CACHE"),
    to("download_dir", "HF_HOME", _under_home, "its `hub` folder"),
    refused(_QUANTIZED, "HF_MODEL_QUANTIZE"),
    refused("text is generated, nothing else", "HF_TASK", "text-generation"),
    no_effect(_REMOTE_CODE, "HF_MODEL_TRUST_REMOTE_CODE HF_TRUST_REMOTE_CODE"),
    no_effect("safetensors are read by a loader of its own", "HF_ENABLE_RUNAI_STREAMER"),
    accepted("read by huggingface_hub itself", READ_BY_LIBRARIES),
)

# Without a prefix, so generic that they count only where TGI's image would start: reading.py says when.
RULES = table(
    same("revision"),
    to("max_model_len", "max_total_tokens", integer),
    to("max_num_batched_tokens", "max_batch_prefill_tokens", integer),
    to("max_num_seqs", "max_batch_size", integer),
    to("max_num_waiting", "max_concurrent_requests", integer, "TGI counts running requests too"),
    to("gpu_memory_utilization", "cuda_memory_fraction"),
    to("enforce_eager", "cuda_graphs", _cuda_graphs, "0; sizes have no effect"),
    to("dtype", "dtype", dtype),
    to("max_body_mb", "payload_limit", bytes_to_mib, "in bytes, at most 1 GiB"),
    to("grace_s", "graceful_termination_timeout", integer),
    to("download_dir", "weights_cache_override"),
    refused(_ONE_GPU, "num_shard sm_num_gpus", "1"),
    no_effect(_ONE_GPU, "sharded master_addr master_port shard_uds_path"),
    refused(_QUANTIZED, "quantize"),
    refused("the KV cache has the model's type", "kv_cache_dtype"),
    refused("there is no speculative decoding", "speculate"),
    refused("adapters are not served", "lora_adapters"),
    refused("the tokenizer is the model directory's", "tokenizer_config_path"),
    refused("config.json is taken as it is", "rope_scaling rope_factor"),
    refused("API keys are not checked: on SageMaker the platform authenticates, elsewhere a proxy must", "api_key"),
    refused("there is no tunnel", "ngrok ngrok_authtoken ngrok_edge"),
    no_effect("`max_model_len` limits prompt and output together", "max_input_length max_input_tokens"),
    no_effect("the KV cache takes what gpu_memory_utilization leaves", "max_batch_total_tokens"),
    no_effect("sequences join at every step", "waiting_served_ratio max_waiting_tokens"),
    no_effect(
        "what a request may ask for is on the API page",
        "max_best_of max_stop_sequences max_top_n_tokens max_client_batch_size enable_prefill_logprobs "
        "disable_grammar_support",
    ),
    no_effect("a request that asks for a watermark is refused", "watermark_gamma watermark_delta"),
    no_effect("tokenising is the web workers' work (`num_workers`)", "validation_workers"),
    no_effect("kernels are chosen at start, by the device", "disable_custom_kernels attention prefix_caching use_*"),
    no_effect("prompts are always computed in chunks", "prefill_chunking", "1 true", is_on=True),
    no_effect("the KV cache takes what gpu_memory_utilization leaves", "tgi_wiggle_room"),
    no_effect("the log has its own lines", "json_output otlp_endpoint otlp_service_name log_level log_format"),
    no_effect("the front is another one", "cors_allow_origin prometheus_port"),
    no_effect(_REMOTE_CODE, "trust_remote_code"),
    accepted("a body shows whether it is a chat", "messages_api_enabled"),
    accepted("nothing is reported to anyone", "usage_stats"),
)
