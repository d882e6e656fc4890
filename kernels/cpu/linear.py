"""Linear layers on the CPU: weights packed once, in panels of 32 output columns (native/gemm.c) or for oneDNN.

Our own product reads a panel in order and keeps up to 12 rows in registers. With few rows that is the speed of memory,
where oneDNN's reached two thirds of it, and a row's result is the same in any batch
(docs/decisions/0006-compiled-cpu-kernels.md). oneDNN's form remains for CPUs with a matrix unit, and for machines
without a compiler. Must not know which layer it is.
"""

import ctypes
import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu.native import Native, Weights
from kernels.interface import PackedLinear

_COLUMNS = 32
_F32, _BF16, _INT8, _INT4 = range(4)
INT4_GROUP = 32


def pack_native(native: Native, weights: Sequence[Tensor], bias: Tensor | None) -> PackedLinear:
    """Float weights, float32 or bfloat16, as they are."""
    pairs = 2 if weights[0].dtype == torch.bfloat16 else 1
    rows, width = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    num_steps = -(-width // pairs)
    shape = (-(-rows // _COLUMNS), num_steps, _COLUMNS, pairs)
    panels = torch.empty(shape, dtype=weights[0].dtype)
    native.prefer_huge_pages(panels.data_ptr(), panels.nbytes)
    if rows % _COLUMNS:
        panels[-1].zero_()
    first = 0
    for weight in weights:
        rows_in = weight.contiguous()
        row_bytes = width * weight.element_size()
        native.pack_rows(rows_in.data_ptr(), row_bytes, weight.shape[0], first, panels.data_ptr(), num_steps)
        first += weight.shape[0]
    return NativeLinear(native, _Packed(_BF16 if pairs == 2 else _F32, rows, width, num_steps, panels, bias))


def pack_int8(native: Native, weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """One scale per output column, and at run time one per row of x: int8 times uint8, summed exactly in int32."""
    rows, width = weight.shape
    wide = F.pad(weight.float(), (0, -width % 16))
    scales = wide.abs().amax(1) / 127.0
    quantized = (wide / scales.clamp(min=1e-30)[:, None]).round_().to(torch.int8)
    # x is stored as uint8, 128 too high: what that adds to a column's sum is known beforehand.
    offsets = quantized.sum(1, dtype=torch.int32) * 128
    padded = F.pad(quantized, (0, 0, 0, -rows % _COLUMNS))
    panels = padded.view(-1, _COLUMNS, padded.shape[1] // 4, 4).transpose(1, 2).contiguous()
    packed = _Packed(_INT8, rows, width, padded.shape[1] // 4, panels, bias, scales=scales, offsets=offsets)
    return NativeLinear(native, packed)


def pack_int4(native: Native, weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """One scale per output column and group of 32 inputs; values -8 to 7, multiplied with x in bfloat16."""
    rows, width = weight.shape
    wide = F.pad(weight.float(), (0, -width % INT4_GROUP, 0, -rows % _COLUMNS))
    groups = wide.view(wide.shape[0], -1, INT4_GROUP)
    # The value that is farthest from 0 becomes -8, so that all sixteen steps are used.
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scales = extreme / -8.0
    steps = (groups / torch.where(scales == 0, 1.0, scales)).round_().clamp_(-8, 7).add_(8).to(torch.int32)
    # A word holds eight inputs of one column: nibble i is input 2 i, nibble i + 4 is input 2 i + 1.
    words = steps.view(wide.shape[0], -1, 4, 2)
    shifts = torch.tensor([[0, 16], [4, 20], [8, 24], [12, 28]], dtype=torch.int32)
    packed_words = (words << shifts).sum((2, 3), dtype=torch.int64).to(torch.int32)
    panels = packed_words.view(-1, _COLUMNS, packed_words.shape[1]).transpose(1, 2).contiguous()
    panel_scales = scales[..., 0].view(-1, _COLUMNS, groups.shape[1]).transpose(1, 2).contiguous()
    return NativeLinear(native, _Packed(_INT4, rows, width, packed_words.shape[1], panels, bias, scales=panel_scales))


@dataclasses.dataclass(frozen=True, slots=True)
class _Packed:
    """What a `Weights` of gemm.c points at. in_features: without padding."""

    kind: int
    out_features: int
    in_features: int
    num_steps: int
    panels: Tensor
    bias: Tensor | None
    scales: Tensor | None = None
    offsets: Tensor | None = None


class NativeLinear:
    """A linear layer whose weight only exists in panels."""

    __slots__ = ("_address", "_kept", "_native", "_packed", "_width")

    def __init__(self, native: Native, packed: _Packed) -> None:
        self._native, self._packed = native, packed
        pointed = (packed.panels, packed.scales, packed.offsets, None if packed.bias is None else packed.bias.float())
        addresses = (None if tensor is None else tensor.data_ptr() for tensor in pointed)
        panel_bytes = packed.panels[0].nbytes
        weights = Weights(packed.kind, packed.out_features, packed.num_steps, INT4_GROUP // 8, panel_bytes, *addresses)
        self._kept = (pointed, weights)
        self._address = ctypes.addressof(weights)
        multiple = (1, 2, 16, INT4_GROUP)[packed.kind]
        self._width = -(-packed.in_features // multiple) * multiple

    def __call__(self, x: Tensor) -> Tensor:
        """See `reference.linear`."""
        packed = self._packed
        num_rows = x.shape[0]
        if x.shape[1] != self._width:
            x = F.pad(x, (0, self._width - x.shape[1]))
        elif x.stride(1) != 1 or packed.kind == _INT8:
            x = x.contiguous()
        y = torch.empty((num_rows, packed.out_features), dtype=x.dtype)
        if packed.kind != _INT8:
            stride = x.stride(0) * x.element_size()
            self._native.linear(self._address, x.data_ptr(), stride, None, y.data_ptr(), num_rows)
            return y
        steps = torch.empty((num_rows, self._width), dtype=torch.uint8)
        scales = torch.empty(num_rows)
        self._native.quantize_rows(x.data_ptr(), steps.data_ptr(), scales.data_ptr(), num_rows, self._width)
        self._native.linear(self._address, steps.data_ptr(), self._width, scales.data_ptr(), y.data_ptr(), num_rows)
        return y


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


def pack_onednn(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """weight [out, in] as oneDNN wants it, or as it is where oneDNN does not serve its dtype."""
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


def has_matrix_unit() -> bool:
    """Whether this CPU multiplies matrices in tiles (AMX)."""
    return _has_onednn() and bool(torch.cpu._is_amx_tile_supported())


def computes_well_in_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX, Arm's BF16), not by conversion."""
    if not _has_onednn() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if torch.backends.cpu.get_cpu_capability().startswith(("AVX", "DEFAULT", "NO AVX")):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return True  # on Arm, oneDNN's own check already asks for the instructions
