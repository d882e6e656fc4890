"""SageMaker's two routes: /ping and /invocations.

Knows how a body tells which API it speaks. Must not know those APIs.
"""

from flask import Response

from container.responses import json_response
from container.routes import chat, completions, generate
from container.routes.serving import Serving
from engine.api import InvalidRequest

_RETRY_AFTER_S = "2"


_ANSWERS = {"messages": chat.answer, "prompt": completions.answer, "inputs": generate.answer}


def ping(serving: Serving) -> Response:
    """200 when requests can be served, else 503 with the stage; from what the engine last said, without asking it."""
    health = serving.engine.health()
    if health.is_ready:
        healthy = Response(status=200)
        del healthy.headers["Content-Type"]
        return healthy
    response = json_response({"status": health.state, "stage": health.stage}, 503)
    response.headers["Retry-After"] = _RETRY_AFTER_S
    return response


def invocations(serving: Serving) -> Response:
    """Chat, completion or TGI's generate, by the field that only it has. Raises a ServingError."""
    raw = serving.body()
    present = [name for name in _ANSWERS if name in raw]
    # Null asks for nothing; where there is nothing else, its own route says that it is missing.
    asked = [name for name in present if bytes(memoryview(raw[name])[:4]) != b"null"]
    for name in asked or present:
        return _ANSWERS[name](serving, raw)
    raise InvalidRequest("The body must have 'messages' (chat), 'prompt' (completion) or 'inputs' (TGI's generate).")
