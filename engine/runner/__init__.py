"""The runner: a loaded model, its KV cache, and the two calls that the engine makes of it, `launch` and `collect`.

Knows sequences and tensors. Must not know the scheduler, the block pool or the sockets.
"""

from engine.runner.model_runner import ModelRunner, PendingStep
from engine.runner.start import load_runner

__all__ = ["ModelRunner", "PendingStep", "load_runner"]
