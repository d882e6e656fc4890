"""RMS norm in Triton equals its definition."""

import pytest
import torch

from kernels import reference
from kernels.gpu.norm import add_rms_norm, rms_norm
from tests.kernels.oracle import relative_error

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def rows(num_rows: int, size: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, size, generator=generator).to(dtype).to(device)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (2, 96), (5, 1000)])
def test_rms_norm(device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, weight = rows(*shape, dtype, device), rows(1, shape[1], dtype, device, 1)[0]
    found = rms_norm(x, weight, 1e-6)
    assert found.dtype == dtype
    assert relative_error(found, reference.rms_norm(x.double(), weight.double(), 1e-6)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 8), (3, 64), (2, 1000)])
def test_add_rms_norm_also_leaves_the_sum(device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, residual = rows(*shape, dtype, device), rows(*shape, dtype, device, 2)
    weight = rows(1, shape[1], dtype, device, 1)[0]
    expected, total = reference.add_rms_norm(x, residual, weight, 1e-6)
    found, left = add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(left, total)
    assert relative_error(found, expected) < TOLERANCE[dtype]


def test_gemmas_weight_of_one_plus_w_in_float32(device: torch.device) -> None:
    x, w = rows(3, 96, torch.bfloat16, device), rows(1, 96, torch.float32, device, 1)[0] * 0.1
    expected = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6) * (1 + w.double())
    assert relative_error(rms_norm(x, 1 + w, 1e-6), expected) < TOLERANCE[torch.bfloat16]


def test_elements_apart_are_refused(device: torch.device) -> None:
    x, weight = rows(4, 96, torch.float32, device), rows(1, 48, torch.float32, device, 1)[0]
    for call in (lambda: rms_norm(x[:, ::2], weight, 1e-6), lambda: add_rms_norm(x[:, :48], x[:, 48:], weight, 1e-6)):
        with pytest.raises(ValueError, match="side by side"):
            call()


def test_rows_may_be_strided_and_none_is_nothing(device: torch.device) -> None:
    x, weight = rows(4, 96, torch.float32, device), rows(1, 32, torch.float32, device, 1)[0]
    assert torch.equal(rms_norm(x[:, 32:64], weight, 1e-6), rms_norm(x[:, 32:64].contiguous(), weight, 1e-6))
    assert rms_norm(x[:0], rows(1, 96, torch.float32, device)[0], 1e-6).shape == (0, 96)
