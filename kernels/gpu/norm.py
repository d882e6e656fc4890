"""Root-mean-square norm, alone and with the residual's addition in the same pass.

y = x / sqrt(mean(x^2) + eps) * w, and total = x + residual, y = norm(total). One program per row; every byte is read
and written once. Must not know what the rows are.
"""

import functools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.cases import CompileCase
from kernels.gpu.hardware import Hardware


@triton.jit
def _rms_norm(
    x_ptr, residual_ptr, weight_ptr, y_ptr, eps, x_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr
):
    """One row: `ADD` also writes x + residual, rounded to its type, back to residual and norms that."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < SIZE
    x = tl.load(x_ptr + row * x_stride + i, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        total = x + tl.load(residual_ptr + row * SIZE + i, mask=inside, other=0.0).to(tl.float32)
        total = total.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + row * SIZE + i, total, mask=inside)
        x = total.to(tl.float32)
    weight = tl.load(weight_ptr + i, mask=inside, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps) * weight
    tl.store(y_ptr + row * SIZE + i, y.to(y_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`; x [T, size], its rows possibly strided, weight [size] of x's type or float32."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, x, weight, y, eps, add=False)
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`; overwrites `residual`, contiguous, and returns it."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, residual, weight, y, eps, add=True)
    return y, residual


def _launch(x: Tensor, residual: Tensor, weight: Tensor, y: Tensor, eps: float, *, add: bool) -> None:
    num_rows, size = x.shape
    if x.stride(1) != 1 or (add and not residual.is_contiguous()):
        raise ValueError("the elements of a row must lie side by side, and the residual's rows too")
    if num_rows == 0:
        return
    block = triton.next_power_of_2(size)
    # 16 bytes per thread and load, for up to 16 warps.
    num_warps = max(1, min(16, block // 256))
    _rms_norm[(num_rows,)](
        x, residual, weight, y, eps, x.stride(0), SIZE=size, BLOCK=block, ADD=add, num_warps=num_warps
    )


def compile_cases(hardware: Hardware) -> Iterator[CompileCase]:
    """Sizes of small and large models; the float32 weight is Gemma's."""
    for size, weight_dtype in ((128, torch.bfloat16), (1024, torch.bfloat16), (5120, torch.float32)):
        x = torch.empty(8, size, dtype=torch.bfloat16, device="meta")
        weight = torch.empty(size, dtype=weight_dtype, device="meta")
        name = f"bfloat16 {size}, weight {str(weight_dtype).removeprefix('torch.')}"
        yield CompileCase(name, functools.partial(rms_norm, x, weight, 1e-6))
        yield CompileCase(f"{name}, with residual", functools.partial(add_rms_norm, x, x, weight, 1e-6))
