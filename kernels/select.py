"""The one place where the device chooses the kernels, once, at start. Must not know models or the engine."""

import dataclasses
from typing import Literal

import torch

from kernels.cpu import CpuKernels, EagerCpuKernels, computes_well_in_bfloat16, has_matrix_unit, load_native
from kernels.interface import Kernels
from kernels.reference import ReferenceKernels

Quantization = Literal["none", "int8", "int4"]


@dataclasses.dataclass(frozen=True)
class KernelOptions:
    """What the settings ask of the kernels.

    quantization: of linear layers' weights, on a CPU. deterministic: a row's result must not depend on the batch; None
    is wherever that costs nothing worth mentioning.
    """

    quantization: Quantization = "none"
    deterministic: bool | None = None


def preferred_dtype(device: torch.device, model_dtype: torch.dtype) -> torch.dtype:
    """`model_dtype` where the device computes in it well, else the type to convert the weights to.

    On a CPU that is bfloat16 where it has instructions for it; everything else, float16 too, is computed as float32.
    """
    if device.type != "cpu" or (model_dtype == torch.bfloat16 and computes_well_in_bfloat16()):
        return model_dtype
    return torch.float32


def for_device(
    device: torch.device, dtype: torch.dtype = torch.float32, options: KernelOptions | None = None
) -> Kernels:
    """The fastest complete set of kernels for `device`; the eager reference where it has no forms of its own.

    Raises ValueError, of one line, when the options ask for what this machine does not have.
    """
    options = options or KernelOptions()
    if device.type == "cuda":
        return _for_gpu(device, options)
    if device.type != "cpu":
        return ReferenceKernels()
    native = load_native() if dtype in (torch.float32, torch.bfloat16) else None
    if native is None:
        if options.quantization != "none" or options.deterministic:
            raise ValueError(
                "quantization and --deterministic need the compiled CPU kernels: a C compiler, and bfloat16"
            )
        return EagerCpuKernels()
    if options.quantization != "none" and not (native.has_quantized and dtype == torch.bfloat16):
        raise ValueError(
            f"--quantization {options.quantization} needs --dtype bfloat16 and a CPU with AVX512-VNNI and AVX512-BF16"
        )
    # A matrix unit (AMX) is several times faster with many rows than our kernels, which do not use it yet.
    use_onednn = not options.deterministic and has_matrix_unit() and options.quantization == "none"
    return CpuKernels(native, quantization=options.quantization, use_onednn=use_onednn)


def _for_gpu(device: torch.device, options: KernelOptions) -> Kernels:
    if options.quantization != "none":
        raise ValueError(f"--quantization {options.quantization} is for linear layers on a CPU")
    if options.deterministic:
        raise ValueError("--deterministic is not offered on a GPU: cuBLAS chooses its product by the number of rows")
    # Triton is there only where a GPU is; importing it takes a second.
    from kernels.gpu.hardware import hardware_of
    from kernels.gpu.kernels import TritonKernels

    return TritonKernels(hardware_of(device))
