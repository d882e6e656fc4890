"""What is compiled ahead of time: each module's launches at the shapes that its configurations tell apart.

A module named here has `compile_cases(hardware)`, which yields a `CompileCase` per launch worth looking at.
"""

import dataclasses
from collections.abc import Callable

MODULES: tuple[str, ...] = (
    "kernels.gpu.activation",
    "kernels.gpu.decode_attention",
    "kernels.gpu.linear",
    "kernels.gpu.norm",
    "kernels.gpu.prefill_attention",
    "kernels.gpu.rope",
    "kernels.gpu.sampling",
    "kernels.gpu.step",
)


@dataclasses.dataclass(frozen=True, slots=True)
class CompileCase:
    """name: which types, sizes and forms, for people. launch: calls a launcher with tensors of the meta device."""

    name: str
    launch: Callable[[], object]
