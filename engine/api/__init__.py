"""The engine's public types: everything that crosses the Unix socket, and nothing that needs a tensor.

Knows plain data, limits and errors. Must not know torch, HTTP, sockets or the engine's inside, so that a web worker can
import it in milliseconds.
"""

from engine.api.config import EngineConfig
from engine.api.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineDied,
    EngineError,
    EngineNotReady,
    GenerationFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestAborted,
    RequestError,
    ServingError,
    error_from_code,
)
from engine.api.framing import MAX_FRAME_BYTES, FrameError, FrameReader, frame
from engine.api.messages import (
    Abort,
    EngineMessage,
    EngineState,
    EngineStatus,
    FinishReason,
    Generate,
    GenerateRequest,
    ModelInfo,
    Outputs,
    RequestFailed,
    RequestOutput,
    Usage,
    WorkerMessage,
    check_request,
    decode_engine_message,
    decode_worker_message,
    encode_message,
)
from engine.api.sampling_params import MAX_N, SamplingParams

__all__ = [
    "MAX_FRAME_BYTES",
    "MAX_N",
    "Abort",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "EngineConfig",
    "EngineDied",
    "EngineError",
    "EngineMessage",
    "EngineNotReady",
    "EngineState",
    "EngineStatus",
    "FinishReason",
    "FrameError",
    "FrameReader",
    "Generate",
    "GenerateRequest",
    "GenerationFailed",
    "InvalidRequest",
    "ModelInfo",
    "NotFound",
    "Outputs",
    "Overloaded",
    "RequestAborted",
    "RequestError",
    "RequestFailed",
    "RequestOutput",
    "SamplingParams",
    "ServingError",
    "Usage",
    "WorkerMessage",
    "check_request",
    "decode_engine_message",
    "decode_worker_message",
    "encode_message",
    "error_from_code",
    "frame",
]
