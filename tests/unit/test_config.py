"""Settings: which place wins, and one clear line for whatever cannot be."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from container import config
from container.config import ConfigError, Settings, load
from container.supervisor import main
from tests.http import tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tmp_path)


def settings(model: str, *argv: str, **environ: str) -> Settings:
    return load(["--model", model, *argv], environ)


def test_defaults(model: str) -> None:
    got = settings(model)
    assert (got.server.host, got.server.port, got.server.grace_s) == ("0.0.0.0", 8080, 25)
    assert got.engine.model == model
    assert got.engine.max_model_len is None


def test_precedence(model: str, tmp_path: Path) -> None:
    file = tmp_path / "galley.yaml"
    file.write_text("max-num-seqs: 1\nmax_num_waiting: 1\nblock_size: 64\ndtype: float32\nlog_level: null\n")
    argv = ["--config", str(file), "--max-num-seqs", "3"]
    got = settings(model, *argv, SM_GALLEY_MAX_NUM_SEQS="2", SM_GALLEY_MAX_NUM_WAITING="2", SM_GALLEY_MODEL="no")
    engine = got.engine
    assert (engine.max_num_seqs, engine.max_num_waiting, engine.block_size, engine.dtype) == (3, 2, 64, "float32")
    assert engine.model == model
    assert settings(model, SM_GALLEY_CONFIG=str(file)).engine.block_size == 64


@pytest.mark.parametrize(
    ("argv", "environ", "port"),
    [
        ([], {}, 8080),
        ([], {"SM_GALLEY_PORT": "1"}, 1),
        ([], {"SM_GALLEY_PORT": "1", "SAGEMAKER_BIND_TO_PORT": "2"}, 2),
        (["--port", "3"], {"SM_GALLEY_PORT": "1", "SAGEMAKER_BIND_TO_PORT": "2"}, 3),
        (["--port=3"], {}, 3),
    ],
)
def test_port(model: str, argv: list[str], environ: dict[str, str], port: int) -> None:
    assert settings(model, *argv, **environ).server.port == port


@pytest.mark.parametrize(
    ("argv", "value"),
    [([], False), (["--access-log"], True), (["--access-log", "false"], False), (["--access-log=True"], True)],
)
def test_booleans(model: str, argv: list[str], value: bool) -> None:
    assert settings(model, *argv).server.access_log is value
    assert settings(model, SM_GALLEY_ACCESS_LOG=str(value)).server.access_log is value


@pytest.mark.parametrize(
    ("argv", "value"),
    [([], None), (["--deterministic"], True), (["--deterministic", "false"], False), (["--no-deterministic"], False)],
)
def test_a_boolean_that_may_be_left_open(model: str, argv: list[str], value: bool | None) -> None:
    assert settings(model, *argv).engine.deterministic is value


def test_a_default_of_true_can_be_turned_off(model: str) -> None:
    assert settings(model).engine.enable_prefix_caching
    assert not settings(model, "--no-enable-prefix-caching").engine.enable_prefix_caching
    assert not settings(model, SM_GALLEY_ENABLE_PREFIX_CACHING="false").engine.enable_prefix_caching


def test_the_word_serve_is_ignored(model: str) -> None:
    assert load(["serve", "--model", model], {}).engine.model == model


def test_the_model_of_sagemaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SAGEMAKER_MODEL_DIR", tmp_path)
    with pytest.raises(ConfigError, match="no model to serve"):
        load([], {})
    (tmp_path / "config.json").touch()
    assert load([], {}).engine.model == str(tmp_path)


@pytest.mark.parametrize(
    ("argv", "environ", "line"),
    [
        (["--max-num-seq", "1"], {}, "unknown argument --max-num-seq (did you mean --max-num-seqs?)"),
        (["--max-num-seqs", "many"], {}, "--max-num-seqs must be an integer, not 'many'"),
        (["--max-num-seqs", "0"], {}, "--max-num-seqs must be between 1"),
        (["--max-num-seqs"], {}, "argument --max-num-seqs: expected one argument"),
        (["--port", "70000"], {}, "--port must be between 1 and 65535"),
        (["--dtype", "float61"], {}, "--dtype must be auto or float32 or bfloat16 or float16, not 'float61' (did you"),
        (["--grace-s", "soon"], {}, "--grace-s must be an integer"),
        (["--access-log", "maybe"], {}, "--access-log must be true or false"),
        (
            [],
            {"SM_GALLEY_MAX_NUM_SEQ": "1"},
            "unknown setting SM_GALLEY_MAX_NUM_SEQ in the environment (did you",
        ),
        ([], {"SM_GALLEY_BLOCK_SIZE": "17"}, "SM_GALLEY_BLOCK_SIZE must be a multiple of 16"),
        ([], {"SM_GALLEY_STALL_LIMIT_S": "nan"}, "SM_GALLEY_STALL_LIMIT_S must be a number, not 'nan'"),
        (["--stall-limit-s", "inf"], {}, "--stall-limit-s must be a number, not 'inf'"),
        (["--stall-limit-s", "1e300"], {}, "--stall-limit-s must be at most 86400"),
        (["--kv-cache-memory-gib", "inf"], {}, "--kv-cache-memory-gib must be a number, not 'inf'"),
        (["--request-timeout-s", "1" + "0" * 300], {}, "--request-timeout-s must be at most 2592000"),
        (["--num-workers", "1" * 5000], {}, "--num-workers must be an integer, not '1111"),
        ([], {"SAGEMAKER_BIND_TO_PORT": "x"}, "SAGEMAKER_BIND_TO_PORT must be an integer"),
        (["--config", "/nowhere.yaml"], {}, "cannot read the config file /nowhere.yaml: No such file"),
    ],
)
def test_one_line_for_what_cannot_be(model: str, argv: list[str], environ: dict[str, str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(model, *argv, **environ)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("max_num_seq: 1", "unknown setting max_num_seq in"),
        ("port: true", "must be an integer"),
        ("port: [1]", "must be integer, not a list"),
        ("- port", "must be a mapping"),
        ("a: b: c", "cannot read the config file"),
        ("port: 0", "must be between"),
    ],
)
def test_one_line_for_a_bad_file(model: str, tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=words) as error:
        settings(model, "--config", str(file))
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["/no/such/dir", "gs://bucket/model", "name", "s3://No_Bucket/x"])
def test_serve_refuses_a_model_that_is_not_there(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", model]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"serve: --model {model}: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}', "is not valid Jinja"),
    ],
)
def test_serve_refuses_a_model_whose_text_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, words: str
) -> None:
    tiny_model.write(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    assert main(["--model", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid", "192.0.2.1", "::2"])
def test_serve_refuses_an_address_that_it_cannot_bind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    tiny_model.write(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--model", str(tmp_path), "--host", host, "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"serve: cannot listen on --host {host} --port {port}: ")
    assert error.count("\n") == 1


def test_what_has_no_effect_is_named_at_any_log_level(tmp_path: Path) -> None:
    tiny_model.write(tmp_path)
    code = (
        "import sys; from container import supervisor\n"
        "class Nothing:\n    def __init__(self, *_): pass\n    def run(self): return 0\n"
        "supervisor.Supervisor = Nothing\n"
        "sys.exit(supervisor.main(['--model', sys.argv[1], '--host', '127.0.0.1', '--port', sys.argv[2]]))"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "SAGEMAKER_CONTAINER_LOG_LEVEL": "40", "SM_VLLM_XYZZY": "1"}
    run = [sys.executable, "-c", code, str(tmp_path), port]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    assert "SM_VLLM_XYZZY is not known and has no effect" in done.stderr


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        load(["--help"], {})
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for one in config.all_settings().values():
        assert one.flag in text
        assert one.env_name in text


def test_the_settings_page_is_current() -> None:
    """Regenerate it with `python -m container.config --markdown > docs/settings.md`."""
    assert (ROOT / "docs/settings.md").read_text() == config.markdown()


def test_requests_may_last_an_hour(model: str) -> None:
    # Asynchronous inference and batch transform both allow 3600 s.
    assert load(["--model", model], {}).server.request_timeout_s == 3600


def test_what_batch_transform_sets(model: str) -> None:
    environ = {
        "SAGEMAKER_BATCH": "True",
        "SAGEMAKER_BATCH_STRATEGY": "SINGLE_RECORD",
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "8",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "0",
        "SAGEMAKER_ENABLE_STATEFUL_SESSIONS": "false",
        "SAGEMAKER_SESSIONS_EXPIRATION": "60",
        # The platform knows best.
        "SM_GALLEY_BATCH_MAX_CONCURRENT_TRANSFORMS": "3",
    }
    server = load(["--model", model], environ).server
    assert (server.batch_transform, server.batch_strategy) == (True, "SINGLE_RECORD")
    assert (server.batch_max_concurrent_transforms, server.batch_max_payload_mb) == (8, 0)
    assert (server.enable_sessions, server.session_expiration_s) == (False, 60)
    server = load(["--model", model], {"SAGEMAKER_BATCH_STRATEGY": "SingleRecord"}).server
    assert server.batch_strategy == "SINGLE_RECORD"
    server = load(["--model", model], {}).server
    assert (server.batch_transform, server.enable_sessions, server.session_expiration_s) == (False, True, 1200)
    with pytest.raises(ConfigError, match=r"^SAGEMAKER_MAX_CONCURRENT_TRANSFORMS must be at least 1"):
        load(["--model", model], {"SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "0"})
