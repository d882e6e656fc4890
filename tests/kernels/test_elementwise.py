"""Linear layers, norms, rotation and activation, reference and CPU form, against float64."""

import pytest
import torch

from kernels.cpu import CpuKernels
from kernels.cpu.linear import PlainLinear
from kernels.reference import ReferenceKernels
from tests.kernels.oracle import relative_error

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
both = pytest.mark.parametrize("kernels", [CpuKernels(), ReferenceKernels()], ids=["cpu", "reference"])
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@both
@dtypes
@pytest.mark.parametrize("num_tokens", [1, 3, 65])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(kernels, dtype, num_tokens, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(num_tokens, 72).to(dtype), torch.randn(37, 72).to(dtype)
    b = torch.randn(37).to(dtype) if bias else None
    expected = x.double() @ weight.double().T + (0 if b is None else b.double())
    found = kernels.pack_linear(weight, b)(x)
    assert found.dtype == dtype
    assert relative_error(found, expected) < TOLERANCE[dtype]


def test_a_type_that_onednn_does_not_pack_is_computed_all_the_same():
    x, weight = torch.randn(3, 16, dtype=torch.float64), torch.randn(5, 16, dtype=torch.float64)
    packed = CpuKernels().pack_linear(weight, None)
    assert isinstance(packed, PlainLinear)
    assert torch.allclose(packed(x), x @ weight.T)


@both
@dtypes
@pytest.mark.parametrize("shape", [(1, 64), (5, 33), (3, 6, 16)])
def test_rms_norm(kernels, dtype, shape):
    torch.manual_seed(1)
    x, weight = (torch.randn(shape) * 3).to(dtype), torch.randn(shape[1:]).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
    assert relative_error(kernels.rms_norm(x, weight, 1e-3), expected) < TOLERANCE[dtype]


@both
@dtypes
def test_add_rms_norm(kernels, dtype):
    x, residual, weight = (torch.randn(shape).to(dtype) for shape in ((4, 40), (4, 40), (40,)))
    total = x.double() + residual.double()
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    norm, summed = kernels.add_rms_norm(x, residual, weight, 1e-6)
    assert relative_error(norm, expected) < TOLERANCE[dtype]
    assert relative_error(summed, total) < TOLERANCE[dtype]


@both
@dtypes
def test_rope_turns_pairs_of_the_two_halves(kernels, dtype):
    positions = torch.tensor([0, 1, 7, 4095])
    inv_freq = 10000.0 ** -(torch.arange(0, 10, 2) / 10)
    wide = torch.randn(4, 4, 10).to(dtype)
    heads = wide[:, 1:]  # strided, as a slice of the fused projection is
    found = kernels.apply_rope(heads, kernels.rope_tables(positions, inv_freq, 1.0))
    plane = torch.complex(heads[..., :5].double(), heads[..., 5:].double())
    # The angle itself is float32, as in every implementation of it.
    angle = (positions.float()[:, None] * inv_freq).double()
    turned = plane * torch.polar(torch.ones_like(angle), angle)[:, None]
    expected = torch.cat((turned.real, turned.imag), -1)
    assert relative_error(found, expected) < TOLERANCE[dtype]


@both
@dtypes
def test_silu_and_mul(kernels, dtype):
    x = (torch.randn(5, 34) * 4).to(dtype)
    gate, up = x.double().chunk(2, -1)
    assert relative_error(kernels.silu_and_mul(x), gate / (1 + (-gate).exp()) * up) < TOLERANCE[dtype]


def test_float16_is_computed_as_float32_on_a_cpu():
    assert CpuKernels().preferred_dtype(torch.float16) == torch.float32
    assert CpuKernels().preferred_dtype(torch.float32) == torch.float32
    assert ReferenceKernels().preferred_dtype(torch.float16) == torch.float16
