"""Arithmetic that several kernels share, in forms that every architecture and the interpreter compute alike.

Device functions only; each is inlined. Must not know tensors' layouts.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
E4M3_MAX = tl.constexpr(448.0)


@triton.jit
def soft_capped(x, cap):
    """cap * tanh(x / cap) (Gemma 2), by exp: tanh(y) = 1 - 2 / (exp(2 y) + 1), right at both ends of the range."""
    return cap * (1.0 - 2.0 / (tl.exp2((x / cap) * (2.0 * LOG2_E)) + 1.0))


@triton.jit
def e4m3_to_float16(byte):
    """The float16 values of e4m3 codes in uint8: exact for all 254 finite codes, subnormal ones too.

    e4m3 has float16's fields, less three bits of mantissa and one of exponent; shifted into place, its exponent is
    taken with float16's bias 15 instead of 7, so that the value is 2^8 times too small. A100 and A10G have no e4m3.
    """
    wide = byte.to(tl.uint16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return bits.to(tl.float16, bitcast=True) * 256.0


@triton.jit
def float32_to_e4m3(x):
    """The e4m3 codes, uint8, of float32 values: to the nearest, ties to even, saturating at 448; NaN stays NaN.

    From 2^-6 up, the 20 low bits of the mantissa are rounded away in the integer; below, adding 2^14 lets the adder
    round to multiples of 2^-9, e4m3's subnormal step, and leaves that multiple in the low bits.
    """
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = tl.abs(x)
    bounded = tl.minimum(size, E4M3_MAX)
    raw = bounded.to(tl.uint32, bitcast=True)
    normal = ((raw + 0x7FFFF + ((raw >> 20) & 1)) >> 20) - 960
    subnormal = (bounded + 16384.0).to(tl.uint32, bitcast=True) & 0xF
    code = tl.where(bounded < 0.015625, subnormal, normal)
    code = tl.where(size != size, 0x7F, code)
    return (sign | code).to(tl.uint8)
