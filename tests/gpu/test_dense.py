"""Norms, activations and linear layers at real sizes, and rows past 2^31 elements."""

import pytest
import torch

from kernels import reference
from kernels.gpu.hardware import Hardware
from kernels.gpu.linear import skinny_matmul
from kernels.gpu.norm import add_rms_norm, rms_norm
from tests.gpu.support import NUM_INT32, captured, needs_memory
from tests.kernels.oracle import relative_error

TOLERANCE = {torch.bfloat16: 3e-3, torch.float16: 5e-4}
SHAPES = [(6144, 4096), (4096, 14336), (1024, 3072), (151936, 1024), (5000, 1000)]


@pytest.mark.parametrize("num_rows", [1, 3, 16, 17, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_skinny_product(
    device: torch.device, hardware: Hardware, num_rows: int, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    n, k = shape
    x, weight = torch.randn(num_rows, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
    bias = torch.randn(n, device=device).to(dtype)
    expected = x.double() @ weight.double().T + bias.double()
    found = skinny_matmul(x, weight, bias, hardware)
    assert relative_error(found, expected) < TOLERANCE[dtype]
    for _ in range(20):
        assert torch.equal(found, skinny_matmul(x, weight, bias, hardware)), "the same bits every time"


def test_skinny_product_in_float32_is_not_tf32(device: torch.device, hardware: Hardware) -> None:
    from kernels.gpu.linear_table import SkinnyConfig

    x, weight = torch.randn(16, 1024, device=device), torch.randn(512, 1024, device=device)
    found = skinny_matmul(x, weight, None, hardware, SkinnyConfig(64, 32, 4, 2, 4))
    assert relative_error(found, x.double() @ weight.double().T) < 1e-5


def test_skinny_product_replayed(device: torch.device, hardware: Hardware) -> None:
    x, weight = (torch.randn(rows, 4096, device=device).to(torch.bfloat16) for rows in (16, 4096))
    graph, found = captured(lambda: skinny_matmul(x, weight, None, hardware))
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        found.fill_(float("nan"))
        graph.replay()
        assert torch.equal(found, skinny_matmul(x, weight, None, hardware))
        assert relative_error(found, x.double() @ weight.double().T) < TOLERANCE[torch.bfloat16]


def test_weights_past_int32(device: torch.device, hardware: Hardware) -> None:
    needs_memory(12)
    k = 8192
    n = NUM_INT32 // k + 100
    weight = torch.empty(n, k, dtype=torch.bfloat16, device=device).normal_()
    x = torch.randn(4, k, device=device).to(torch.bfloat16)
    found = skinny_matmul(x, weight, None, hardware)[:, -200:]
    assert relative_error(found, x.double() @ weight[-200:].double().T) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("shape", [(1, 4096), (4096, 4096), (300, 5120), (2048, 1024), (7, 16384)], ids=str)
def test_norms(device: torch.device, shape: tuple[int, int]) -> None:
    x, residual = (torch.randn(shape, device=device).to(torch.bfloat16) for _ in range(2))
    weight = torch.randn(shape[1], device=device).to(torch.bfloat16)
    expected = reference.rms_norm(x.float(), weight.float(), 1e-6)
    assert relative_error(rms_norm(x, weight, 1e-6), expected) < TOLERANCE[torch.bfloat16]
    total = x + residual
    found, left = add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(left, total)
    assert relative_error(found, reference.rms_norm(total.float(), weight.float(), 1e-6)) < TOLERANCE[torch.bfloat16]


def test_norm_of_rows_past_int32(device: torch.device) -> None:
    needs_memory(16)
    size = 8192
    x = torch.empty(NUM_INT32 // size + 3, size, dtype=torch.bfloat16, device=device).normal_()
    weight = torch.randn(size, device=device).to(torch.bfloat16)
    found = rms_norm(x, weight, 1e-6)[-3:]
    assert relative_error(found, reference.rms_norm(x[-3:].float(), weight, 1e-6)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("shape", [(1, 14336), (4096, 14336), (77, 3072), (5, 1000)], ids=str)
def test_silu_and_mul(device: torch.device, shape: tuple[int, int]) -> None:
    from kernels.gpu.activation import silu_and_mul

    gate_up = torch.randn(shape[0], 2 * shape[1], device=device).to(torch.bfloat16) * 3
    expected = reference.silu_and_mul(gate_up.float())
    assert relative_error(silu_and_mul(gate_up), expected) < TOLERANCE[torch.bfloat16]


def test_silu_and_mul_of_rows_past_int32(device: torch.device) -> None:
    from kernels.gpu.activation import silu_and_mul

    needs_memory(16)
    width = 8192
    gate_up = torch.empty(NUM_INT32 // (2 * width) + 3, 2 * width, dtype=torch.bfloat16, device=device).normal_()
    found = silu_and_mul(gate_up)[-3:]
    assert relative_error(found, reference.silu_and_mul(gate_up[-3:].float())) < TOLERANCE[torch.bfloat16]
