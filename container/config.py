"""Where Galley's settings come from: the command line, the environment, a YAML file, defaults.

Knows every setting's name in each of these places and which place wins. The only module that reads the environment.
Must not know what a setting does: the two dataclasses, ServerConfig and EngineConfig, say that.

Precedence, first wins: command line, SM_GALLEY_*, (other vendors' names, `_VENDOR_LAYERS`), YAML file, defaults. One
exception: SAGEMAKER_BIND_TO_PORT is the platform's order, not the operator's wish, and beats SM_GALLEY_PORT.
"""

import argparse
import dataclasses
import difflib
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from engine.api import EngineConfig
from engine.api.config import setting

ENV_PREFIX = "SM_GALLEY_"
SAGEMAKER_MODEL_DIR = Path("/opt/ml/model")
_MAX_SHOWN_CHARS = 60
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
    "max_engine_restarts": 1_000_000,
    "restart_window_s": 365 * _DAY_S,
}
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
)
LogLevel = Literal["debug", "info", "warning", "error"]


class ConfigError(Exception):
    """A setting is unknown or has a bad value. The message is one line that names the setting and its source."""


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
    log_level: LogLevel = setting("info", "Least severe log lines to write: debug, info, warning or error.")
    access_log: bool = setting(False, "Write one log line per request.")

    def __post_init__(self) -> None:
        for name in ("num_workers", "worker_connections", "max_body_mb", "request_timeout_s", "start_timeout_s"):
            _check(getattr(self, name) >= 1, name, "at least 1")
        _check(1 <= self.port <= 65535, "port", "between 1 and 65535")
        _check(self.host != "", "host", "an address")
        _check(self.stall_limit_s >= 2, "stall_limit_s", "at least 2: the engine gives one sign of life per second")
        for name in ("keepalive_s", "grace_s", "max_engine_restarts", "restart_window_s"):
            _check(getattr(self, name) >= 0, name, "at least 0")
        for name, most in _MOST.items():
            _check(getattr(self, name) <= most, name, f"at most {most}")
        _check(self.log_level in typing.get_args(LogLevel), "log_level", "debug, info, warning or error")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that one `serve` runs with."""

    server: ServerConfig
    engine: EngineConfig
    # Where custom code may lie: what `model` named, in which the model may be a directory. None until it is here.
    artifact_dir: str | None = None
    is_num_workers_given: bool = False
    # What the contracts for custom code (docs/custom-code.md) name in the environment.
    custom_code: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def with_model(self, model: str, artifact: str) -> "Settings":
        """The same with a model that has been found."""
        return dataclasses.replace(self, engine=dataclasses.replace(self.engine, model=model), artifact_dir=artifact)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of either dataclass, as the command line and the environment name it."""

    name: str
    owner: type
    hint: Any
    default: Any
    help: str

    @property
    def flag(self) -> str:
        """`max_num_seqs` → `--max-num-seqs`."""
        return "--" + self.name.replace("_", "-")

    @property
    def env_name(self) -> str:
        """`max_num_seqs` → `SM_GALLEY_MAX_NUM_SEQS`."""
        return ENV_PREFIX + self.name.upper()

    @property
    def kind(self) -> str:
        """The type of value, in a word for people."""
        if self.choices:
            return "|".join(self.choices)
        return {int: "integer", float: "number", bool: "true|false"}.get(self._plain_type, "text")

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words, where the type is a Literal."""
        plain = self._plain_type
        return typing.get_args(plain) if typing.get_origin(plain) is Literal else ()

    @property
    def _plain_type(self) -> Any:
        if isinstance(self.hint, types.UnionType):
            return next(part for part in typing.get_args(self.hint) if part is not types.NoneType)
        return self.hint

    def parse(self, text: str) -> Any:
        """The value that `text` means. Raises ValueError with what was expected."""
        if self.choices:
            if text not in self.choices:
                raise ValueError(
                    f"must be {' or '.join(self.choices)}, not {text!r}{_did_you_mean(text, self.choices)}"
                )
            return text
        return _PARSERS[self._plain_type](text)


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"must be an integer, not {_shown(text)}") from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…")


def _parse_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    # "inf" and "nan" would pass any check of a range from one side.
    if not math.isfinite(number):
        raise ValueError(f"must be a number, not {_shown(text)}")
    return number


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(f"must be true or false, not {text!r}")
    return text.lower() in ("true", "1")


_PARSERS: dict[Any, Callable[[str], Any]] = {int: _parse_int, float: _parse_float, bool: _parse_bool, str: str}


def all_settings() -> dict[str, Setting]:
    """Every setting by field name, the server's first."""
    found: dict[str, Setting] = {}
    for owner in (ServerConfig, EngineConfig):
        hints = typing.get_type_hints(owner)
        for field in dataclasses.fields(owner):
            found[field.name] = Setting(field.name, owner, hints[field.name], field.default, field.metadata["help"])
    return found


@dataclasses.dataclass(frozen=True)
class _Given:
    """A value as it was given, and the name under which the giver knows it, for messages."""

    value: Any
    origin: str


_Layer = dict[str, _Given]

# Other vendors' names (SM_VLLM_*, OPTION_*, HF_MODEL_ID, …) become layers here: each a function from the environment to
# a _Layer, placed between SM_GALLEY_* and the YAML file.
_VENDOR_LAYERS: tuple[Callable[[Mapping[str, str]], _Layer], ...] = ()


def load(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this start. Raises ConfigError with one line for people; `--help` prints and exits."""
    environ = os.environ if environ is None else environ
    settings = all_settings()
    command_line, config_path = _from_command_line(argv, settings)
    env_layer, env_config_path = _from_environment(environ, settings)
    path = config_path or env_config_path
    layers = [
        command_line,
        _from_platform(environ, settings),
        env_layer,
        *(layer(environ) for layer in _VENDOR_LAYERS),
        _from_yaml(path, settings) if path else {},
    ]
    merged: _Layer = {}
    for layer in reversed(layers):
        merged.update(layer)
    engine = _build(EngineConfig, settings, merged)
    if not engine.model:
        engine = dataclasses.replace(engine, model=_default_model())
    return Settings(
        server=_build(ServerConfig, settings, merged),
        engine=engine,
        is_num_workers_given="num_workers" in merged,
        custom_code={name: environ[name] for name in _CUSTOM_CODE_NAMES if environ.get(name)},
    )


def child_environment() -> dict[str, str]:
    """The environment of our child processes: ours, with what shared cores need where the operator says nothing.

    OpenMP's threads wait for each other at every kernel; by default they spin, and on cores that HTTP workers share the
    thread that is waited for may be the one without a core: 8 tokens/s instead of 230 beside a busy process on 2 cores.
    tokenizers' own threads are of no use to single requests.
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", **os.environ}


def _default_model() -> str:
    if SAGEMAKER_MODEL_DIR.is_dir() and any(SAGEMAKER_MODEL_DIR.iterdir()):
        return str(SAGEMAKER_MODEL_DIR)
    raise ConfigError(
        f"no model to serve: {SAGEMAKER_MODEL_DIR} is missing or empty, "
        f"and neither --model nor {ENV_PREFIX}MODEL is given"
    )


def _build(owner: type, settings: dict[str, Setting], merged: _Layer) -> Any:
    mine = {name: given for name, given in merged.items() if settings[name].owner is owner}
    try:
        return owner(**{name: given.value for name, given in mine.items()})
    except ValueError as error:
        # Both dataclasses start their messages with the field's name; the giver knows it under another.
        name, _, rest = str(error).partition(" ")
        origin = mine[name].origin if name in mine else name
        raise ConfigError(f"{origin} {rest}") from None


def _parse(setting_: Setting, text: str, origin: str) -> _Given:
    try:
        return _Given(setting_.parse(text), origin)
    except ValueError as error:
        raise ConfigError(f"{origin} {error}") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(message)


def _argument_parser(settings: dict[str, Setting]) -> _Parser:
    parser = _Parser(
        prog="serve",
        allow_abbrev=False,
        description="Serve a large language model: SageMaker's /ping and /invocations, and the OpenAI API under /v1.",
        epilog=f"Every setting is also {ENV_PREFIX}<NAME> in the environment and <name> in the YAML file.",
    )
    parser.add_argument("--config", metavar="FILE", help=f"YAML file of settings. [env {ENV_PREFIX}CONFIG]")
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


def _from_command_line(argv: Sequence[str], settings: dict[str, Setting]) -> tuple[_Layer, str | None]:
    # `docker run IMAGE serve` with an ENTRYPOINT that is `serve` already passes the word on.
    arguments = list(argv[1:] if argv[:1] == ["serve"] else argv)
    given, unknown = _argument_parser(settings).parse_known_args(arguments)
    if unknown:
        word = unknown[0].partition("=")[0]
        raise ConfigError(f"unknown argument {word}{_did_you_mean(word, [one.flag for one in settings.values()])}")
    layer = {
        name: _parse(one, getattr(given, name), one.flag)
        for name, one in settings.items()
        if getattr(given, name) is not None
    }
    return layer, given.config


def _from_environment(environ: Mapping[str, str], settings: dict[str, Setting]) -> tuple[_Layer, str | None]:
    by_env_name = {one.env_name: one for one in settings.values()}
    layer: _Layer = {}
    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX) or name == ENV_PREFIX + "CONFIG":
            continue
        if name not in by_env_name:
            raise ConfigError(f"unknown setting {name} in the environment{_did_you_mean(name, by_env_name)}")
        layer[by_env_name[name].name] = _parse(by_env_name[name], text, name)
    return layer, environ.get(ENV_PREFIX + "CONFIG")


def _from_platform(environ: Mapping[str, str], settings: dict[str, Setting]) -> _Layer:
    text = environ.get("SAGEMAKER_BIND_TO_PORT")
    return {"port": _parse(settings["port"], text, "SAGEMAKER_BIND_TO_PORT")} if text else {}


def _from_yaml(path: str, settings: dict[str, Setting]) -> _Layer:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(f"cannot read the config file {path}: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"the config file {path} must be a mapping of settings to values")
    layer: _Layer = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in settings:
            raise ConfigError(f"unknown setting {key} in {path}{_did_you_mean(name, settings)}")
        if value is None:
            continue
        if not isinstance(value, str | int | float):
            raise ConfigError(f"{key} in {path} must be {settings[name].kind}, not a {type(value).__name__}")
        layer[name] = _parse(settings[name], str(value), f"{key} in {path}")
    return layer


def _did_you_mean(word: str, candidates: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(candidates), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


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
        "Precedence: command line, `SM_GALLEY_*`, the YAML file (`--config FILE` or `SM_GALLEY_CONFIG`), the default.",
        "`SAGEMAKER_BIND_TO_PORT` wins over `SM_GALLEY_PORT`. YAML keys are the flags' names, with `_` or `-`.",
        "An unknown name or a bad value stops the start with one line that says which.",
    ]
    for owner, title in ((ServerConfig, "Server"), (EngineConfig, "Engine")):
        lines += ["", f"## {title}", "", "| flag | environment | value | default | |", "|---|---|---|---|---|"]
        for one in all_settings().values():
            if one.owner is owner:
                kind = one.kind.replace("|", ", ")
                lines.append(f"| `{one.flag}` | `{one.env_name}` | {kind} | {default_text(one)} | {one.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__" and sys.argv[1:] == ["--markdown"]:
    sys.stdout.write(markdown())
