"""`serve`: starts the web tier and the engine, keeps the engine alive, and ends both cleanly.

Knows processes, signals and exit codes. Must not know HTTP or what the engine computes. One thread, one loop, no waits
longer than a tick: what has happened is looked at several times a second.

Exit codes: 0 after SIGTERM, SIGINT or SIGHUP, 2 when settings or model cannot be served, 1 when something ended that
must not.
"""

import dataclasses
import functools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from container.code_in_artifact import CodeInArtifact
from container.config import ConfigError, ServerConfig, Settings, child_environment, load
from container.engine_monitor import EngineMonitor
from container.exit_reason import ExitReasons
from container.model_source.source import ModelSourceError, local_model, parse_remote
from container.processes import configure_logging
from container.restart_policy import RestartPolicy
from container.supervised_download import Download, needed_download

log = logging.getLogger("container.supervisor")
settings_log = logging.getLogger("container.settings")

_ROOT = Path(__file__).resolve().parents[1]
_TICK_S = 0.1
_EXIT_BAD_SETTINGS = 2
# Before the end of the grace period the engine is taken away from requests that still run, so that their clients get an
# error instead of a broken connection.
_LAST_WORDS_S = 2.0
_KILL_AFTER_GRACE_S = 1.0
_KILLED_WITHIN_S = 10.0
# sockaddr_un holds 108 bytes.
_MAX_SOCKET_PATH_CHARS = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run `serve` until it is told to stop; the exit code."""
    try:
        settings = load(sys.argv[1:] if argv is None else argv)
        model = settings.engine.model
        if parse_remote(model, settings.server.revision) is None:
            settings = settings.with_model(str(local_model(model)), str(Path(model).expanduser().absolute()))
        _check_address(settings.server)
    except (ConfigError, ModelSourceError) as error:
        sys.stderr.write(f"serve: {'--model ' if isinstance(error, ModelSourceError) else ''}{error}\n")
        return _EXIT_BAD_SETTINGS
    configure_logging(settings.server.log_level)
    # At whatever level, which may be another image's word: what has no effect is never dropped in silence.
    settings_log.setLevel(logging.WARNING)
    for line in settings.warnings:
        settings_log.warning("%s", line)
    run_dir = Path(tempfile.mkdtemp(prefix="galley-"))
    if len(str(run_dir)) > _MAX_SOCKET_PATH_CHARS - len("/engine.sock"):
        run_dir.rmdir()
        run_dir = Path(tempfile.mkdtemp(prefix="galley-", dir="/tmp"))
    try:
        return Supervisor(settings, run_dir).run()
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def _check_address(server: ServerConfig) -> None:
    """Bind as gunicorn will, which would try a taken port for seconds while the engine is loading."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ConfigError(f"cannot listen on --host {server.host} --port {server.port}: {reason}") from None


class Launch(Protocol):
    """Starts a module of ours as a child process."""

    def __call__(self, module: str, *arguments: str) -> "subprocess.Popen[bytes]":
        """The process, leader of a process group of its own."""


class Supervisor:
    """The life of one `serve`."""

    def __init__(self, settings: Settings, run_dir: Path, launch: "Launch | None" = None) -> None:
        """`launch` starts a Python module with arguments, as a process group of its own; a test may pass another."""
        self._launch = launch or functools.partial(_launch, child_environment(settings.environment))
        self._server = settings.server
        self._engine_config = settings.engine
        self._artifact_dir = settings.artifact_dir
        self._run_dir = run_dir
        self._socket_path = str(run_dir / "engine.sock")
        self._policy = RestartPolicy(self._server.max_engine_restarts, self._server.restart_window_s)
        self._exits = ExitReasons()
        self._num_signals = 0
        self._web: subprocess.Popen[bytes] | None = None
        self._engine: subprocess.Popen[bytes] | None = None
        self._monitor: EngineMonitor | None = None
        self._restart_at: float | None = None
        # While this is there, `_engine` is the process that downloads the model: it says its stage on the same socket.
        self._download = needed_download(settings, run_dir, self._socket_path)
        self._code = CodeInArtifact(settings, run_dir)
        self._download_end = time.monotonic() + self._server.start_timeout_s

    def run(self) -> int:
        """Until a signal, or until something ends that must not."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # nohup has SIGHUP ignored, and means it.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        try:
            self._code.found(self._artifact_dir)
            self._web = self._start_web()
            self._start_engine()
            while not self._num_signals:
                exit_code = self._tick()
                if exit_code is not None:
                    self._stop(_LAST_WORDS_S)
                    return exit_code
                time.sleep(_TICK_S)
            self._stop(self._server.grace_s)
            return 0
        finally:
            self._kill_all()

    def _on_signal(self, number: int, frame: Any) -> None:
        self._num_signals += 1

    def _start_web(self) -> "subprocess.Popen[bytes]":
        settings = self._run_dir / "web.json"
        content = {
            # The workers have no use for the secret.
            "server": dataclasses.asdict(
                dataclasses.replace(self._server, hf_token=None, num_workers=self._code.num_workers)
            ),
            "custom_code": dataclasses.asdict(self._code.settings),
            "engine_socket": self._socket_path,
            "parent_pid": os.getpid(),
        }
        settings.write_text(json.dumps(content))
        return self._launch("container.web", "--settings", str(settings))

    def _start_engine(self) -> None:
        """Start the engine, or the download that must come before it."""
        self._restart_at = None
        if self._download is not None:
            self._engine = self._launch("container.model_source", "--settings", self._download.write_settings())
            return
        config = json.dumps(dataclasses.asdict(self._engine_config))
        Path(self._socket_path).unlink(missing_ok=True)
        arguments = {
            "--socket": self._socket_path,
            "--config": config,
            "--grace-s": str(self._server.grace_s),
            "--log-level": self._server.log_level.upper(),
            "--parent-pid": str(os.getpid()),
        }
        self._engine = self._launch("engine", *(word for pair in arguments.items() for word in pair))
        log.info("started the engine, pid %d", self._engine.pid)
        self._monitor = EngineMonitor(self._socket_path, self._server.stall_limit_s, self._server.start_timeout_s)

    def _tick(self) -> int | None:
        """Look at both children once. The exit code, if this is the end."""
        self._reap_strangers()
        assert self._web is not None
        if (web_code := self._web.poll()) is not None:
            log.error("the web tier %s; stopping", self._exits.describe(web_code))
            return 1
        if self._engine is None:
            if self._restart_at is not None and time.monotonic() >= self._restart_at:
                self._start_engine()
            return None
        if self._download is not None:
            return self._look_at_download(self._engine, self._download)
        if (code := self._engine.poll()) is not None:
            if code == _EXIT_BAD_SETTINGS:
                log.error("the engine cannot serve with these settings; stopping")
                return _EXIT_BAD_SETTINGS
            return self._engine_ended(f"the engine {self._exits.describe(code)}")
        assert self._monitor is not None
        if (problem := self._monitor.poll()) is not None:
            return self._engine_ended(problem)
        return None

    def _look_at_download(self, process: "subprocess.Popen[bytes]", download: Download) -> int | None:
        """The exit code, if this is the end."""
        code = process.poll()
        if code is None:
            if time.monotonic() < self._download_end:
                return None
            log.error("the model was not downloaded within %d s (start_timeout_s)", self._server.start_timeout_s)
            return 1
        if code == _EXIT_BAD_SETTINGS:
            log.error("the model cannot be had; stopping")
            return _EXIT_BAD_SETTINGS
        if code != 0:
            return self._engine_ended(f"the download {self._exits.describe(code)}")
        found = download.result()
        self._engine_config = dataclasses.replace(
            self._engine_config,
            model=found.model_dir,
            served_model_name=self._engine_config.served_model_name or found.name,
        )
        self._download = None
        num_before = self._code.num_workers
        self._code.found(found.artifact_dir)
        for _ in range(num_before - self._code.num_workers):
            assert self._web is not None
            self._web.send_signal(signal.SIGTTOU)  # gunicorn's word for one worker less
        self._start_engine()
        return None

    def _engine_ended(self, reason: str) -> int | None:
        if self._monitor is not None:
            self._monitor.close()
        if self._engine is not None:
            _kill(self._engine)
        self._engine = None
        delay_s = self._policy.delay_s(time.monotonic())
        if delay_s is None:
            log.error(
                "%s, more than %d times in %d s; stopping",
                reason,
                self._server.max_engine_restarts,
                self._server.restart_window_s,
            )
            return 1
        log.error("%s; starting it again in %.1f s", reason, delay_s)
        self._restart_at = time.monotonic() + delay_s
        return None

    def _stop(self, grace_s: float) -> None:
        """SIGTERM to the web tier, then to the engine; a second signal ends the waiting."""
        log.info("stopping: running requests have %g s to finish", grace_s)
        started = time.monotonic()
        last_words_at = started + max(0.0, grace_s - _LAST_WORDS_S)
        end = started + grace_s + _KILL_AFTER_GRACE_S
        if self._web is not None and self._web.poll() is None:
            self._web.terminate()
        if not self._wait_for(self._web, last_words_at):
            # Without an engine that was ready nothing can run: the web tier just takes a moment to end.
            if self._engine is not None and self._monitor is not None and self._monitor.was_ready:
                log.warning("requests still run at the end of the grace period; ending them")
                _kill(self._engine)
            self._wait_for(self._web, end)
        if self._engine is not None and self._engine.poll() is None:
            self._engine.terminate()
            self._wait_for(self._engine, end)
        log.info("stopped after %.1f s", time.monotonic() - started)

    def _wait_for(self, process: "subprocess.Popen[bytes] | None", end: float) -> bool:
        """Whether the process has ended by `end`, or a second signal made the wait pointless."""
        while process is not None and process.poll() is None:
            if self._num_signals > 1:
                return True
            if time.monotonic() >= end:
                return False
            self._reap_strangers()
            time.sleep(_TICK_S)
        return True

    def _kill_all(self) -> None:
        for process in (self._web, self._engine):
            if process is not None:
                _kill(process)
        self._reap_strangers()

    def _reap_strangers(self) -> None:
        """As PID 1 we inherit every orphan of the container; an unreaped one stays a zombie for ever."""
        ours = {process.pid for process in (self._web, self._engine) if process is not None}
        while True:
            try:
                # WNOWAIT only looks: the exit code of our own children is Popen's to take.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in ours:
                return
            os.waitpid(found.si_pid, os.WNOHANG)


def _launch(environment: dict[str, str], module: str, *arguments: str) -> "subprocess.Popen[bytes]":
    # A group of its own, so that Ctrl-C reaches us alone, and so that SIGKILL can reach all of its processes.
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL, process_group=0)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to the process and its group, and reap it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        log.debug("process group %d has already ended", process.pid)
    try:
        process.wait(_KILLED_WITHIN_S)
    except subprocess.TimeoutExpired:
        # In the kernel's hands, waiting for a device; nobody can do more.
        log.error("process %d does not end though it was killed", process.pid)


if __name__ == "__main__":
    sys.exit(main())
