"""The engine: scheduler, paged KV cache, models, sampling, and the offline `LLM` class.

`LLM` is named lazily, so that a process that only needs `engine.api` (a web worker) never loads torch.
"""

from typing import TYPE_CHECKING, Any

from engine.api import SamplingParams

if TYPE_CHECKING:
    from engine.llm import LLM

__all__ = ["LLM", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from engine.llm import LLM

        return LLM
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
