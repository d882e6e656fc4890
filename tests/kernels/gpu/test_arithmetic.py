"""The shared device functions, against torch's own conversions."""

import pytest
import torch
import triton
import triton.language as tl

from kernels.gpu.arithmetic import e4m3_to_float16, float32_to_e4m3, soft_capped


@triton.jit
def _decode(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, e4m3_to_float16(tl.load(x + i)).to(tl.float32))


@triton.jit
def _encode(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, float32_to_e4m3(tl.load(x + i)))


@triton.jit
def _cap(x, y, cap, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, soft_capped(tl.load(x + i), cap))


def test_every_finite_e4m3_code_is_read_exactly(device: torch.device) -> None:
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    found = torch.full((256,), float("nan"), device=device)
    _decode[(1,)](codes, found, 256)
    expected = codes.view(torch.float8_e4m3fn).float()
    finite = expected.isfinite()
    assert int(finite.sum()) == 254
    assert torch.equal(found[finite], expected[finite])


@pytest.mark.parametrize("size", [1e-4, 2e-3, 2e-2, 1.0, 60.0, 1e4])
def test_e4m3_is_rounded_to_the_nearest_as_torch_does(device: torch.device, size: float) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(1)) * size
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()].sort().values
    middle = (every[1:] + every[:-1]) / 2
    x[: len(middle)] = middle
    x[1024:1032] = torch.tensor([0.0, -0.0, 448.0, -448.0, 1e9, float("inf"), 2.0**-10, 1.5 * 2.0**-9])
    x = x.to(device)
    found = torch.zeros(4096, dtype=torch.uint8, device=device)
    _encode[(1,)](x, found, 4096)
    assert torch.equal(found, x.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).view(torch.uint8))


def test_nan_stays_nan_in_e4m3(device: torch.device) -> None:
    x = torch.full((16,), float("nan"), device=device)
    found = torch.zeros(16, dtype=torch.uint8, device=device)
    _encode[(1,)](x, found, 16)
    assert found.view(torch.float8_e4m3fn).float().isnan().all()


def test_soft_cap_is_the_scaled_tanh(device: torch.device) -> None:
    x = torch.cat((torch.linspace(-200, 200, 1020), torch.tensor([0.0, 1e-4, -1e30, 1e30]))).to(device)
    found = torch.full_like(x, float("nan"))
    _cap[(1,)](x, found, 30.0, 1024)
    assert torch.allclose(found, 30.0 * torch.tanh(x / 30.0), rtol=1e-5, atol=1e-5)
