"""The web tier: `python -m container.web --settings FILE` runs gunicorn with gevent workers.

Knows gunicorn's settings. The master imports nothing of the application: Flask, tokenizers and the engine client are
loaded in the workers, after gevent has patched the standard library. Must not know routes.
"""

import argparse
import dataclasses
import logging
import os
import resource
from pathlib import Path
from typing import Any

import msgspec
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from container.config import ServerConfig
from container.custom_code.scripts import CustomCodeSettings
from container.processes import LOG_FORMAT, OneLineFormatter, configure_logging, die_with_parent

# gevent workers beat on their own: a silent one hangs in code that never yields.
_HUNG_WORKER_S = 120
_BACKLOG = 2048
# gunicorn's own, and the id by which a client knows its request.
_ACCESS_LOG_FORMAT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %({x-request-id}o)s'
_MAX_HEADERS = 100
_MAX_HEADER_BYTES = 16_384
_MAX_REQUEST_LINE_BYTES = 8190


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebSettings:
    """What the supervisor writes to FILE. parent_pid: the process with which to die; None for nobody."""

    server: ServerConfig
    engine_socket: str
    custom_code: CustomCodeSettings | None = None
    parent_pid: int | None = None


class WebApplication(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn with our settings and nothing from its environment variables or files."""

    def __init__(self, settings: WebSettings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn."""
        for name, value in gunicorn_settings(self._settings.server).items():
            # Newer gunicorns have a control socket that older ones do not know.
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        """Called by gunicorn in each worker after the fork."""
        from container.app import create_app
        from container.custom_code.worker import CustomCode
        from container.engine_client import EngineClient

        def give_up() -> None:
            # With this exit code gunicorn ends instead of starting the next worker, which could do no better.
            os._exit(Arbiter.APP_LOAD_ERROR)

        server = self._settings.server
        client = EngineClient(self._settings.engine_socket, server.stall_limit_s, on_unusable_model=give_up)
        client.start()
        code = None
        if self._settings.custom_code is not None:
            code = CustomCode(self._settings.custom_code, client, server, on_broken=give_up)
            code.start()
        return create_app(client, server, code)


def gunicorn_settings(server: ServerConfig) -> dict[str, Any]:
    """gunicorn's names for our settings."""
    shm = Path("/dev/shm")
    host = f"[{server.host}]" if ":" in server.host else server.host
    return {
        "bind": f"{host}:{server.port}",
        "workers": server.num_workers,
        "worker_class": "container.web_worker.DrainingWorker",
        "worker_connections": server.worker_connections,
        "timeout": _HUNG_WORKER_S,
        "graceful_timeout": server.grace_s,
        "keepalive": server.keepalive_s,
        "backlog": _BACKLOG,
        # The heartbeat file must not wait for a disk.
        "worker_tmp_dir": str(shm) if os.access(shm, os.W_OK | os.X_OK) else None,
        "limit_request_line": _MAX_REQUEST_LINE_BYTES,
        "limit_request_fields": _MAX_HEADERS,
        "limit_request_field_size": _MAX_HEADER_BYTES,
        "proc_name": "galley-web",
        "accesslog": "-" if server.access_log else None,
        "access_log_format": _ACCESS_LOG_FORMAT,
        "logconfig_dict": _logging(server),
        "control_socket_disable": True,
    }


def _logging(server: ServerConfig) -> dict[str, Any]:
    level = server.log_level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": OneLineFormatter, "fmt": LOG_FORMAT}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": level, "handlers": [], "propagate": True},
            # With a logging configuration gunicorn writes its access log whatever `accesslog` says.
            "gunicorn.access": {"level": "INFO" if server.access_log else "WARNING", "handlers": [], "propagate": True},
        },
    }


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m container.web", description="Galley's web tier.")
    parser.add_argument("--settings", required=True, type=Path, help="JSON file that the supervisor has written")
    settings = msgspec.json.decode(parser.parse_args().settings.read_bytes(), type=WebSettings)
    if settings.parent_pid is not None:
        die_with_parent(settings.parent_pid)
    configure_logging(settings.server.log_level)
    # Shells and service managers often leave the soft limit at 1024 files, fewer than the connections we promise.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    logging.getLogger("container.web").info("listening on %s:%d", settings.server.host, settings.server.port)
    WebApplication(settings).run()


if __name__ == "__main__":
    main()
