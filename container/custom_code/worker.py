"""The artifact's code in one web worker: loaded in the background, then standing in /ping and /invocations.

Knows Flask, the bridge to native threads and both contracts' scripts. Must not know what our own routes do: it is
handed them, and calls them where a script leaves the answer to us.
"""

import inspect
import io
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gevent
from flask import Request, Response, current_app, g, request

from container.config import ServerConfig
from container.custom_code.backend import EngineBackend, Generations
from container.custom_code.bridge import Bridge, awaited
from container.custom_code.handle import engine as engine_handle
from container.custom_code.hooks import HOOK_VARIABLES, Hooks, find_hooks
from container.custom_code.requirements import install, wanted
from container.custom_code.scripts import CustomCodeError, CustomCodeSettings, Scripts, find_scripts, import_script
from container.custom_code.toolkit import ToolkitScript, num_positional
from container.disconnect import DisconnectWatch
from container.engine_client import Engine
from container.request_body import read_bytes
from container.responses import json_response
from engine.api import EngineNotReady

log = logging.getLogger(__name__)

View = Callable[[], Response]
_POLL_S = 0.1
_RETRY_AFTER_S = "2"
# The platform waits for 2 s.
_PING_LIMIT_S = 1.5


class CustomCode:
    """What the artifact's scripts do in this worker; nothing, where there are none.

    on_broken is called when they cannot be loaded, after the log has been told.
    """

    def __init__(
        self, settings: CustomCodeSettings, engine: Engine, config: ServerConfig, on_broken: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._config = config
        self._on_broken = on_broken
        self._bridge = Bridge()
        self._stage: str | None = "looking for custom code"
        self._hooks = Hooks()
        self._toolkit: ToolkitScript | None = None

    def start(self) -> None:
        """Load in the background; until that is done /ping answers 503."""
        gevent.spawn(self._load)

    def ping(self, default: View) -> Response:
        """The answer to /ping: ours until all is ready, then the script's if it has one."""
        ours = default()
        if ours.status_code != 200:
            return ours
        if self._stage is not None:
            waiting = json_response({"status": "starting", "stage": self._stage}, 503)
            waiting.headers["Retry-After"] = _RETRY_AFTER_S
            return waiting
        hook = self._hooks.ping
        if hook is None:
            return ours
        here = _this_request()
        try:
            with gevent.Timeout(_PING_LIMIT_S):
                return self._bridge.in_thread(lambda: _response(_call(hook, here)), is_urgent=True)
        except gevent.Timeout:
            return json_response({"status": "stalled", "stage": "the script's ping handler does not answer"}, 503)

    def invocations(self, default: View) -> Response:
        """The answer to /invocations."""
        if self._stage is not None:
            raise EngineNotReady(f"The model is not ready to serve requests: {self._stage}.")
        if self._toolkit is None and not self._hooks.touches_invocations:
            return default()
        here = _this_request()
        _put_body(here, read_bytes(here, self._config.max_body_mb * 2**20, g.deadline))
        g.generations = Generations()
        watch = DisconnectWatch(here.environ.get("gunicorn.socket"), g.generations.cancel)

        def ours() -> Response:
            # It watches the client itself, and a socket has one reader.
            watch.stop()
            return default()

        call = _Call(self._bridge, self._hooks, self._toolkit, ours)
        try:
            response = self._bridge.in_thread(lambda: call.throttled(here))
        except BaseException:
            watch.stop()
            raise
        body = response.response
        if response.is_streamed and body is not call.our_stream:
            # The response closes its body when the server has done with it.
            response.response = self._bridge.iterate_in_thread(iter(body))
            response.call_on_close(watch.stop)
        else:
            watch.stop()
        return response

    def _load(self) -> None:
        try:
            artifact = self._wait_for_artifact()
            environment = self._settings.environment
            scripts = find_scripts(artifact, environment)
            if scripts.toolkit is None and (program := environment.get("SAGEMAKER_PROGRAM")):
                log.warning("SAGEMAKER_PROGRAM=%s: there is no such script in %s; none is run", program, artifact)
            has_hooks = any(name in environment for name in HOOK_VARIABLES)
            if installs := wanted(scripts, environment, has_hooks=has_hooks):
                self._stage = "installing the requirements of custom code"
                lock = Path(self._settings.artifact_file).with_suffix(".lock")
                self._bridge.in_thread(lambda: install(installs, lock))
            if scripts or has_hooks:
                self._load_scripts(scripts)
            self._stage = None
        except CustomCodeError as error:
            log.error("custom code cannot be used: %s", error)
            self._on_broken()
        except Exception:  # a stranger's code may raise anything
            log.exception("custom code cannot be used")
            self._on_broken()

    def _wait_for_artifact(self) -> Path:
        file = Path(self._settings.artifact_file)
        while not file.exists():
            gevent.sleep(_POLL_S)
        return Path(file.read_text(encoding="utf-8"))

    def _load_scripts(self, scripts: Scripts) -> None:
        in_thread, environment = self._bridge.in_thread, self._settings.environment
        self._stage = "loading custom code"
        engine_handle.bind(EngineBackend(self._engine, self._bridge, self._config.request_timeout_s))

        def load(path: Path | None) -> ModuleType | None:
            if path is None:
                return None
            log.info("loading custom code from %s; it runs with all rights of this process", path)
            return in_thread(lambda: import_script(path))

        standards, toolkit = load(scripts.standards), load(scripts.toolkit)
        hooks = in_thread(lambda: find_hooks(standards, environment, scripts.artifact))
        script = None
        if toolkit is not None:
            default_accept = environment.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT")
            script = ToolkitScript(toolkit, engine_handle, scripts.artifact, default_accept)
            # model_fn may want to generate.
            while not self._engine.health().is_ready:
                gevent.sleep(_POLL_S)
            started = time.monotonic()
            in_thread(script.load)
            log.info("model_fn took %.1f s", time.monotonic() - started)
        self._hooks, self._toolkit = hooks, script


class _Call:
    """One request's way through the hooks, in a native thread: throttle, middleware, formatters, handler."""

    def __init__(self, bridge: Bridge, hooks: Hooks, toolkit: ToolkitScript | None, default: View) -> None:
        self._bridge, self._hooks, self._toolkit, self._default = bridge, hooks, toolkit, default
        # The body of our own streaming response, which only the worker's loop may iterate.
        self.our_stream: Any = None

    def throttled(self, here: Request) -> Response:
        """The outermost."""
        return self._around(self._hooks.throttle, here, self._processed)

    def _processed(self, here: Request) -> Response:
        return self._around(self._hooks.pre_post, here, self._formatted)

    def _formatted(self, here: Request) -> Response:
        if self._hooks.pre is not None:
            changed = _call(self._hooks.pre, here)
            if changed is not None and changed is not here:
                _put_body(here, _bytes(changed))
        response = self._handled(here)
        # What streams goes out as it comes; a formatter needs a whole body.
        if self._hooks.post is not None and not response.is_streamed:
            changed = _call(self._hooks.post, response)
            if changed is not None and changed is not response:
                response = _response(changed)
        return response

    def _handled(self, here: Request) -> Response:
        if self._hooks.invocation is not None:
            return _response(_call(self._hooks.invocation, here))
        if self._toolkit is not None:
            return self._toolkit.answer(here)
        response = self._bridge.in_hub(self._default)
        if response.is_streamed:
            self.our_stream = response.response
        return response

    def _around(
        self, hook: Callable[..., Any] | None, here: Request, call_next: Callable[[Request], Response]
    ) -> Response:
        if hook is None:
            return call_next(here)

        async def awaitable_next(here: Request) -> Response:
            return call_next(here)

        following = awaitable_next if inspect.iscoroutinefunction(hook) else call_next
        return _response(_call(hook, here, following))


def with_custom_code(code: CustomCode | None, ping: View, invocations: View) -> tuple[View, View]:
    """The two routes with the artifact's code in them; the same ones where a worker is told of none."""
    if code is None:
        return ping, invocations
    return (lambda: code.ping(ping)), (lambda: code.invocations(invocations))


def _this_request() -> Request:
    # The proxy would look for the request of whoever uses it.
    return request._get_current_object()  # type: ignore[attr-defined, no-any-return]


def _put_body(here: Request, body: bytes) -> None:
    """Make `body` what both a script and our own routes read."""
    environ = here.environ
    # It has been read, whatever way it came.
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    environ["CONTENT_LENGTH"] = str(len(body))
    for cached in ("content_length", "stream", "form", "files", "values", "data"):
        here.__dict__.pop(cached, None)
    here._cached_json = (Ellipsis, Ellipsis)
    here._cached_data = body
    environ["wsgi.input"] = io.BytesIO(body)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """A hook's result: it may take fewer arguments than there are, and may be a coroutine function."""
    result = function(*arguments[: num_positional(function)])
    return awaited(result) if inspect.isawaitable(result) else result


def _bytes(changed: Any) -> bytes:
    if isinstance(changed, Request):
        return changed.get_data()
    if isinstance(changed, str):
        return changed.encode()
    return changed if isinstance(changed, bytes) else json_response(changed).get_data()


def _response(result: Any) -> Response:
    """What a hook returned as a response: anything that Flask takes; nothing is an empty one."""
    if result is None:
        return Response(status=200)
    if isinstance(result, bool | int | float):
        return json_response(result)
    return current_app.make_response(result)
