"""Paths of the platform that belong to features which this server does not have: a clear answer in place of a 404.

Must not know anything else.
"""

from flask import Flask, Response

from container.responses import error_body, json_response

_METHODS = ["GET", "POST", "DELETE"]
# By path: what it belongs to.
_PATHS = {
    "/models": "Multi-model endpoints",
    "/models/<path:rest>": "Multi-model endpoints",
    "/adapters": "LoRA adapters",
    "/adapters/<path:rest>": "LoRA adapters",
    "/invocations-bidirectional-stream": "Bidirectional streaming",
    "/metrics": "Prometheus metrics",
}


def add_routes(app: Flask) -> None:
    """Answer each of these paths with 501 and what is missing."""
    for path, feature in _PATHS.items():
        app.add_url_rule(path, f"later {path}", _answer(feature), methods=_METHODS)


def _answer(feature: str):  # type: ignore[no-untyped-def]
    def answer(rest: str = "") -> Response:
        message = f"{feature}: not supported by this version of the server."
        return json_response(error_body(501, message, None, "not_implemented"), 501)

    return answer
