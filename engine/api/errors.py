"""The errors that Galley reports, as one tree.

    ServingError
    ├── RequestError            the caller's fault: logged at INFO at most
    │   ├── InvalidRequest          400
    │   ├── ContextLengthExceeded   400
    │   ├── NotFound                404
    │   ├── Overloaded              429, with Retry-After
    │   ├── DeadlineExceeded        504
    │   └── RequestAborted          nothing is sent: the client has left
    └── EngineError             our fault: logged with a traceback
        ├── EngineNotReady          503
        ├── EngineDied              503
        └── GenerationFailed        500

Each carries what OpenAI's error body needs. Knows status numbers; must not know HTTP libraries or bodies.
"""

from typing import ClassVar


class ServingError(Exception):
    """Base of every error that a client may see.

    `message` is written for the caller and holds no path, address or traceback. `param` names the request field at
    fault, if one is. `code` is the machine-readable word and `status` the HTTP status.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class RequestError(ServingError):
    """The caller's fault."""

    status = 400
    code = "invalid_request"


class InvalidRequest(RequestError):
    """A field has a wrong type or value, or is not supported."""


class ContextLengthExceeded(RequestError):
    """Prompt and requested output do not fit into max_model_len tokens."""

    code = "context_length_exceeded"


class NotFound(RequestError):
    """No such route or model."""

    status = 404
    code = "not_found"


class Overloaded(RequestError):
    """The waiting queue is full; the caller may try again later."""

    status = 429
    code = "overloaded"
    retry_after_s = 1


class DeadlineExceeded(RequestError):
    """The request's deadline passed before it finished."""

    status = 504
    code = "deadline_exceeded"


class RequestAborted(RequestError):
    """The client has left; nothing is sent."""

    status = 499
    code = "aborted"


class EngineError(ServingError):
    """Our fault."""


class EngineNotReady(EngineError):
    """The engine is starting, stopping, or has not been seen for longer than the stall limit."""

    status = 503
    code = "engine_not_ready"
    retry_after_s = 2


class EngineDied(EngineError):
    """The engine went away while it worked on the request."""

    status = 503
    code = "engine_died"
    retry_after_s = 2


class GenerationFailed(EngineError):
    """The step that held the request raised."""

    code = "generation_failed"


_CONCRETE: tuple[type[ServingError], ...] = (
    InvalidRequest,
    ContextLengthExceeded,
    NotFound,
    Overloaded,
    DeadlineExceeded,
    RequestAborted,
    EngineNotReady,
    EngineDied,
    GenerationFailed,
)


def error_from_code(code: str, message: str, param: str | None = None) -> ServingError:
    """The error whose `code` crossed the socket; an unknown code is a GenerationFailed."""
    for kind in _CONCRETE:
        if kind.code == code:
            return kind(message, param)
    return GenerationFailed(message, param)
