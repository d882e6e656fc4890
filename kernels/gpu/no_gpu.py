"""`compiling`: launchers compile what they would launch, on a machine without a GPU. Must not know which launchers.

They run on tensors of the meta device, under a driver that only names an architecture. What is compiled is what a real
launch would look up: a meta tensor has its type and strides, and its address is its offset from a base of 0, as aligned
as torch's allocations on a GPU are, at 512 bytes; so slices are aligned here if they are there.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction


class _NoDriver:
    """What the compiler asks of a driver, for a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        # The number under which compiled kernels are kept: architectures must not share it.
        return self._capability

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


@contextlib.contextmanager
def compiling(capability: int, on_launch: Callable[[Any], None]) -> Iterator[None]:
    """Inside, a launch compiles for sm_`capability`, unless that is done, and does nothing else.

    on_launch: given Triton's compiled kernel at each launch. Takes the place of `JITFunction.run` for this process.
    """
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        on_launch(kernel)
        return kernel

    driver.set_active(_NoDriver(capability))
    JITFunction.run = compile_only
    try:
        yield
    finally:
        JITFunction.run = launch
