"""Triton's interpreter, made right for bfloat16; import it before any kernel.

The interpreter keeps bfloat16 as uint16 and multiplies those integers in `tl.dot`, and cuts float32 off where the
hardware rounds to nearest (triton 3.6 to 3.9; upstream calls bfloat16 unsupported there). Elementwise arithmetic on
bfloat16 stays wrong: kernels go to float32 right after a load.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def _as_float32(handle: Any) -> Any:
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


def _to_bfloat16(values: Any) -> Any:
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def install() -> None:
    """Mend the interpreter, once per process."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "is_mended", False):
        return
    builder.is_mended = True
    dot, cast = builder.create_dot, builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if tl.bfloat16 in (a.dtype.scalar, b.dtype.scalar):
            product = np.matmul(_as_float32(a), _as_float32(b), dtype=np.float32)
            return interpreter.TensorHandle(product + d.data, d.dtype.scalar)
        return dot(self, a, b, d, *rest)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if source == tl.bfloat16 and target.is_floating() and target != tl.bfloat16:
            wide = interpreter.TensorHandle(_as_float32(src), tl.float32)
            return wide if target == tl.float32 else cast(self, wide, dst_type)
        if target == tl.bfloat16 and source == tl.float32:
            return interpreter.TensorHandle(_to_bfloat16(src.data), tl.bfloat16)
        return cast(self, src, dst_type)

    builder.create_dot = create_dot
    builder.cast_impl = cast_impl
