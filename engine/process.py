"""The engine process: one thread that owns the device, between the Unix socket and the core.

The main thread is the engine thread. It binds the socket before it loads anything, so that workers can watch the start;
it says READY only after a real generation; then it turns events into requests, steps the core, and stamps its status
every second, idle or busy: a stamp that grows old is how others see that it is stopped or hung.

Knows the socket server, the core, signals and the clock. Must not know HTTP.
"""

import contextlib
import ctypes
import gc
import logging
import os
import queue
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.api import (
    Abort,
    CloseSession,
    DeadlineExceeded,
    EngineConfig,
    EngineNotReady,
    EngineState,
    EngineStatus,
    Generate,
    GenerateRequest,
    GenerationFailed,
    ModelInfo,
    OpenSession,
    Outputs,
    RequestError,
    SamplingParams,
    SessionAnswer,
)
from engine.core import ClientFailure, EngineCore, Runner, failure
from engine.server import Disconnected, EngineServer, Event
from engine.sessions import Sessions

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_BAD_MODEL = 2  # starting again would not help
STATUS_INTERVAL_S = 1.0
FLUSH_S = 1.0
_INTERNAL_CLIENT = 0  # the server counts from 1
_PR_SET_PDEATHSIG = 1

LoadRunner = Callable[[EngineConfig, Callable[[str], None]], tuple[Runner, ModelInfo]]


def _load_runner(config: EngineConfig, on_stage: Callable[[str], None]) -> tuple[Runner, ModelInfo]:
    # Here, not at the top: importing torch takes seconds, and the socket should be open before that.
    from engine.runner import load_runner

    return load_runner(config, on_stage)


class EngineProcess:
    """Serves one model on one socket until it is told to stop."""

    def __init__(
        self, config: EngineConfig, socket_path: Path, grace_s: float, load_runner: LoadRunner = _load_runner
    ) -> None:
        self._config = config
        self._grace_s = grace_s
        self._load_runner = load_runner
        self._server = EngineServer(socket_path)
        self._state: EngineState = "starting"
        self._stage = "starting"
        self._core: EngineCore | None = None
        self._sessions: Sessions | None = None
        self._next_status_at = 0.0
        self._stop_requested = False
        self._stop_at: float | None = None

    def run(self) -> int:
        """Start, serve and drain; the process's exit code."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._enter("starting", "importing torch")
        try:
            runner, model = self._load_runner(self._config, lambda stage: self._enter("starting", stage))
        except (ValueError, OSError, MemoryError, OverflowError, RecursionError) as error:
            log.error("cannot load the model: %s", error)
            self._enter("failed", "the model cannot be loaded; see the log")
            self._server.flush(FLUSH_S)
            return EXIT_BAD_MODEL
        self._core = core = EngineCore(self._config, model, runner)
        self._sessions = Sessions(core.scheduler.kv_cache)
        self._enter("starting", "first generation")
        self._first_generation(core)
        # What the start has made stays for good. Left to the collector, a full pass over it holds up a step for 0.1 s.
        gc.collect()
        gc.freeze()
        self._enter("ready", "ready")
        log.info("ready: %s, max_model_len %d", model.served_name, model.max_model_len)
        code = self._serve(core)
        self._server.flush(FLUSH_S)
        return code

    def _serve(self, core: EngineCore) -> int:
        while not self._is_done(core):
            self._take_events(core, wait=not core.has_work())
            self._tick(core)
            if not core.has_work():
                continue
            if not self._step(core):
                # Was it the requests, or the device? A device that cannot even warm up raises again, and ends us. Not
                # where the exception is handled: its traceback holds the failed step's tensors, a full GPU's memory.
                core.runner.recover()
        return EXIT_OK

    def _step(self, core: EngineCore) -> bool:
        """One step of the core; False if it failed, and with it its requests."""
        try:
            outputs = core.step(on_launched=lambda: self._take_events(core, wait=False))
            for client_id, client_outputs in outputs.items():
                self._server.send(client_id, Outputs(client_outputs))
        except Exception:  # the boundary: one bad step fails its own requests, not the engine
            log.exception("a step failed")
            self._send_failures(core.fail_step(GenerationFailed("The engine failed to compute this request.")))
            return False
        return True

    def _first_generation(self, core: EngineCore) -> None:
        # READY means that a request has gone all the way, not that the weights were read.
        request = GenerateRequest(
            request_id=0,
            prompt_token_ids=[0],
            params=SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True),
            deadline=float("inf"),
        )
        core.add_request(_INTERNAL_CLIENT, request)
        while core.has_work():
            core.step()

    def _take_events(self, core: EngineCore, *, wait: bool) -> None:
        """Handle what clients sent; when idle, wait for it until the next status is due."""
        timeout_s = max(0.0, self._next_status_at - time.monotonic()) if wait else 0.0
        with contextlib.suppress(queue.Empty):
            self._handle(core, self._server.events.get(timeout=timeout_s))
            # Only what is there now: a stream of arrivals must not keep the running sequences from their step.
            for _ in range(self._server.events.qsize()):
                self._handle(core, self._server.events.get_nowait())

    def _handle(self, core: EngineCore, event: Event) -> None:
        if event is None:
            return
        if isinstance(event, Disconnected):
            core.abort_client(event.client_id)
        elif isinstance(event.message, Abort):
            core.abort(event.client_id, event.message.request_id, event.message.index)
        else:
            self._answer(core, event.client_id, event.message)

    def _answer(self, core: EngineCore, client_id: int, message: Generate | OpenSession | CloseSession) -> None:
        request_id = message.request.request_id if isinstance(message, Generate) else message.request_id
        try:
            if self._stop_at is not None:
                raise EngineNotReady("The server is shutting down.")
            if isinstance(message, Generate):
                self._add(core, client_id, message.request)
            else:
                self._server.send(client_id, self._change_sessions(message))
        except (RequestError, EngineNotReady) as error:
            self._server.send(client_id, failure(request_id, error))
        except ValueError as error:
            log.error("refused a message: %s", error)

    def _add(self, core: EngineCore, client_id: int, request: GenerateRequest) -> None:
        if request.session_id and self._sessions is not None:
            self._sessions.check(request.session_id)
        core.add_request(client_id, request)

    def _change_sessions(self, message: OpenSession | CloseSession) -> SessionAnswer:
        assert self._sessions is not None
        if isinstance(message, OpenSession):
            session = self._sessions.open(message.lifetime_s)
        else:
            session = self._sessions.close(message.session_id)
        return SessionAnswer(request_id=message.request_id, session_id=session.id, expires_s=session.expires_s)

    def _send_failures(self, failures: list[ClientFailure]) -> None:
        for client_id, message in failures:
            self._server.send(client_id, message)

    def _tick(self, core: EngineCore) -> None:
        """What happens once a second: the stamp, and the deadlines."""
        now = time.monotonic()
        if self._stop_requested and self._stop_at is None:
            self._stop_at = now + self._grace_s
            self._enter("draining", "shutting down")
        if now < self._next_status_at:
            return
        error = DeadlineExceeded("The request's deadline passed before it finished.")
        self._send_failures(core.fail_expired(now, error))
        if self._sessions is not None:
            self._sessions.end_expired()
        self._publish()

    def _is_done(self, core: EngineCore) -> bool:
        if self._stop_at is None:
            return False
        return not core.has_work() or time.monotonic() >= self._stop_at

    def _enter(self, state: EngineState, stage: str) -> None:
        if stage != self._stage and state != "ready":
            log.info("%s", stage)
        self._state, self._stage = state, stage
        self._publish()

    def _publish(self) -> None:
        now = time.monotonic()
        self._next_status_at = now + STATUS_INTERVAL_S
        status = EngineStatus(state=self._state, stage=self._stage, stamp=now, pid=os.getpid())
        core = self._core
        if core is not None and self._state in ("ready", "draining"):
            scheduler = core.scheduler
            status = msgspec.structs.replace(
                status,
                model=core.model,
                max_num_seqs=scheduler.max_num_seqs,
                num_running=scheduler.num_running,
                num_waiting=scheduler.num_waiting,
                num_free_blocks=scheduler.kv_cache.pool.num_free_blocks,
                num_blocks=scheduler.kv_cache.pool.num_usable_blocks,
                num_preemptions=scheduler.num_preemptions,
                num_prefix_query_tokens=scheduler.kv_cache.num_prefix_query_tokens,
                num_prefix_hit_tokens=scheduler.kv_cache.num_prefix_hit_tokens,
            )
        self._server.publish(status)

    def _on_signal(self, _signum: int, _frame: object) -> None:
        if self._core is None:  # still loading: there is nothing to finish
            os._exit(EXIT_OK)
        self._stop_requested = True
        self._server.wake()


def die_with_parent(parent_pid: int) -> None:
    """Have Linux kill this process when its parent dies, so that no engine holds the device without a supervisor.

    Exits if that has happened already: the signal comes for a later death only.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(1)
