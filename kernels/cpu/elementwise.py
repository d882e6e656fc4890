"""Norms, activation, rotation and the cache write on the CPU: launchers of native/elementwise.c.

Each is the form of its namesake in `kernels.reference`. Must not know which layer calls it.
"""

import ctypes

import torch
from torch import Tensor

from kernels.cpu.attention import padded_dim
from kernels.cpu.native import Heads, Native
from kernels.interface import AttentionHeads


class Elementwise:
    """The operations, on contiguous tensors."""

    def __init__(self, native: Native) -> None:
        self._native = native

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `reference.rms_norm`; x [T, size]."""
        x = x.contiguous()
        y = torch.empty_like(x)
        self._run(None, x, weight, y, eps)
        return y

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `reference.add_rms_norm`; adds into `residual`, which saves an allocation per call."""
        x, residual = x.contiguous(), residual.contiguous()
        y = torch.empty_like(x)
        self._run(residual, x, weight, y, eps)
        return y, residual

    def _run(self, residual: Tensor | None, x: Tensor, weight: Tensor, y: Tensor, eps: float) -> None:
        width = x.shape[-1]
        self._native.rms_norm(
            x.dtype == torch.bfloat16,
            None if residual is None else residual.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            y.data_ptr(),
            x.numel() // width,
            width,
            eps,
        )

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """See `reference.silu_and_mul`."""
        gate_up = gate_up.contiguous()
        num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        y = torch.empty((num_rows, width), dtype=gate_up.dtype)
        is_bf16 = gate_up.dtype == torch.bfloat16
        self._native.silu_and_mul(is_bf16, gate_up.data_ptr(), y.data_ptr(), num_rows, width)
        return y


class RotateAndStore:
    """See `reference.rotate_and_store`; the caches have the layout of native/attention.c. Works in `qkv` itself."""

    def __init__(self, native: Native, heads: AttentionHeads) -> None:
        self._native, self._heads = native, heads
        norms = (heads.query_norm, heads.key_norm)
        self._norms = tuple(None if norm is None else norm.contiguous() for norm in norms)
        self._packed = Heads(
            heads.num_heads, heads.num_kv_heads, heads.head_dim, padded_dim(heads.head_dim), 0, heads.eps,
            *(None if norm is None else norm.data_ptr() for norm in self._norms),
        )  # fmt: skip
        self._address = ctypes.addressof(self._packed)

    def __call__(
        self, qkv: Tensor, tables: tuple[Tensor, Tensor], cache: tuple[Tensor, Tensor], slot_mapping: Tensor
    ) -> Tensor:
        """Queries [T, H, D], a view of `qkv`. Raises NotImplementedError for a rotation of part of each head."""
        qkv = qkv.contiguous()
        cos, sin = (table.contiguous() for table in tables)
        if 2 * cos.shape[-1] != self._heads.head_dim:
            raise NotImplementedError("the CPU's kernels rotate whole heads only")
        keys, values = cache
        self._packed.block_size = keys.shape[3]
        self._native.rotate_and_store(
            qkv.dtype == torch.bfloat16,
            self._address,
            qkv.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            slot_mapping.data_ptr(),
            qkv.shape[0],
        )
        heads = self._heads
        return qkv.view(qkv.shape[0], -1, heads.head_dim)[:, : heads.num_heads]
