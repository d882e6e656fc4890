"""Linear layers, every form against float64; what quantization costs; rows that do not depend on others."""

import pytest
import torch

from kernels import KernelOptions, for_device, preferred_dtype
from kernels.cpu import EagerCpuKernels, load_native
from kernels.cpu.linear import PlainLinear
from kernels.reference import ReferenceKernels
from tests.kernels.oracle import relative_error

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
FORMS = [for_device(CPU), ReferenceKernels(), EagerCpuKernels()]
every = pytest.mark.parametrize("kernels", FORMS, ids=["cpu", "reference", "eager"])
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
native = load_native()
needs_vnni = pytest.mark.skipif(native is None or not native.has_quantized, reason="this CPU has no AVX512-VNNI")


@every
@dtypes
@pytest.mark.parametrize("num_tokens", [1, 3, 12, 13, 65])
@pytest.mark.parametrize("shape", [(37, 72), (32, 32), (100, 71), (1, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(kernels, dtype, num_tokens, shape, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(num_tokens, shape[1]).to(dtype), torch.randn(shape).to(dtype)
    b = torch.randn(shape[0]).to(dtype) if bias else None
    expected = x.double() @ weight.double().T + (0 if b is None else b.double())
    found = kernels.pack_linear([weight], b)(x)
    assert found.dtype == dtype and found.is_contiguous()
    assert relative_error(found, expected) < TOLERANCE[dtype]


@dtypes
@pytest.mark.parametrize("parts", [(64, 32), (20, 7, 30), (1, 1, 1)])
def test_parts_are_joined(dtype, parts):
    torch.manual_seed(0)
    weights = [torch.randn(rows, 71).to(dtype) for rows in parts]
    x = torch.randn(3, 71).to(dtype)
    kernels = for_device(CPU)
    assert torch.equal(kernels.pack_linear(weights, None)(x), kernels.pack_linear([torch.cat(weights)], None)(x))


@dtypes
def test_rows_may_be_strided(dtype):
    wide = torch.randn(5, 90).to(dtype)
    weight = torch.randn(40, 64).to(dtype)
    linear = for_device(CPU).pack_linear([weight], None)
    assert torch.equal(linear(wide[:, 10:74]), linear(wide[:, 10:74].contiguous()))


def options(quantization):
    dtype = torch.bfloat16
    return dtype, for_device(CPU, dtype, KernelOptions(quantization))


@pytest.mark.parametrize(
    "form", ["float32", "bfloat16", pytest.param("int8", marks=needs_vnni), pytest.param("int4", marks=needs_vnni)]
)
@pytest.mark.parametrize("shape", [(96, 64), (70, 1024), (256, 3072)])
def test_a_row_is_bitwise_the_same_in_any_batch(form, shape):
    dtype, kernels = options(form) if form.startswith("int") else (getattr(torch, form), for_device(CPU))
    torch.manual_seed(0)
    linear = kernels.pack_linear([torch.randn(shape).to(dtype)], None)
    x = torch.randn(130, shape[1]).to(dtype)
    whole = linear(x)
    for start, end in ((0, 1), (3, 5), (7, 19), (19, 32), (32, 129), (129, 130)):
        assert torch.equal(linear(x[start:end].contiguous()), whole[start:end])


@needs_vnni
@pytest.mark.parametrize(("quantization", "most"), [("int8", 0.015), ("int4", 0.12)])
@pytest.mark.parametrize("shape", [(64, 128), (37, 200), (128, 3072)])
def test_quantized_weights_come_close(quantization, most, shape):
    torch.manual_seed(0)
    dtype, kernels = options(quantization)
    x, weight = torch.randn(9, shape[1]).to(dtype), torch.randn(shape).to(dtype) * 0.02
    x[3] *= 50.0  # a scale per row: a large row must not blur the others
    bias = torch.randn(shape[0]).to(dtype)
    expected = x.double() @ weight.double().T + bias.double()
    found = kernels.pack_linear([weight], bias)(x)
    for row in range(len(x)):
        assert relative_error(found[row], expected[row]) < most


@needs_vnni
def test_int4_is_exact_where_the_weights_are_sixteen_steps():
    torch.manual_seed(0)
    dtype, kernels = options("int4")
    steps = torch.randint(-8, 8, (64, 96)).float()
    steps[:, ::32] = -8.0  # each group uses its full range, so that its scale is found again
    x = torch.randint(-4, 5, (7, 96)).to(dtype)
    found = kernels.pack_linear([(steps * 0.25).to(dtype)], None)(x)
    assert torch.equal(found, (x.double() @ (steps * 0.25).double().T).to(dtype))


@needs_vnni
def test_quantized_zeros_are_zero():
    for quantization in ("int8", "int4"):
        dtype, kernels = options(quantization)
        linear = kernels.pack_linear([torch.zeros(40, 64, dtype=dtype)], None)
        assert not linear(torch.randn(3, 64).to(dtype)).any()
        some = kernels.pack_linear([torch.randn(40, 64).to(dtype)], None)
        assert not some(torch.zeros(3, 64, dtype=dtype)).any()


@needs_vnni
def test_the_head_is_never_int4():
    dtype, kernels = options("int4")
    torch.manual_seed(0)
    x, weight = torch.randn(4, 256).to(dtype), torch.randn(64, 256).to(dtype)
    expected = x.double() @ weight.double().T
    assert relative_error(kernels.pack_linear([weight], None, is_head=True)(x), expected) < 0.02


def test_quantization_of_float32_is_refused():
    with pytest.raises(ValueError, match="quantization int8"):
        for_device(CPU, torch.float32, KernelOptions("int8"))


def test_a_type_that_nobody_packs_is_computed_all_the_same():
    x, weight = torch.randn(3, 16, dtype=torch.float64), torch.randn(5, 16, dtype=torch.float64)
    packed = for_device(CPU).pack_linear([weight], None)
    assert isinstance(packed, PlainLinear)
    assert torch.allclose(packed(x), x @ weight.T)


def test_float16_is_computed_as_float32_on_a_cpu_and_eagerly_where_it_is_asked_for():
    assert preferred_dtype(CPU, torch.float16) == torch.float32
    assert preferred_dtype(CPU, torch.float32) == torch.float32
    assert preferred_dtype(torch.device("cuda"), torch.float16) == torch.float16
    assert isinstance(for_device(CPU, torch.float16), EagerCpuKernels)
