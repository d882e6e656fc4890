"""Gated activations: act(gate) * up, with every byte read and written once. Must not know what the rows are."""

import functools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.arithmetic import LOG2_E
from kernels.gpu.cases import CompileCase
from kernels.gpu.hardware import Hardware

# Elements of a program: 16 bytes of each half for each of 128 threads, at two bytes an element.
_BLOCK = 1024


@triton.jit
def _activate_and_mul(x_ptr, y_ptr, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr):
    """BLOCK elements of one row of y.

    Both activations are gate * sigmoid(z): SiLU with z = gate; GELU's tanh form, gate / 2 * (1 + tanh(z / 2)), with
    z = 2 sqrt(2 / pi) (gate + 0.044715 gate^3).
    """
    COLUMNS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // COLUMNS).to(tl.int64)
    i = tl.program_id(0) % COLUMNS * BLOCK + tl.arange(0, BLOCK)
    inside = i < WIDTH
    gate = tl.load(x_ptr + row * x_stride + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + WIDTH + i, mask=inside, other=0.0).to(tl.float32)
    z = gate
    if GELU:
        z = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    y = gate / (1.0 + tl.exp2(-z * LOG2_E)) * up
    tl.store(y_ptr + row * WIDTH + i, y.to(y_ptr.dtype.element_ty), mask=inside)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See `reference.silu_and_mul`; gate_up [T, 2 * width], its rows possibly strided."""
    return _launch(gate_up, gelu=False)


def gelu_and_mul(gate_up: Tensor) -> Tensor:
    """See `reference.gelu_and_mul`; gate_up as in `silu_and_mul`."""
    return _launch(gate_up, gelu=True)


def _launch(gate_up: Tensor, *, gelu: bool) -> Tensor:
    if gate_up.stride(1) != 1:
        raise ValueError("the elements of a row must lie side by side")
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty(num_rows, width, dtype=gate_up.dtype, device=gate_up.device)
    if num_rows == 0:
        return y
    grid = (num_rows * triton.cdiv(width, _BLOCK),)
    _activate_and_mul[grid](gate_up, y, gate_up.stride(0), WIDTH=width, BLOCK=_BLOCK, GELU=gelu, num_warps=4)
    return y


def compile_cases(hardware: Hardware) -> Iterator[CompileCase]:
    """Both activations at a width that the block divides and at one that it does not."""
    for width in (3072, 4864):
        x = torch.empty(8, 2 * width, dtype=torch.bfloat16, device="meta")
        yield CompileCase(f"silu, bfloat16 {width}", functools.partial(silu_and_mul, x))
        yield CompileCase(f"gelu, bfloat16 {width}", functools.partial(gelu_and_mul, x))
