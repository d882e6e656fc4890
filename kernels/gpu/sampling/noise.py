"""The random numbers of `reference.gumbel_noise` as device functions: pure functions of (seed, position, token id).

A draw is a race. With E = -log1p(-v) exponential, the argmax of scaled + Gumbel noise, which is scaled - log(E), is the
argmin of E * exp(-scaled), the token's time: one logarithm and one exponential instead of three functions. Must not
know tensors' layouts.
"""

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def fmix32(h):
    """`reference.fmix32` on uint32."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)


@triton.jit
def row_keys(seed, position):
    """`reference.row_keys` of one row: two uint32 from two int64."""
    a = fmix32(seed.to(tl.uint32) + 0x9E3779B9)
    a = fmix32(a ^ (seed >> 32).to(tl.uint32))
    k1 = fmix32(a ^ position.to(tl.uint32))
    k2 = fmix32((k1 + 0x9E3779B9) ^ (position >> 32).to(tl.uint32))
    return k1, k2


@triton.jit
def uniform(tokens, k1, k2):
    """v of int32 token ids, float32 in [2^-33, 1]; `exponential` bounds it."""
    h = fmix32(tokens.to(tl.uint32) ^ k1) + k2
    return (h.to(tl.float32) + 0.5) * 2.0**-32


@triton.jit
def exponential(v):
    """E = -log1p(-v), v at most 1 - 2^-24: float32 in [1.1e-10, 16.7], right to 4e-6 relatively: a score to 4e-6.

    By its series below 1/64, where 1 - v would lose digits. E is more than v, at any v.
    """
    v = tl.minimum(v, 1.0 - 2.0**-24)
    series = v * (1.0 + v * (0.5 + v * (0.3333333333333333 + v * 0.25)))
    return tl.where(v < 0.015625, series, tl.log2(1.0 - v) * -LN_2)
