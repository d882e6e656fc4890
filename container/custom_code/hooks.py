"""The newer contract's hooks: which functions of `model.py`, or of the environment's naming, take part in a request.

Names, decorators and variables are those of aws/model-hosting-container-standards, so that a script for its images
keeps them; the request they are handed is Flask's. Knows only functions. Must not know how they are called.
"""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from container.custom_code.scripts import CustomCodeError, resolve

log = logging.getLogger(__name__)

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
_MARK = "__galley_hook__"


@dataclasses.dataclass(frozen=True)
class Hooks:
    """ping(request), invocation(request): in place of ours. throttle, pre_post(request, call_next): around them.

    pre(request): the body that is answered. post(response): the response that is sent.
    """

    ping: Callable[..., Any] | None = None
    invocation: Callable[..., Any] | None = None
    throttle: Callable[..., Any] | None = None
    pre_post: Callable[..., Any] | None = None
    pre: Callable[..., Any] | None = None
    post: Callable[..., Any] | None = None

    @property
    def touches_invocations(self) -> bool:
        """Whether any hook takes part in /invocations."""
        return any((self.invocation, self.throttle, self.pre_post, self.pre, self.post))


# Of each hook: the variable that names it, and the function's name that makes one of it.
_NAMES = {
    "ping": ("CUSTOM_FASTAPI_PING_HANDLER", "custom_sagemaker_ping_handler"),
    "invocation": ("CUSTOM_FASTAPI_INVOCATION_HANDLER", "custom_sagemaker_invocation_handler"),
    "throttle": ("CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE", "custom_throttle"),
    "pre_post": ("CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS", "custom_pre_post_process"),
    "pre": ("CUSTOM_PRE_PROCESS", "custom_pre_process"),
    "post": ("CUSTOM_POST_PROCESS", "custom_post_process"),
}
HOOK_VARIABLES = tuple(variable for variable, _ in _NAMES.values())


def find_hooks(script: ModuleType | None, environment: Mapping[str, str], directory: Path) -> Hooks:
    """For each hook: the variable's function, else the decorated one, else the one of its name.

    Raises CustomCodeError when a variable names nothing, or the script is one of DJL's.
    """
    found: dict[str, Callable[..., Any]] = {}
    for hook, (variable, name) in _NAMES.items():
        if spec := environment.get(variable):
            found[hook] = resolve(spec, variable, script, directory)
            continue
        own = vars(script) if script is not None else {}
        # Functions only: to look at a proxy, such as flask's request, is to look for what it stands for.
        marked = [value for value in own.values() if inspect.isfunction(value) and vars(value).get(_MARK) == hook]
        if len(marked) > 1:
            raise CustomCodeError(f"several functions are decorated as the {hook} hook")
        if marked or callable(own.get(name)):
            found[hook] = marked[0] if marked else own[name]
    if script is not None and not found:
        if callable(vars(script).get("handle")):
            raise CustomCodeError(f"{script.__file__}: handle() is DJL's contract, which is not run; see the docs")
        names = ", ".join(name for _, name in _NAMES.values())
        log.warning("%s has none of the hooks (%s): it changes nothing", script.__file__, names)
    return Hooks(**found)


def _mark(function: FunctionT, hook: str) -> FunctionT:
    setattr(function, _MARK, hook)
    return function


def custom_ping_handler(function: FunctionT) -> FunctionT:
    """Answers /ping once the model and the code are ready."""
    return _mark(function, "ping")


def custom_invocation_handler(function: FunctionT) -> FunctionT:
    """Answers /invocations."""
    return _mark(function, "invocation")


def custom_middleware(kind: Literal["throttle", "pre_post_process"]) -> Callable[[FunctionT], FunctionT]:
    """Stands around /invocations: `(request, call_next)`; the throttle outermost."""
    hook = {"throttle": "throttle", "pre_post_process": "pre_post"}.get(kind)
    if hook is None:
        raise ValueError(f"custom_middleware: 'throttle' or 'pre_post_process', not {kind!r}")
    return lambda function: _mark(function, hook)


def input_formatter(function: FunctionT) -> FunctionT:
    """Makes the body that is answered from the request."""
    return _mark(function, "pre")


def output_formatter(function: FunctionT) -> FunctionT:
    """Makes the response that is sent from the one that was made."""
    return _mark(function, "post")
