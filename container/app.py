"""The Flask application: paths, request ids, and every error as OpenAI's body.

Knows Flask. Must not know gunicorn, the engine's socket or what a route does.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, NotFound

from container.config import ServerConfig
from container.custom_code.worker import CustomCode, with_custom_code
from container.disconnect import hang_up
from container.engine_client import Engine
from container.responses import error_body, error_response, json_response, log_error
from container.routes import chat, completions, later, models, sagemaker
from container.routes.serving import Serving
from container.schema.fields import RawBody
from container.schema.invocation import INFERENCE_ID
from engine.api import RequestAborted, ServingError

log = logging.getLogger(__name__)

_REQUEST_ID_CHARS = re.compile(r"[^A-Za-z0-9._:/+=@-]")
_MAX_REQUEST_ID_CHARS = 128


def create_app(engine: Engine, config: ServerConfig, code: CustomCode | None = None) -> Flask:
    """The application over one engine; with `code`, what the model's artifact brings."""
    app = Flask("galley", static_folder=None)
    # A doubled slash is an unknown path like any other, not a redirect that a POST would lose its body on.
    app.url_map.merge_slashes = False
    # OPTIONS is a method like any other that a route does not have: 405 with our body.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    serving = Serving(engine, config)

    app.before_request(_set_request_id)
    app.before_request(_refuse_doubled_slash)
    app.before_request(lambda: _set_deadline(config.request_timeout_s))
    app.after_request(sagemaker.echo_headers)  # in the reverse order: it sees what the next one has set
    app.after_request(_add_request_id)
    app.register_error_handler(Exception, _handle_error)

    ping, invocations = with_custom_code(code, lambda: sagemaker.ping(serving), lambda: sagemaker.invocations(serving))
    app.add_url_rule("/ping", "ping", ping, methods=["GET", "POST"])
    app.add_url_rule("/invocations", "invocations", invocations, methods=["POST"])
    app.add_url_rule(
        "/execution-parameters", "parameters", lambda: sagemaker.execution_parameters(config), methods=["GET"]
    )
    for path, route in (("/v1/chat/completions", chat), ("/v1/completions", completions)):
        app.add_url_rule(path, path, _of_one_body(serving, route.answer), methods=["POST"])
    app.add_url_rule("/v1/models", "models", lambda: models.list_models(serving), methods=["GET"])
    app.add_url_rule("/v1/models/<path:name>", "model", lambda name: models.get_model(serving, name), methods=["GET"])
    later.add_routes(app)
    return app


def _of_one_body(serving: Serving, answer: Callable[[Serving, RawBody], Response]) -> Callable[[], Response]:
    def view() -> Response:
        here = serving.for_request()
        return answer(here, here.body())

    return view


def _set_request_id() -> None:
    # Only ever echoed and logged: the engine's ids are our own. SageMaker's own clients name theirs otherwise.
    named = request.headers.get(INFERENCE_ID) or request.headers.get("X-Request-Id", "")
    given = _REQUEST_ID_CHARS.sub("", named)[:_MAX_REQUEST_ID_CHARS]
    g.request_id = given or secrets.token_hex(16)


def _refuse_doubled_slash() -> None:
    # Werkzeug takes leading slashes for one before it looks for a route.
    if request.environ["PATH_INFO"].startswith("//"):
        raise NotFound


def _set_deadline(timeout_s: float) -> None:
    # The headers have just arrived: a body that comes slowly takes its time from the whole.
    g.deadline = time.monotonic() + timeout_s


def _add_request_id(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.get("request_id", "")
    return response


def _handle_error(error: Exception) -> Response:
    """Every error of a request, before its first byte, ends here."""
    if isinstance(error, ServingError):
        log_error(error, g.request_id)
        if isinstance(error, RequestAborted):
            # It may have closed its sending half only; it is told nothing all the same.
            hang_up(request.environ.get("gunicorn.socket"))
        return error_response(error)
    if isinstance(error, HTTPException):
        status = error.code or 500
        message = f"{error.name}: {request.method} {request.path[:200]}"
        response = json_response(error_body(status, message, None, error.name.lower().replace(" ", "_")), status)
        if allow := dict(error.get_headers()).get("Allow"):
            response.headers["Allow"] = allow
        return response
    log.exception("request %s failed", g.request_id)
    return json_response(error_body(500, "The server failed on this request.", None, "internal_error"), 500)
