"""`code/inference.py` by the SageMaker inference toolkit's contract: model_fn, and either transform_fn or
input_fn, predict_fn and output_fn; each may take a trailing `context`.

Source: aws/sagemaker-inference-toolkit, transformer.py. What a script leaves out is done for the served model: without
model_fn the model is `engine`, and the default predict_fn continues {"inputs", "parameters"} with it.
Knows functions, bodies and content types. Must not know threads.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
from flask import Request, Response

from container.custom_code.handle import EngineHandle
from container.custom_code.scripts import CustomCodeError
from container.schema.body import split
from container.schema.fields import named
from container.schema.generate import NAMES, read_generate
from container.schema.limits import PromptLimits
from engine.api import InvalidRequest

_JSON = "application/json"
_THREE = ("input_fn", "predict_fn", "output_fn")
# The engine knows how long a prompt may be, and says so.
_NO_LIMITS = PromptLimits(max_model_len=2**31, max_token_chars=None)


@dataclasses.dataclass(frozen=True)
class Context:
    """What a function with a trailing `context` gets. request: None while the model is loaded."""

    engine: EngineHandle
    model_dir: str
    request: Request | None = None

    @property
    def system_properties(self) -> dict[str, Any]:
        """As in the toolkit's own context."""
        return {"model_dir": self.model_dir, "gpu_id": None}

    def get_request_header(self, index: int, name: str) -> str | None:
        """A header of the request; `index` counts a batch's requests elsewhere, and there is one here."""
        return None if self.request is None else self.request.headers.get(name)

    def get_all_request_header(self, index: int) -> dict[str, str]:
        """All headers of the request."""
        return {} if self.request is None else dict(self.request.headers)


class ToolkitScript:
    """One script's functions. Raises CustomCodeError for a set of functions that the contract excludes."""

    def __init__(self, script: ModuleType, engine: EngineHandle, artifact: Path, default_accept: str | None) -> None:
        self._functions: dict[str, Callable[..., Any]] = {
            name: function for name, function in vars(script).items() if name.endswith("_fn") and callable(function)
        }
        self._default_accept = default_accept or _JSON
        self._artifact = str(artifact)
        self._engine = engine
        self._model: Any = None
        if "transform_fn" in self._functions and any(name in self._functions for name in _THREE):
            raise CustomCodeError(f"{script.__file__}: transform_fn excludes input_fn, predict_fn and output_fn")
        if not {"transform_fn", "model_fn", *_THREE} & self._functions.keys():
            raise CustomCodeError(f"{script.__file__}: there is no model_fn, predict_fn or transform_fn in it")

    def load(self) -> None:
        """Call model_fn, and what may stand around it. Raises what they raise."""
        context = Context(self._engine, self._artifact)
        if "pre_model_fn" in self._functions:
            self._call("pre_model_fn", context, self._artifact)
        self._model = self._engine
        if "model_fn" in self._functions:
            self._model = self._call("model_fn", context, self._artifact)
        if "model_warmup_fn" in self._functions:
            self._call("model_warmup_fn", context, self._artifact, self._model)

    def answer(self, request: Request) -> Response:
        """The response to a request whose body has been read. Raises what the functions raise."""
        context = Context(self._engine, self._artifact, request)
        content_type = request.content_type or _JSON
        accept = request.headers.get("Accept", "")
        accept = self._default_accept if accept in ("", "*/*") else accept
        body: str | bytes = request.get_data()
        if _is_text(content_type):
            try:
                body = request.get_data().decode("utf-8")
            except UnicodeDecodeError:
                raise InvalidRequest("The body is not UTF-8, as its Content-Type says.") from None
        if "transform_fn" in self._functions:
            result = self._call("transform_fn", context, self._model, body, content_type, accept)
        else:
            data = self._call("input_fn", context, body, content_type)
            prediction = self._call("predict_fn", context, data, self._model)
            result = self._call("output_fn", context, prediction, accept)
        if isinstance(result, Response):
            return result
        if isinstance(result, tuple) and len(result) == 2:
            result, accept = result
        if not isinstance(result, str | bytes) and not hasattr(result, "__next__"):
            result = json.dumps(result)
        return Response(result, content_type=accept)

    def _call(self, name: str, context: Context, *arguments: Any) -> Any:
        function = self._functions.get(name, _DEFAULTS.get(name))
        assert function is not None
        wants_context = num_positional(function) > len(arguments)
        return function(*arguments, context) if wants_context else function(*arguments)


def num_positional(function: Callable[..., Any]) -> int:
    """How many arguments a function takes by position; many, if it takes any number."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return 100
    return sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)


def _is_text(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind.startswith("text/") or kind in (_JSON, "application/jsonlines") or kind.endswith("+json")


def _input(body: str | bytes, content_type: str) -> Any:
    if content_type.partition(";")[0].strip().lower() != _JSON:
        return body
    try:
        return json.loads(body)
    except ValueError:
        raise InvalidRequest("The body is not valid JSON.") from None


def _predict(data: Any, model: Any) -> Any:
    if not isinstance(model, EngineHandle):
        raise NotImplementedError("the script has a model_fn of its own, so it needs a predict_fn too")
    if not isinstance(data, dict):
        raise InvalidRequest("The body must be a JSON object with 'inputs', a text or a list of texts.", "inputs")
    generate = read_generate(split(json.dumps(data).encode()), _NO_LIMITS)
    given = generate.parameters
    for name, is_asked in (
        ("stream", generate.stream),
        ("parameters.details", given.details),
        ("parameters.best_of", given.best_of != 1),
        ("parameters.truncate", given.truncate is not None),
    ):
        if is_asked:
            raise InvalidRequest(f"'{name}' is not possible here: the script has no predict_fn that does it.", name)
    with named(NAMES):
        params = given.params(False, "tgi")
        texts = [model.generate(text, **msgspec.structs.asdict(params)).text for text in generate.inputs]
    prefixes = generate.inputs if given.return_full_text else [""] * len(texts)
    return [{"generated_text": prefix + text} for prefix, text in zip(prefixes, texts, strict=True)]


def _output(prediction: Any, accept: str) -> Any:
    return prediction if isinstance(prediction, str | bytes) else (json.dumps(prediction), _JSON)


_DEFAULTS: dict[str, Callable[..., Any]] = {"input_fn": _input, "predict_fn": _predict, "output_fn": _output}
