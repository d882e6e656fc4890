"""Norms, activation, rotation and the cache write on the CPU: the fewest passes over memory that eager torch allows.

Each is the form of its namesake in `kernels.reference`. Must not know which layer calls it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`. `F.rms_norm` takes no weight that is broadcast, so such a one multiplies."""
    if weight.dim() == 1:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x, weight.shape[-1:], None, eps).mul_(weight)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`; adds into `residual`, which saves an allocation of the hidden state per call."""
    residual.add_(x)
    return F.rms_norm(residual, weight.shape, weight, eps), residual


def apply_rope(heads: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """See `reference.apply_rope`. In float32 for bfloat16 heads too: an angle off by a little moves attention."""
    cos, sin = tables
    wide = heads.float()
    return wide.mul(cos).addcmul_(torch.roll(wide, heads.shape[-1] // 2, -1), sin).to(heads.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See `reference.silu_and_mul`; silu is rounded to the dtype once more: no float32 copy of both halves."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    """See `reference.store_kv`. A batch on the CPU has no padding as a rule; then nothing is masked."""
    if slot_mapping.numel() and int(slot_mapping.min()) < 0:
        used = slot_mapping >= 0
        key, value, slot_mapping = key[used], value[used], slot_mapping[used]
    key_cache.view(-1, *key_cache.shape[2:]).index_copy_(0, slot_mapping, key)
    value_cache.view(-1, *value_cache.shape[2:]).index_copy_(0, slot_mapping, value)
