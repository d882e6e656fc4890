"""Gated activations in Triton equal their definitions."""

from collections.abc import Callable

import pytest
import torch

from kernels import reference
from kernels.gpu.activation import gelu_and_mul, silu_and_mul
from tests.kernels.oracle import relative_error

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}
FORMS = [(silu_and_mul, reference.silu_and_mul), (gelu_and_mul, reference.gelu_and_mul)]
Activation = Callable[[torch.Tensor], torch.Tensor]


def rows(num_rows: int, size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return (torch.randn(num_rows, size, generator=torch.Generator().manual_seed(3)) * 2).to(dtype).to(device)


@pytest.mark.parametrize(("activation", "definition"), FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1), (3, 96), (2, 1500)])
def test_gated_activation(
    device: torch.device, activation: Activation, definition: Activation, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    x = rows(shape[0], 2 * shape[1], dtype, device)
    found = activation(x)
    assert found.dtype == dtype and found.shape == shape
    assert relative_error(found, definition(x.float())) < TOLERANCE[dtype]


@pytest.mark.parametrize(("activation", "definition"), FORMS)
def test_far_ends(device: torch.device, activation: Activation, definition: Activation) -> None:
    gate = torch.tensor([[-1e30, -200.0, -90.0, -5.0, 0.0, 5.0, 90.0, 200.0, 1e10]], device=device)
    x = torch.cat((gate, torch.full_like(gate, 3.0)), 1)
    assert torch.allclose(activation(x), definition(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", [silu_and_mul, gelu_and_mul])
def test_rows_may_be_strided_and_none_is_nothing(device: torch.device, activation: Activation) -> None:
    x = rows(4, 96, torch.float32, device)
    assert torch.equal(activation(x[:, 32:64]), activation(x[:, 32:64].contiguous()))
    assert activation(x[:0]).shape == (0, 48)
