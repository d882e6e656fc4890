"""Where Galley's settings come from: the command line, the environment, YAML or JSON, defaults.

Knows every setting's name in each of these places and which place wins. The only module that reads the environment.
Must not know what a setting does: the two dataclasses, ServerConfig and EngineConfig, say that; nor what other images'
names mean: `container.vendors` does.

Precedence, first wins: command line, SM_GALLEY_*, other images' names, YAML or JSON, defaults. One exception: the
names of `_PLATFORM_NAMES` are the platform's orders, not the operator's wishes, and beat SM_GALLEY_PORT and the like.
"""

import argparse
import dataclasses
import json
import os
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from container.setting import ENV_PREFIX, ConfigError, Layer, Setting, clean_secret, did_you_mean, parse_given
from container.vendors import page
from container.vendors.reading import READ_BY_LIBRARIES, ForeignSettingError, holds_model, is_foreign, read
from engine.api import EngineConfig
from engine.api.config import setting

__all__ = [
    "SAGEMAKER_MODEL_DIR",
    "ConfigError",
    "ServerConfig",
    "Settings",
    "all_settings",
    "child_environment",
    "load",
    "markdown",
]

SAGEMAKER_MODEL_DIR = Path("/opt/ml/model")
# Where all settings may stand together: a file's path, or the text itself.
_DOCUMENT_NAMES = (ENV_PREFIX + "CONFIG", ENV_PREFIX + "CONFIG_YAML")
# The engine reads a directory; `serve` brings the model there first.
_MODEL_HELP = (
    "What to serve: a directory with config.json, safetensors weights and tokenizer.json, a model's id on the Hugging "
    "Face Hub, or an s3:// prefix."
)
_DAY_S = 86_400
# What nobody means in earnest: beyond it a number is a slip, and would overflow somewhere else.
_MOST = {
    "num_workers": 512,
    "worker_connections": 1_000_000,
    "max_body_mb": 1024,
    "request_timeout_s": 30 * _DAY_S,
    "keepalive_s": _DAY_S,
    "stall_limit_s": _DAY_S,
    "start_timeout_s": 30 * _DAY_S,
    "grace_s": _DAY_S,
    "batch_max_concurrent_transforms": 100,
    "batch_max_payload_mb": 1024,
    "session_expiration_s": 365 * _DAY_S,
    "max_engine_restarts": 1_000_000,
    "restart_window_s": 365 * _DAY_S,
}
InputsForm = Literal["tgi", "lmi"]
BatchStrategy = Literal["MULTI_RECORD", "SINGLE_RECORD"]
_CUSTOM_CODE_NAMES = (
    "CUSTOM_FASTAPI_INVOCATION_HANDLER",
    "CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS",
    "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE",
    "CUSTOM_FASTAPI_PING_HANDLER",
    "CUSTOM_POST_PROCESS",
    "CUSTOM_PRE_PROCESS",
    "CUSTOM_SCRIPT_FILENAME",
    "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",
    "SAGEMAKER_MODEL_PATH",
    "SAGEMAKER_PROGRAM",
    "SAGEMAKER_SUBMIT_DIRECTORY",
    "STANDARD_AUTO_INSTALL_REQ",
    "STANDARD_PIP_ARGS",
)
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of the supervisor and the web workers. Raises ValueError, naming the setting, when out of range."""

    host: str = setting("0.0.0.0", "Address to listen on.")
    port: int = setting(8080, "TCP port to listen on; SAGEMAKER_BIND_TO_PORT wins over the environment and the file.")
    num_workers: int = setting(2, "Web worker processes; each tokenises and streams for its own connections.")
    worker_connections: int = setting(
        4096, "Most connections that one web worker holds at a time, idle ones included; more must wait, /ping too."
    )
    max_body_mb: int = setting(100, "Largest request body in MiB; beyond it a request gets 413.")
    request_timeout_s: int = setting(
        3600, "Longest time in seconds that one request may take, from its headers on; beyond it, 504."
    )
    keepalive_s: int = setting(75, "Seconds that an idle connection is kept open.")
    stall_limit_s: float = setting(
        20.0, "Seconds without a sign of life after which the engine counts as hung and is started anew."
    )
    start_timeout_s: int = setting(1800, "Seconds that the engine may take until it is ready.")
    grace_s: int = setting(25, "Seconds that running requests get to finish after SIGTERM.")
    max_engine_restarts: int = setting(3, "Engine restarts within restart_window_s; one more and the container exits.")
    restart_window_s: int = setting(600, "Seconds over which engine restarts are counted.")
    revision: str | None = setting(
        None, "Branch, tag or commit of a model from the hub; its default branch if not given."
    )
    hf_token: str | None = dataclasses.field(
        default=None, repr=False, metadata={"help": "Token for private and gated models of the hub."}
    )
    download_dir: str | None = setting(
        None, "Where models are downloaded to and kept; ~/.cache/galley or /tmp/galley, where there is room."
    )
    batch_transform: bool = setting(
        False, "Serve batch transform: every answer is a line, a body of several lines is a batch. [SAGEMAKER_BATCH]"
    )
    batch_strategy: BatchStrategy = setting(
        "MULTI_RECORD", "What /execution-parameters asks batch transform for. [SAGEMAKER_BATCH_STRATEGY]"
    )
    batch_max_concurrent_transforms: int = setting(
        4, "Requests at a time from batch transform, the same. [SAGEMAKER_MAX_CONCURRENT_TRANSFORMS]"
    )
    batch_max_payload_mb: int = setting(
        6, "Largest request of batch transform in MB, the same; 0 is any. [SAGEMAKER_MAX_PAYLOAD_IN_MB]"
    )
    inputs_form: InputsForm = setting(
        "tgi", "Form of the answers to {\"inputs\": …}: TGI's, or LMI's. Variables of LMI's image mean the latter."
    )
    always_include_usage: bool = setting(False, "End every OpenAI stream with token counts, asked for or not.")
    enable_sessions: bool = setting(True, "Open stateful sessions on request. [SAGEMAKER_ENABLE_STATEFUL_SESSIONS]")
    session_expiration_s: int = setting(
        1200, "Seconds from a session's opening to its end. [SAGEMAKER_SESSIONS_EXPIRATION]"
    )
    log_level: LogLevel = setting("info", "Least severe log lines to write: debug, info, warning or error.")
    access_log: bool = setting(False, "Write one log line per request.")

    def __post_init__(self) -> None:
        for name in ("num_workers", "worker_connections", "max_body_mb", "request_timeout_s", "start_timeout_s"):
            _check(getattr(self, name) >= 1, name, "at least 1")
        for name in ("batch_max_concurrent_transforms", "session_expiration_s"):
            _check(getattr(self, name) >= 1, name, "at least 1")
        _check(self.batch_strategy in typing.get_args(BatchStrategy), "batch_strategy", "MULTI_RECORD or SINGLE_RECORD")
        _check(self.inputs_form in typing.get_args(InputsForm), "inputs_form", "tgi or lmi")
        _check(1 <= self.port <= 65535, "port", "between 1 and 65535")
        _check(self.host != "", "host", "an address")
        _check(self.stall_limit_s >= 2, "stall_limit_s", "at least 2: the engine gives one sign of life per second")
        for name in ("batch_max_payload_mb", "keepalive_s", "grace_s", "max_engine_restarts", "restart_window_s"):
            _check(getattr(self, name) >= 0, name, "at least 0")
        for name, most in _MOST.items():
            _check(getattr(self, name) <= most, name, f"at most {most}")
        _check(self.log_level in typing.get_args(LogLevel), "log_level", "debug, info, warning or error")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that one `serve` runs with. warnings: lines for the log, about names of other images."""

    server: ServerConfig
    engine: EngineConfig
    warnings: tuple[str, ...] = ()
    # Where custom code may lie: what `model` named, in which the model may be a directory. None until it is here.
    artifact_dir: str | None = None
    is_num_workers_given: bool = False
    # What the contracts for custom code (docs/custom-code.md) name in the environment.
    custom_code: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # What libraries read themselves, and a document said: our child processes find it in their environment.
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def with_model(self, model: str, artifact: str) -> "Settings":
        """The same with a model that has been found."""
        return dataclasses.replace(self, engine=dataclasses.replace(self.engine, model=model), artifact_dir=artifact)


def all_settings() -> dict[str, Setting]:
    """Every setting by field name, the server's first."""
    found: dict[str, Setting] = {}
    for owner in (ServerConfig, EngineConfig):
        hints = typing.get_type_hints(owner)
        for field in dataclasses.fields(owner):
            help_text = _MODEL_HELP if field.name == "model" else field.metadata["help"]
            found[field.name] = Setting(field.name, owner, hints[field.name], field.default, help_text)
    return found


# The platform's orders; and what its other containers are told about sessions.
_PLATFORM_NAMES = {
    "SAGEMAKER_BIND_TO_PORT": "port",
    "SAGEMAKER_BATCH": "batch_transform",
    "SAGEMAKER_BATCH_STRATEGY": "batch_strategy",
    "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "batch_max_concurrent_transforms",
    "SAGEMAKER_MAX_PAYLOAD_IN_MB": "batch_max_payload_mb",
    "SAGEMAKER_ENABLE_STATEFUL_SESSIONS": "enable_sessions",
    "SAGEMAKER_SESSIONS_EXPIRATION": "session_expiration_s",
}


def load(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this start. Raises ConfigError with one line for people; `--help` prints and exits."""
    environ = os.environ if environ is None else environ
    settings = all_settings()
    command_line, config_path = _from_command_line(argv, settings)
    ours = _from_environment(environ, settings)
    document, foreign_names = _from_documents(config_path or environ.get(_DOCUMENT_NAMES[0]), environ, settings)
    named = (document | ours | command_line).get("model")
    foreign, warnings = _from_other_images({**foreign_names, **environ}, named.value if named else "", settings)
    platform = _from_platform(environ, settings)
    layers = [command_line, platform, ours, foreign, _from_platform(foreign_names, settings), document]
    merged: Layer = {}
    for layer in reversed(layers):
        merged.update(layer)
    if (token := merged.get("hf_token")) is not None:
        merged["hf_token"] = clean_secret(token)
    engine = _build(EngineConfig, settings, merged)
    if not engine.model:
        engine = dataclasses.replace(engine, model=_default_model())
    return Settings(
        server=_build(ServerConfig, settings, merged),
        engine=engine,
        warnings=warnings,
        is_num_workers_given="num_workers" in merged,
        custom_code=_given(_CUSTOM_CODE_NAMES, {**foreign_names, **environ}),
        environment=_given(READ_BY_LIBRARIES, foreign_names),
    )


def _given(names: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    return {name: environ[name] for name in names if environ.get(name)}


def child_environment(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of our child processes: ours, before it `more`, and what shared cores need if nobody says else.

    OpenMP's threads wait for each other at every kernel; by default they spin, and on cores that HTTP workers share the
    thread that is waited for may be the one without a core: 8 tokens/s instead of 230 beside a busy process on 2 cores.
    tokenizers' own threads are of no use to single requests.
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", **more, **os.environ}


def _default_model() -> str:
    if holds_model(SAGEMAKER_MODEL_DIR):
        return str(SAGEMAKER_MODEL_DIR)
    raise ConfigError(
        f"no model to serve: {SAGEMAKER_MODEL_DIR} is missing or holds none, "
        f"and neither --model nor {ENV_PREFIX}MODEL nor HF_MODEL_ID is given"
    )


def _build(owner: type, settings: dict[str, Setting], merged: Layer) -> Any:
    mine = {name: given for name, given in merged.items() if settings[name].owner is owner}
    try:
        return owner(**{name: given.value for name, given in mine.items()})
    except ValueError as error:
        # Both dataclasses start their messages with the field's name; the giver knows it under another.
        name, _, rest = str(error).partition(" ")
        origin = mine[name].origin if name in mine else name
        raise ConfigError(f"{origin} {rest}") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(message)


def _argument_parser(settings: dict[str, Setting]) -> _Parser:
    parser = _Parser(
        prog="serve",
        allow_abbrev=False,
        description="Serve a large language model: SageMaker's /ping and /invocations, and the OpenAI API under /v1.",
        epilog=f"Every setting is also {ENV_PREFIX}<NAME> in the environment, and <name> in the YAML or JSON of "
        f"--config or of {ENV_PREFIX}CONFIG_YAML.",
    )
    parser.add_argument("--config", metavar="FILE", help=f"YAML or JSON file of settings. [env {ENV_PREFIX}CONFIG]")
    for one in settings.values():
        help_text = f"{one.help} [{one.kind}; default {default_text(one)}; env {one.env_name}]".replace("%", "%%")
        metavar = one.name.upper()
        if one.hint in (bool, bool | None):
            parser.add_argument(one.flag, dest=one.name, nargs="?", const="true", metavar=metavar, help=help_text)
            # vLLM's way of saying no.
            parser.add_argument(
                one.flag.replace("--", "--no-", 1), dest=one.name, action="store_const", const="false",
                help=argparse.SUPPRESS,
            )  # fmt: skip
        else:
            parser.add_argument(one.flag, dest=one.name, metavar=metavar, help=help_text)
    return parser


def default_text(one: Setting) -> str:
    """The default as people would write it."""
    if one.default is None or one.default == "":
        return str(SAGEMAKER_MODEL_DIR) if one.name == "model" else "none"
    return str(one.default).lower() if isinstance(one.default, bool) else str(one.default)


def _from_command_line(argv: Sequence[str], settings: dict[str, Setting]) -> tuple[Layer, str | None]:
    # `docker run IMAGE serve` with an ENTRYPOINT that is `serve` already passes the word on.
    arguments = list(argv[1:] if argv[:1] == ["serve"] else argv)
    given, unknown = _argument_parser(settings).parse_known_args(arguments)
    if unknown:
        word = unknown[0].partition("=")[0]
        raise ConfigError(f"unknown argument {word}{did_you_mean(word, [one.flag for one in settings.values()])}")
    layer = {
        name: parse_given(one, getattr(given, name), one.flag)
        for name, one in settings.items()
        if getattr(given, name) is not None
    }
    return layer, given.config


def _from_environment(environ: Mapping[str, str], settings: dict[str, Setting]) -> Layer:
    by_env_name = {one.env_name: one for one in settings.values()}
    layer: Layer = {}
    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX) or name in _DOCUMENT_NAMES:
            continue
        if name not in by_env_name:
            raise ConfigError(f"unknown setting {name} in the environment{did_you_mean(name, by_env_name)}")
        layer[by_env_name[name].name] = parse_given(by_env_name[name], text, name)
    return layer


def _from_other_images(
    environ: Mapping[str, str], model: str, settings: dict[str, Setting]
) -> tuple[Layer, tuple[str, ...]]:
    """What SM_VLLM_* and their like say, and lines for the log. `model` is where our own words say it is, or empty."""
    booleans = {one.name: one.default is True for one in settings.values() if one.hint in (bool, bool | None)}
    model_dir = Path(model) if model and Path(model).is_dir() else SAGEMAKER_MODEL_DIR
    try:
        found = read(environ, model_dir, booleans)
    except ForeignSettingError as error:
        raise ConfigError(str(error)) from None
    layer = {name: parse_given(settings[name], text, origin) for name, (text, origin) in found.texts.items()}
    return layer, tuple(found.warnings)


def _from_platform(environ: Mapping[str, str], settings: dict[str, Setting]) -> Layer:
    given = _given(_PLATFORM_NAMES, environ)
    if strategy := given.get("SAGEMAKER_BATCH_STRATEGY"):  # the SDK's local mode hands over the API's spelling
        given["SAGEMAKER_BATCH_STRATEGY"] = strategy.replace("Record", "_Record").upper()
    return {
        field: parse_given(settings[field], given[name], name)
        for name, field in _PLATFORM_NAMES.items()
        if name in given
    }


def _from_documents(
    path: str | None, environ: Mapping[str, str], settings: dict[str, Setting]
) -> tuple[Layer, dict[str, str]]:
    """The config file's settings and, before them, those of SM_GALLEY_CONFIG_YAML; with them other images' names."""
    layer: Layer = {}
    foreign: dict[str, str] = {}
    documents = [(path, f"the config file {path}", _text_of(path))] if path else []
    text_name = _DOCUMENT_NAMES[1]
    documents.append((text_name, text_name, environ.get(text_name, "")))
    for place, title, text in documents:
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"cannot read {title}: {_yaml_problem(error)}") from None
        except RecursionError:
            raise ConfigError(f"cannot read {title}: it is nested too deeply") from None
        if content is not None and not isinstance(content, dict):
            raise ConfigError(f"{title} must be a mapping of settings to values")
        for key, value in (content or {}).items():
            if is_foreign(str(key)) or key in _PLATFORM_NAMES or key in _CUSTOM_CODE_NAMES:
                if value is not None:
                    foreign[str(key)] = _as_variable(value)
            else:
                _take(layer, settings, str(key), value, place)
    return layer, foreign


def _as_variable(value: Any) -> str:
    """A document's value as the environment would hold it. YAML knows dates; JSON does not."""
    return json.dumps(value, default=str) if isinstance(value, dict | list | bool) else str(value)


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and where. PyYAML's own message quotes the text, in which a token may stand."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    return "it is not YAML"


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read the config file {path}: {reason}") from None


def _take(layer: Layer, settings: dict[str, Setting], key: str, value: Any, place: str) -> None:
    name = key.replace("-", "_")
    if name not in settings:
        raise ConfigError(f"unknown setting {key} in {place}{did_you_mean(name, settings)}")
    if value is None:
        return
    if not isinstance(value, str | int | float):
        raise ConfigError(f"{key} in {place} must be {settings[name].kind}, not a {type(value).__name__}")
    layer[name] = parse_given(settings[name], str(value), f"{key} in {place}")


def _check(holds: bool, name: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}")


def markdown() -> str:
    """docs/settings.md: every setting with its names, default and help."""
    lines = [
        "# Settings",
        "",
        "Generated by `python -m container.config --markdown`; a test holds that it is current.",
        "",
        "Precedence: command line, `SM_GALLEY_*`, [other images' variables](drop-in.md), YAML or JSON, the default.",
        "`SAGEMAKER_BIND_TO_PORT` wins over `SM_GALLEY_PORT`.",
        "An unknown name or a bad value stops the start with one line that says which.",
        "",
        "All settings can stand together in one file (`--config FILE` or `SM_GALLEY_CONFIG`) or in one variable,",
        "`SM_GALLEY_CONFIG_YAML`, which wins over the file: YAML or JSON, a mapping of the flags' names, with `_` or",
        '`-`, to values, such as `{"max_model_len": 8192, "enforce_eager": true}`. Variables of other images may stand',
        "there too, under their own names; they count as if set in the environment, which wins where both say",
        "something.",
    ]
    for owner, title in ((ServerConfig, "Server"), (EngineConfig, "Engine")):
        lines += ["", f"## {title}", "", "| flag | environment | value | default | |", "|---|---|---|---|---|"]
        for one in all_settings().values():
            if one.owner is owner:
                kind = one.kind.replace("|", ", ")
                lines.append(f"| `{one.flag}` | `{one.env_name}` | {kind} | {default_text(one)} | {one.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--markdown"]:
        sys.stdout.write(markdown())
    elif sys.argv[1:] == ["--drop-in-markdown"]:
        sys.stdout.write(page.markdown())
    else:
        sys.exit("usage: python -m container.config --markdown | --drop-in-markdown")
