"""Linear layers on the CPU, with weights reordered once for oneDNN.

A plain `F.linear` reorders the weight at every call, which costs up to three times the product itself at one token;
one packing serves every number of tokens (docs/decisions/0005-cpu-linear-and-attention.md). Must not know which
layer it is.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.interface import PackedLinear


class OneDnnLinear:
    """A linear layer whose weight only exists in oneDNN's blocked order."""

    __slots__ = ("_bias", "_packed", "_run")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
        self._bias = bias
        self._run = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        """See `reference.linear`."""
        y: Tensor = self._run(x, self._packed, self._bias, "none", [], "")
        return y


class PlainLinear:
    """A linear layer on the weight as it is, for types and builds that oneDNN does not serve."""

    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """See `reference.linear`."""
        return F.linear(x, self._weight, self._bias)


def pack(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """weight [out, in] in the fastest form that this build has for its dtype. See `reference.linear`."""
    return OneDnnLinear(weight, bias) if _onednn_packs(weight.dtype) else PlainLinear(weight, bias)


def _onednn_packs(dtype: torch.dtype) -> bool:
    if not _has_onednn() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _has_onednn() -> bool:
    # torch's function has no annotations; read as a value it needs no ignore that other torch versions find unused.
    is_available: Callable[[], bool] = torch.backends.mkldnn.is_available
    return is_available()


def computes_well_in_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX, Arm's BF16), not by conversion."""
    if not _has_onednn() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if torch.backends.cpu.get_cpu_capability().startswith(("AVX", "DEFAULT", "NO AVX")):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return True  # on Arm, oneDNN's own check already asks for the instructions
