/* Vectors of 16 lanes, bfloat16, and exp2 for the CPU kernels.
 *
 * Written with the compiler's vector extensions, so that one source serves AVX-512, AVX2 and Neon; the instructions that
 * only some CPUs have stand here alone, behind a macro. Compiled with -march=native on the machine that runs it.
 */
#pragma once

#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "pool.h"

#define LANES 16
#define COLUMNS 32 /* of a panel of packed weights; linear.py knows it too */
#define INLINE static inline __attribute__((always_inline))
/* Elements of work below which a second thread costs more to wake than it saves. */
#define PARALLEL_ELEMENTS 16384

typedef uint16_t bf16;
typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

#if defined(__AVX512F__)
#define MAX_ROWS 12 /* rows of a register tile: 12 x 2 accumulators of the 32 registers */
#else
#define MAX_ROWS 3
#endif

INLINE vf load_f32(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store_f32(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vi load_i32(const void *p) {
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE vf splat(float x) { return x - (vf){0}; }

INLINE float widen(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

/* Round to nearest, ties to even, as torch does; NaN stays NaN. */
INLINE bf16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return 0x7FC0;
    return (bf16)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

INLINE vf load_bf16(const bf16 *p) {
    vh v;
    memcpy(&v, p, sizeof v);
    return (vf)(__builtin_convertvector(v, vu) << 16);
}
INLINE void store_bf16(bf16 *p, vf v) {
#if defined(__AVX512BF16__)
    const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &half, sizeof half);
#else
    vu bits = (vu)v;
    vu rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    vu is_nan = (vu)(v != v);
    vh half = __builtin_convertvector((rounded & ~is_nan) | (0x7FC0 & is_nan), vh);
    memcpy(p, &half, sizeof half);
#endif
}

/* acc + a.even * b.even + a.odd * b.odd for pairs of bfloat16, one pair per 32-bit lane. */
INLINE vf dot_pairs(vf acc, vi a, vi b) {
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    vu ua = (vu)a, ub = (vu)b;
    acc += (vf)(ua << 16) * (vf)(ub << 16);
    return acc + (vf)(ua & 0xFFFF0000u) * (vf)(ub & 0xFFFF0000u);
#endif
}

INLINE vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    vi bigger = a > b;
    return (vf)(((vi)a & bigger) | ((vi)b & ~bigger));
#endif
}

/* Lanes in a fixed tree, so that a sum never depends on how the compiler orders it. */
INLINE vf swap_halves(vf v) { return __builtin_shuffle(v, (vi){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}); }
INLINE vf swap_quarters(vf v) { return __builtin_shuffle(v, (vi){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}); }
INLINE vf swap_pairs(vf v) { return __builtin_shuffle(v, (vi){2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13}); }
INLINE vf swap_lanes(vf v) { return __builtin_shuffle(v, (vi){1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14}); }

INLINE float lanes_sum(vf v) {
    v += swap_halves(v);
    v += swap_quarters(v);
    v += swap_pairs(v);
    return (v + swap_lanes(v))[0];
}

INLINE float lanes_max(vf v) {
    v = vmax(v, swap_halves(v));
    v = vmax(v, swap_quarters(v));
    v = vmax(v, swap_pairs(v));
    return vmax(v, swap_lanes(v))[0];
}

/* 2^x for x <= 0, relative error 2e-7; exactly 0 below -126, -inf among them. The polynomial is Taylor's for 2^f on
 * [-1/2, 1/2], whose remainder is 1.2e-7. */
INLINE vf exp2_nonpositive(vf x) {
    vi alive = x >= splat(-126.0f);
    vf clamped = vmax(x, splat(-126.0f));
    vf shifted = clamped + splat(12582912.0f); /* 1.5 * 2^23: the sum's low bits are round(x) */
    vf f = clamped - (shifted - splat(12582912.0f));
    vf p = splat(1.5403530e-4f);
    p = p * f + splat(1.3333558e-3f);
    p = p * f + splat(9.6181291e-3f);
    p = p * f + splat(5.5504109e-2f);
    p = p * f + splat(2.4022651e-1f);
    p = p * f + splat(6.9314718e-1f);
    p = p * f + splat(1.0f);
    vi exponent = ((vi)shifted - (vi)splat(12582912.0f)) << 23;
    return (vf)(((vi)p + exponent) & alive);
}
