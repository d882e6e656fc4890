"""Variables of other images: each starts Galley as it started them, or one line says what cannot be."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from container import config
from container.config import ConfigError, Settings, load
from container.vendors import page
from container.vendors.rules import properties

ROOT = Path(__file__).parents[2]
HUB_ID = "org/model"


@pytest.fixture(autouse=True)
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of /opt/ml/model."""
    directory = tmp_path / "mounted"
    directory.mkdir()
    monkeypatch.setattr(config, "SAGEMAKER_MODEL_DIR", directory)
    return directory


def values(settings: Settings) -> dict[str, Any]:
    """All settings by name."""
    return asdict(settings.server) | asdict(settings.engine)


def changed(settings: Settings) -> dict[str, Any]:
    """The settings that are not at their default, but for what any of LMI's options means."""
    defaults = {name: one.default for name, one in config.all_settings().items()} | {"inputs_form": "lmi"}
    return {name: value for name, value in values(settings).items() if value not in (defaults[name], "tgi")}


def vllm(**environ: str) -> Settings:
    """`vllm(X="1")`: what a start with SM_VLLM_X=1 and a model gives."""
    return load([], {"SM_VLLM_MODEL": HUB_ID, **{f"SM_VLLM_{name}": text for name, text in environ.items()}})


def refusal(environ: dict[str, str]) -> str:
    """The line that ends the start."""
    with pytest.raises(ConfigError) as error:
        load([], environ)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_drop_in_page_is_current() -> None:
    """Regenerate it with `python -m container.config --drop-in-markdown > docs/drop-in.md`."""
    assert (ROOT / "docs/drop-in.md").read_text() == page.markdown()


IMAGES = {
    "vllm": (
        "SM_VLLM_MODEL=org/model SM_VLLM_MAX_MODEL_LEN=8192 SM_VLLM_DTYPE=half SM_VLLM_GPU_MEMORY_UTILIZATION=0.85 "
        "SM_VLLM_MAX_NUM_SEQS=64 SM_VLLM_MAX_NUM_BATCHED_TOKENS=4096 SM_VLLM_ENFORCE_EAGER=true HF_TOKEN=hf_x "
        "SM_VLLM_TENSOR_PARALLEL_SIZE=1 SM_VLLM_SERVED_MODEL_NAME=chat SM_VLLM_HOST=0.0.0.0 SM_VLLM_PORT=8080",
        "model=org/model max_model_len=8192 dtype=float16 gpu_memory_utilization=0.85 max_num_seqs=64 "
        "max_num_batched_tokens=4096 enforce_eager=True served_model_name=chat hf_token=hf_x",
    ),
    "sglang": (
        "SM_SGLANG_MODEL_PATH=org/model SM_SGLANG_CONTEXT_LENGTH=8192 SM_SGLANG_MEM_FRACTION_STATIC=0.8 "
        "SM_SGLANG_MAX_RUNNING_REQUESTS=48 SM_SGLANG_CHUNKED_PREFILL_SIZE=2048 SM_SGLANG_DTYPE=bfloat16 "
        "SM_SGLANG_TP_SIZE=1 SM_SGLANG_DISABLE_CUDA_GRAPH= SM_SGLANG_DISABLE_RADIX_CACHE=true SM_SGLANG_REVISION=v1",
        "model=org/model max_model_len=8192 gpu_memory_utilization=0.8 max_num_seqs=48 max_num_batched_tokens=2048 "
        "dtype=bfloat16 enforce_eager=True enable_prefix_caching=False revision=v1",
    ),
    "lmi": (
        "OPTION_MODEL_ID=org/model OPTION_MAX_ROLLING_BATCH_SIZE=32 OPTION_ROLLING_BATCH=vllm OPTION_DTYPE=fp16 "
        "OPTION_TENSOR_PARALLEL_DEGREE=1 OPTION_MAX_MODEL_LEN=4096 OPTION_ASYNC_MODE=true OPTION_ENFORCE_EAGER=true "
        "OPTION_ENTRYPOINT=djl_python.lmi_vllm.vllm_async_service SERVING_JOB_QUEUE_SIZE=100",
        "model=org/model max_num_seqs=32 max_model_len=4096 dtype=float16 enforce_eager=True max_num_waiting=100",
    ),
    "tgi": (
        "HF_MODEL_ID=org/model HF_MODEL_REVISION=v1 HF_TASK=text-generation SM_NUM_GPUS=1 MAX_TOTAL_TOKENS=4096 "
        "MAX_BATCH_PREFILL_TOKENS=2048 MAX_CONCURRENT_REQUESTS=128 CUDA_GRAPHS=0 MESSAGES_API_ENABLED=true "
        "HUGGING_FACE_HUB_TOKEN=hf_x SAGEMAKER_CONTAINER_LOG_LEVEL=10 SAGEMAKER_REGION=us-east-1 "
        "MMS_MAX_REQUEST_SIZE=2000000000",
        "model=org/model revision=v1 max_model_len=4096 max_num_batched_tokens=2048 max_num_waiting=128 "
        "enforce_eager=True hf_token=hf_x log_level=debug max_body_mb=1024",
    ),
}


def pairs(text: str) -> dict[str, str]:
    """`"a=1 b="` → `{"a": "1", "b": ""}`."""
    return {name: value for name, _, value in (word.partition("=") for word in text.split())}


@pytest.mark.parametrize(("environ", "expected"), IMAGES.values(), ids=IMAGES)
def test_an_environment_of_another_image_starts_galley(environ: str, expected: str) -> None:
    settings = load([], pairs(environ))
    assert {name: str(value) for name, value in changed(settings).items()} == pairs(expected)
    assert settings.warnings == ()


def test_restarts_are_those_of_awss_supervisor() -> None:
    def restarts(**environ: str) -> tuple[int, int]:
        settings = load([], {"HF_MODEL_ID": HUB_ID, **environ})
        return settings.server.max_engine_restarts, len(settings.warnings)

    assert restarts(PROCESS_MAX_START_RETRIES="5", PROCESS_AUTO_RECOVERY="true") == (5, 0)
    assert restarts(PROCESS_AUTO_RECOVERY="false") == (0, 0)
    # Both: no recovery is the stronger word, and the other one is named.
    assert restarts(PROCESS_AUTO_RECOVERY="false", PROCESS_MAX_START_RETRIES="5") == (0, 1)


@pytest.mark.parametrize(
    ("environ", "form"),
    [
        ("OPTION_ROLLING_BATCH=vllm", "lmi"),
        ("OPTION_TGI_COMPAT=false OPTION_DTYPE=fp16", "lmi"),
        ("OPTION_DTYPE=fp16 OPTION_TGI_COMPAT=true", "tgi"),
        ("OPTION_ROLLING_BATCH=vllm SM_GALLEY_INPUTS_FORM=tgi", "tgi"),
        ("TENSOR_PARALLEL_DEGREE=1", "lmi"),
        ("SERVING_FAIL_FAST=true", "lmi"),
        ("MAX_TOTAL_TOKENS=4096 ENABLE_CUDA_GRAPHS=true", "tgi"),
        ("SM_VLLM_DTYPE=half", "tgi"),
        ("SM_GALLEY_INPUTS_FORM=lmi", "lmi"),
    ],
)
def test_lmis_options_mean_lmis_answers(environ: str, form: str) -> None:
    assert load([], {"HF_MODEL_ID": HUB_ID, **pairs(environ)}).server.inputs_form == form


def test_serving_properties_of_the_model_directory(mounted: Path) -> None:
    (mounted / "serving.properties").write_text(
        "# LMI\nengine=Python\noption.model_id = org/model\noption.rolling_batch=vllm\n"
        "option.max_rolling_batch_size: 16\noption.enable_prefix_caching=false\njob_queue_size=7\noption.task=\n"
    )
    settings = load([], {"OPTION_MAX_ROLLING_BATCH_SIZE": "32"})
    assert changed(settings) == {
        "model": HUB_ID,
        "max_num_seqs": 16,
        "enable_prefix_caching": False,
        "max_num_waiting": 7,
    }
    assert len(settings.warnings) == 1
    assert settings.warnings[0].startswith("OPTION_MAX_ROLLING_BATCH_SIZE is not used: option.max_rolling_ba")
    (mounted / "serving.properties").write_text("option.tensor_parallel_degree=4\n")
    assert refusal({"HF_MODEL_ID": HUB_ID}).startswith(f"option.tensor_parallel_degree in {mounted}")


@pytest.mark.usefixtures("mounted")
def test_serving_properties_beside_a_model_that_yaml_names(tmp_path: Path) -> None:
    (tmp_path / "serving.properties").write_text("option.max_rolling_batch_size=16\n")
    settings = load([], {"SM_GALLEY_CONFIG_YAML": f"model: {tmp_path}"})
    assert settings.engine.max_num_seqs == 16


@pytest.mark.usefixtures("mounted")
def test_what_is_always_done_cannot_be_switched_off_in_silence() -> None:
    settings = load([], {"HF_MODEL_ID": HUB_ID, "OPTION_ENABLE_CHUNKED_PREFILL": "false"})
    assert settings.warnings == ("OPTION_ENABLE_CHUNKED_PREFILL has no effect: prompts are always computed in chunks",)
    assert load([], {"HF_MODEL_ID": HUB_ID, "OPTION_ENABLE_CHUNKED_PREFILL": "true"}).warnings == ()
    # In that image it is as if it were not there.
    assert load([], {"HF_MODEL_ID": HUB_ID, "SM_VLLM_ENABLE_CHUNKED_PREFILL": "false"}).warnings == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1\nb:2\nc 3\n d = 4 ", [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]),
        ("#a=1\n! b=2\n\n", []),
        ("a=x\\\n  y\nb=1", [("a", "xy"), ("b", "1")]),
        (r"a\=b=\u0041\tc", [("a=b", "A\tc")]),
        ("a=b=c", [("a", "b=c")]),
        ("a", [("a", "")]),
    ],
)
def test_a_properties_file_is_read_as_java_does(text: str, expected: list[tuple[str, str]]) -> None:
    assert list(properties(text)) == expected


@pytest.mark.parametrize("path", [False, True])
def test_a_mounted_model_comes_before_the_hubs_unless_a_path_is_meant(mounted: Path, path: bool) -> None:
    (mounted / "config.json").touch()
    named = str(mounted.parent / "other") if path else HUB_ID
    settings = load([], {"HF_MODEL_ID": named})
    assert settings.engine.model == (named if path else str(mounted))
    assert settings.warnings == (() if path else (f"HF_MODEL_ID is not used: {mounted} holds a model",))
    assert load([], {"SM_VLLM_MODEL": HUB_ID}).engine.model == HUB_ID


def test_names_without_a_prefix_count_only_where_tgi_would_start() -> None:
    assert load([], {"SM_VLLM_MODEL": HUB_ID, "DTYPE": "float16"}).engine.dtype == "auto"
    mixed = {"SM_VLLM_DTYPE": "bfloat16", "HF_MODEL_ID": HUB_ID, "DTYPE": "float16", "QUANTIZE": "awq"}
    assert load([], mixed).engine.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("ENFORCE_EAGER", "true", "enforce_eager", True),
        ("ENFORCE_EAGER", "True", "enforce_eager", True),
        ("ENFORCE_EAGER", "", "enforce_eager", True),
        ("ENFORCE_EAGER", "1", "enforce_eager", True),
        ("ENFORCE_EAGER", "false", "enforce_eager", False),
        ("NO_ENABLE_PREFIX_CACHING", "true", "enable_prefix_caching", False),
        ("NO_ENABLE_PREFIX_CACHING", "false", "enable_prefix_caching", True),
        ("DISABLE_UVICORN_ACCESS_LOG", "true", "access_log", False),
        ("ASYNC_SCHEDULING", "true", "async_scheduling", True),
        ("ASYNC_SCHEDULING", "false", "async_scheduling", None),
        ("MAX_MODEL_LEN", "8k", "max_model_len", 8000),
        ("MAX_MODEL_LEN", "8K", "max_model_len", 8192),
        ("MAX_MODEL_LEN", "1.5K", "max_model_len", 1536),
        ("MAX_MODEL_LEN", "auto", "max_model_len", None),
        ("MAX_MODEL_LEN", "-1", "max_model_len", None),
        ("KV_CACHE_MEMORY_BYTES", "1.5G", "kv_cache_memory_gib", 1.5),
        ("DTYPE", "torch.float16", "dtype", "float16"),
        ("LOAD_FORMAT", "runai_streamer", "load_format", "auto"),
        ("SERVED_MODEL_NAME", '["chat"]', "served_model_name", "chat"),
        ("SERVED_MODEL_NAME", "chat", "served_model_name", "chat"),
        ("UVICORN_LOG_LEVEL", "trace", "log_level", "debug"),
        ("OVERRIDE_GENERATION_CONFIG", "{}", "model", HUB_ID),
        ("LORA_MODULES", "[]", "model", HUB_ID),
        ("COMPILATION_CONFIG", "{ }", "model", HUB_ID),
    ],
)
def test_values_are_read_as_vllms_image_reads_them(name: str, text: str, field: str, value: object) -> None:
    settings = vllm(**{name: text})
    assert values(settings)[field] == value
    assert settings.warnings == ()


def test_precedence_of_other_images_names(tmp_path: Path) -> None:
    file = tmp_path / "galley.yaml"
    file.write_text("model: org/file\nmax_num_seqs: 4\nblock_size: 64\ndtype: float16\nmax_model_len: 100\n")
    environ = {
        "SM_GALLEY_CONFIG": str(file),
        "SM_GALLEY_MAX_MODEL_LEN": "200",
        "SM_GALLEY_DTYPE": "bfloat16",
        "SM_VLLM_MODEL": HUB_ID,
        "SM_VLLM_MAX_MODEL_LEN": "300",
        "SM_VLLM_DTYPE": "half",
        "SM_VLLM_MAX_NUM_SEQS": "5",
        "SM_VLLM_PORT": "1",
        "SM_GALLEY_PORT": "2",
        "SAGEMAKER_BIND_TO_PORT": "3",
    }
    assert changed(load(["--dtype", "float32"], environ)) == {
        "model": HUB_ID,
        "dtype": "float32",  # the command line
        "port": 3,  # the platform
        "max_model_len": 200,  # SM_GALLEY_*
        "max_num_seqs": 5,  # another image's
        "block_size": 64,  # the file
    }


def test_the_first_of_two_images_counts_and_the_log_names_the_other() -> None:
    both = {"SM_SGLANG_DTYPE": "half", "SM_VLLM_DTYPE": "bfloat16", "SM_VLLM_MODEL": HUB_ID, "HF_MODEL_ID": HUB_ID}
    settings = load([], both)
    assert settings.engine.dtype == "bfloat16"
    assert settings.warnings == ("SM_SGLANG_DTYPE is not used: SM_VLLM_DTYPE says otherwise",)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("SM_VLLM_TENSOR_PARALLEL_SIZE", "2", "one GPU"),
        ("SM_VLLM_QUANTIZATION", "awq", "type that they have"),
        ("SM_VLLM_KV_CACHE_DTYPE", "fp8", "KV cache"),
        ("SM_VLLM_ENABLE_LORA", "true", "adapters"),
        ("SM_VLLM_ENABLE_LORA", "", "adapters"),
        ("SM_VLLM_LORA_MODULES", '[{"name": "a", "path": "b"}]', "adapters"),
        ("SM_VLLM_SPECULATIVE_CONFIG", '{"method": "ngram"}', "speculative"),
        ("SM_VLLM_CHAT_TEMPLATE", "{{ a }}\n{{ b }}", "template"),
        ("SM_VLLM_API_KEY", "sk-x", "API keys"),
        ("SM_VLLM_LOAD_FORMAT", "gguf", "safetensors"),
        ("SM_VLLM_LOAD_FORMAT", "p\nt", "safetensors"),
        ("SM_VLLM_SERVED_MODEL_NAME", '["a", "b"]', "one name"),
        ("SM_VLLM_MAX_MODEL_LEN", "", "needs a value"),
        ("SM_VLLM_MAX_MODEL_LEN", "many", "must be an integer, not 'many'"),
        ("SM_VLLM_ENFORCE_EAGER", "maybe", "must be true or false"),
        ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "true", "adapters"),
        ("SM_SGLANG_TP", "2", "one GPU"),
        ("SM_SGLANG_QUANTIZATION", "fp8", "type that they have"),
        ("SM_SGLANG_SPECULATIVE_ALGORITHM", "EAGLE", "speculative"),
        ("SM_SGLANG_LORA_PATHS", '["a=b"]', "adapters"),
        ("OPTION_TENSOR_PARALLEL_DEGREE", "2", "one GPU"),
        ("TENSOR_PARALLEL_DEGREE", "2", "one GPU"),
        ("OPTION_QUANTIZE", "awq", "type that they have"),
        ("OPTION_SPECULATIVE_DRAFT_MODEL", "x", "speculative"),
        ("OPTION_ENTRYPOINT", "model.py", "handlers"),
        ("SM_NUM_GPUS", "2", "one GPU"),
        ("NUM_SHARD", "4", "one GPU"),
        ("HF_MODEL_QUANTIZE", "bitsandbytes", "type that they have"),
        ("SPECULATE", "2", "speculative"),
        ("LORA_ADAPTERS", "a,b", "adapters"),
        ("HF_TASK", "feature-extraction", "text is generated"),
        ("SAGEMAKER_MULTI_MODEL", "true", "multi-model"),
        ("SM_SGLANG_PREFERRED_SAMPLING_PARAMS", '{"temperature": 0}', "generation_config"),
        ("SM_SGLANG_CONFIG", "/x.yaml", "SM_GALLEY_CONFIG"),
        ("SM_VLLM_CONFIG", "/x.yaml", "SM_GALLEY_CONFIG"),
    ],
)
def test_what_would_change_the_answers_ends_the_start_by_name(name: str, text: str, words: str) -> None:
    line = refusal({"HF_MODEL_ID": HUB_ID, name: text})
    assert line.startswith(name)
    assert words in line


def test_one_line_names_all_that_is_refused() -> None:
    line = refusal({"SM_VLLM_MODEL": HUB_ID, "SM_VLLM_QUANTIZATION": "awq", "SM_VLLM_TENSOR_PARALLEL_SIZE": "4"})
    assert "SM_VLLM_QUANTIZATION cannot be served: " in line
    assert "; SM_VLLM_TENSOR_PARALLEL_SIZE cannot be served: " in line


@pytest.mark.parametrize(
    ("name", "text", "warning"),
    [
        ("SM_VLLM_SWAP_SPACE", "8", "SM_VLLM_SWAP_SPACE has no effect: a sequence"),
        ("SM_VLLM_TRUST_REMOTE_CODE", "true", "SM_VLLM_TRUST_REMOTE_CODE has no effect: code"),
        ("SM_VLLM_MAX_LORAS", "8", "SM_VLLM_MAX_LORAS has no effect: adapters"),
        ("SM_VLLM_BLOCK_SIZE", "8", "SM_VLLM_BLOCK_SIZE=8 has no effect: a block"),
        ("SM_VLLM_ENABLE_PREFIX_CACHING", "false", "SM_VLLM_ENABLE_PREFIX_CACHING=false leaves enable_prefix_caching"),
        ("SM_VLLM_NO_ENABLE_CHUNKED_PREFILL", "true", "SM_VLLM_NO_ENABLE_CHUNKED_PREFILL has no effect: prompts"),
        ("VLLM_USE_V1", "1", "VLLM_USE_V1 has no effect: "),
        ("SM_SGLANG_ATTENTION_BACKEND", "fa3", "SM_SGLANG_ATTENTION_BACKEND has no effect: kernels"),
        ("SM_SGLANG_CHUNKED_PREFILL_SIZE", "-1", "SM_SGLANG_CHUNKED_PREFILL_SIZE=-1 has no effect: prompts"),
        ("OPTION_TENSOR_PARALLEL_DEGREE", "max", "OPTION_TENSOR_PARALLEL_DEGREE=max has no effect: one GPU"),
        ("OPTION_OUTPUT_FORMATTER", "sse", "OPTION_OUTPUT_FORMATTER has no effect: "),
        ("SERVING_MAX_IDLE_TIME", "60", "SERVING_MAX_IDLE_TIME has no effect: one engine"),
        ("MAX_INPUT_LENGTH", "2048", "MAX_INPUT_LENGTH has no effect: `max_model_len` limits"),
        ("CUDA_GRAPHS", "1,2,4", "CUDA_GRAPHS=1,2,4 has no effect: "),
        ("SUPERVISOR_PROGRAM__APP_STARTSECS", "9", "SUPERVISOR_PROGRAM__APP_STARTSECS has no effect: the supervisor"),
        ("SM_VLLM_ENABLE_LOG_REQUESTS", "true", "SM_VLLM_ENABLE_LOG_REQUESTS has no effect: the log"),
        ("SM_VLLM_NUM_GPU_BLOCKS_OVERRIDE", "4", "SM_VLLM_NUM_GPU_BLOCKS_OVERRIDE has no effect: a sequence"),
        ("SM_VLLM_ALLOWED_ORIGINS", '["*"]', "SM_VLLM_ALLOWED_ORIGINS has no effect: cross-origin"),
        ("OPTION_PARALLEL_LOADING", "true", "OPTION_PARALLEL_LOADING has no effect: the device"),
        ("MODEL_CACHE_ROOT", "/opt/ml/model", "MODEL_CACHE_ROOT has no effect: models"),
        ("SAGEMAKER_SESSIONS_PATH", "/dev/shm/x", "SAGEMAKER_SESSIONS_PATH has no effect: sessions live"),
        ("SM_VLLM_MAX_MODEL_LENGTH", "9", "SM_VLLM_MAX_MODEL_LENGTH is not known and has no effect (did you mean SM_V"),
        ("SM_VLLM_XYZZY", "9", "SM_VLLM_XYZZY is not known and has no effect"),
        (
            "SM_SGLANG_CONTEXT_LEN",
            "9",
            "SM_SGLANG_CONTEXT_LEN is not known and has no effect (did you mean SM_SGLANG",
        ),
        ("OPTION_MODEL_IDS", "9", "OPTION_MODEL_IDS is not known and has no effect (did you mean OPTION_MODEL_ID?)"),
        (
            "OPTION_ENTRY_POINTS",
            "9",
            "OPTION_ENTRY_POINTS is not known and has no effect (did you mean OPTION_ENTRYPOINT?)",
        ),
        (
            "SERVING_JOB_QUEUE",
            "9",
            "SERVING_JOB_QUEUE is not known and has no effect (did you mean SERVING_JOB",
        ),
        (
            "HF_MODEL_REVISIONS",
            "9",
            "HF_MODEL_REVISIONS is not known and has no effect (did you mean HF_MODEL_",
        ),
    ],
)
def test_what_has_no_effect_is_warned_about_by_name(name: str, text: str, warning: str) -> None:
    settings = load([], {"HF_MODEL_ID": HUB_ID, name: text})
    assert changed(settings) == {"model": HUB_ID}
    assert len(settings.warnings) == 1
    assert settings.warnings[0].startswith(warning)


def test_a_misspelt_key_of_serving_properties_is_warned_about(mounted: Path) -> None:
    (mounted / "serving.properties").write_text("option.model_ids=x\njob_queue=1\n")
    first, second = load([], {"HF_MODEL_ID": HUB_ID}).warnings
    assert first.endswith("serving.properties is not known and has no effect (did you mean option.model_id?)")
    assert second.endswith("serving.properties is not known and has no effect (did you mean job_queue_size?)")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SM_VLLM_QUANTIZATION", "none"),
        ("SM_VLLM_ENABLE_LORA", "false"),
        ("SM_VLLM_NO_ENABLE_LORA", "true"),
        ("SM_VLLM_NO_ENABLE_LORA", "false"),
        ("SM_VLLM_KV_CACHE_DTYPE", "auto"),
        ("SM_VLLM_SEED", "0"),
        ("SM_VLLM_ENABLE_CHUNKED_PREFILL", "true"),
        ("SM_VLLM_DISABLE_LOG_STATS", "true"),
        ("SM_SGLANG_DP_SIZE", "1"),
        ("SM_SGLANG_SCHEDULE_POLICY", "fcfs"),
        ("OPTION_QUANTIZE", ""),
        ("OPTION_ENABLE_LORA", "False"),
        ("OPTION_TASK", "text-generation"),
        ("TENSOR_PARALLEL_DEGREE", "1"),
        ("HF_MODEL_QUANTIZE", ""),
        ("HF_MODEL_TRUST_REMOTE_CODE", "false"),
        ("QUANTIZE", ""),
        ("SOMETHING_ELSE", "1"),
    ],
)
def test_what_asks_for_nothing_is_accepted_without_a_word(name: str, text: str) -> None:
    settings = load([], {"HF_MODEL_ID": HUB_ID, name: text})
    assert changed(settings) == {"model": HUB_ID}
    assert settings.warnings == ()
