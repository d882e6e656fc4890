"""Norms, rotation and activation, every form against float64."""

import pytest
import torch

from kernels import for_device
from kernels.cpu import EagerCpuKernels
from kernels.reference import ReferenceKernels, apply_rope, rope_tables
from tests.kernels.oracle import relative_error

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
FORMS = [for_device(torch.device("cpu")), ReferenceKernels(), EagerCpuKernels()]
every = pytest.mark.parametrize("kernels", FORMS, ids=["cpu", "reference", "eager"])
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@every
@dtypes
@pytest.mark.parametrize("shape", [(1, 64), (5, 33), (3, 7), (40, 1024)])
def test_rms_norm(kernels, dtype, shape):
    torch.manual_seed(1)
    x, weight = (torch.randn(shape) * 3).to(dtype), torch.randn(shape[1:]).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
    assert relative_error(kernels.rms_norm(x, weight, 1e-3), expected) < TOLERANCE[dtype]


@every
@dtypes
@pytest.mark.parametrize("width", [40, 64])
def test_add_rms_norm(kernels, dtype, width):
    x, residual, weight = (torch.randn(shape).to(dtype) for shape in ((4, width), (4, width), (width,)))
    total = x.double() + residual.double()
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    norm, summed = kernels.add_rms_norm(x, residual, weight, 1e-6)
    assert relative_error(norm, expected) < TOLERANCE[dtype]
    assert relative_error(summed, total) < TOLERANCE[dtype]


@dtypes
def test_rope_turns_pairs_of_the_two_halves(dtype):
    positions = torch.tensor([0, 1, 7, 4095])
    inv_freq = 10000.0 ** -(torch.arange(0, 10, 2) / 10)
    heads = torch.randn(4, 4, 10).to(dtype)[:, 1:]  # strided, as a slice of the fused projection is
    found = apply_rope(heads, rope_tables(positions, inv_freq, 1.0))
    plane = torch.complex(heads[..., :5].double(), heads[..., 5:].double())
    # The angle itself is float32, as in every implementation of it.
    angle = (positions.float()[:, None] * inv_freq).double()
    turned = plane * torch.polar(torch.ones_like(angle), angle)[:, None]
    expected = torch.cat((turned.real, turned.imag), -1)
    assert relative_error(found, expected) < TOLERANCE[dtype]


@every
@dtypes
@pytest.mark.parametrize("shape", [(5, 34), (3, 128), (30, 6144)])
def test_silu_and_mul(kernels, dtype, shape):
    x = (torch.randn(shape) * 4).to(dtype)
    x[0, :3] = torch.tensor([90.0, -90.0, 0.0])
    gate, up = x.double().chunk(2, -1)
    assert relative_error(kernels.silu_and_mul(x), gate / (1 + (-gate).exp()) * up) < TOLERANCE[dtype]


@dtypes
def test_a_nan_stays_one(dtype):
    kernels = for_device(torch.device("cpu"))
    x = torch.randn(2, 64).to(dtype)
    x[0, 5] = float("nan")
    for out in (kernels.rms_norm(x, torch.ones(64, dtype=dtype), 1e-6), kernels.silu_and_mul(x)):
        assert out[0].isnan().any() and not out[1].isnan().any()
