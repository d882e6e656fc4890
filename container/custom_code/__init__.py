"""The operator's own code in the model artifact: what its scripts may import, and what runs them in the web workers.

A script may import the names below. `engine` is the served model. The decorators name a script's hooks. Knows Flask,
gevent's threads and the two contracts (docs/custom-code.md). Must not know the engine's socket or any schema of ours.
"""

from container.custom_code.handle import EngineHandle, GeneratedText, engine
from container.custom_code.hooks import (
    custom_invocation_handler,
    custom_middleware,
    custom_ping_handler,
    input_formatter,
    output_formatter,
)

__all__ = [
    "EngineHandle",
    "GeneratedText",
    "custom_invocation_handler",
    "custom_middleware",
    "custom_ping_handler",
    "engine",
    "input_formatter",
    "output_formatter",
]
