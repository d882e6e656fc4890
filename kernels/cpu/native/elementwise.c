/* Norms, activation, and rotation with the cache write; each row alone, float inside, one rounding at the end.
 *
 * `is_bf16` chooses the element type of every tensor of a call: bfloat16 or float. See kernels/reference.py.
 */
#include "common.h"

INLINE vf load(const int is_bf16, const void *p, size_t i) {
    return is_bf16 ? load_bf16((const bf16 *)p + i) : load_f32((const float *)p + i);
}
INLINE void store(const int is_bf16, void *p, size_t i, vf v) {
    if (is_bf16)
        store_bf16((bf16 *)p + i, v);
    else
        store_f32((float *)p + i, v);
}
INLINE float get(const int is_bf16, const void *p, size_t i) {
    return is_bf16 ? widen(((const bf16 *)p)[i]) : ((const float *)p)[i];
}
INLINE void put(const int is_bf16, void *p, size_t i, float x) {
    if (is_bf16)
        ((bf16 *)p)[i] = narrow(x);
    else
        ((float *)p)[i] = x;
}

/* 1 / sqrt(mean(x^2) + eps) of `width` elements at `p`; lane i sums elements i, i + 16, ... */
INLINE float inverse_rms(const int is_bf16, const void *p, size_t at, int width, float eps) {
    vf sum = (vf){0};
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        vf v = load(is_bf16, p, at + i);
        sum += v * v;
    }
    for (int lane = 0; i < width; i++, lane++) {
        float x = get(is_bf16, p, at + i);
        sum[lane] += x * x;
    }
    return 1.0f / sqrtf(lanes_sum(sum) / (float)width + eps);
}

INLINE void scale_row(const int is_bf16, const void *x, size_t at, const void *w, void *y, size_t to, int width, float scale) {
    int i = 0;
    for (; i + LANES <= width; i += LANES)
        store(is_bf16, y, to + i, load(is_bf16, x, at + i) * splat(scale) * load(is_bf16, w, i));
    for (; i < width; i++) put(is_bf16, y, to + i, get(is_bf16, x, at + i) * scale * get(is_bf16, w, i));
}

typedef struct {
    int is_bf16, width;
    float eps;
    void *residual;
    const void *x, *w;
    void *y;
} Norm;

INLINE void norm_row(const int is_bf16, const Norm *n, int r) {
    const int width = n->width;
    const size_t at = (size_t)r * width;
    const void *from = n->x;
    if (n->residual) {
        int i = 0;
        for (; i + LANES <= width; i += LANES)
            store(is_bf16, n->residual, at + i, load(is_bf16, n->residual, at + i) + load(is_bf16, n->x, at + i));
        for (; i < width; i++)
            put(is_bf16, n->residual, at + i, get(is_bf16, n->residual, at + i) + get(is_bf16, n->x, at + i));
        from = n->residual;
    }
    scale_row(is_bf16, from, at, n->w, n->y, at, width, inverse_rms(is_bf16, from, at, width, n->eps));
}

static void norm_task(void *context, int r) {
    const Norm *n = context;
    if (n->is_bf16)
        norm_row(1, n, r);
    else
        norm_row(0, n, r);
}

/* y = norm(x) * w; with `residual`, residual += x first and y is the norm of that. All [num_rows, width]. */
EXPORT void rms_norm(int is_bf16, void *residual, const void *x, const void *w, void *y, int num_rows, int width, float eps) {
    Norm norm = {is_bf16, width, eps, residual, x, w, y};
    parallel_for(num_rows, (long)num_rows * width > PARALLEL_ELEMENTS, norm_task, &norm);
}

/* 1 / (1 + e^-x), from e^-|x|, whose exponent is never above 0. */
INLINE vf sigmoid(vf x) {
    vf magnitude = (vf)((vi)x & 0x7FFFFFFF);
    vf e = exp2_nonpositive(magnitude * splat(-1.44269504f));
    vf positive = splat(1.0f) / (splat(1.0f) + e);
    vi negative = x < splat(0.0f);
    return (vf)(((vi)(splat(1.0f) - positive) & negative) | ((vi)positive & ~negative));
}

typedef struct {
    int is_bf16, width;
    const void *gate_up;
    void *y;
} Silu;

INLINE void silu_row(const int is_bf16, const Silu *s, int r) {
    const int width = s->width;
    const size_t gate = (size_t)r * 2 * width, up = gate + width, to = (size_t)r * width;
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        vf g = load(is_bf16, s->gate_up, gate + i);
        store(is_bf16, s->y, to + i, g * sigmoid(g) * load(is_bf16, s->gate_up, up + i));
    }
    for (; i < width; i++) {
        vf g = splat(get(is_bf16, s->gate_up, gate + i));
        put(is_bf16, s->y, to + i, (g * sigmoid(g))[0] * get(is_bf16, s->gate_up, up + i));
    }
}

static void silu_task(void *context, int r) {
    const Silu *s = context;
    if (s->is_bf16)
        silu_row(1, s, r);
    else
        silu_row(0, s, r);
}

/* gate_up [num_rows, 2 * width] to y [num_rows, width]. */
EXPORT void silu_and_mul(int is_bf16, const void *gate_up, void *y, int num_rows, int width) {
    Silu silu = {is_bf16, width, gate_up, y};
    parallel_for(num_rows, (long)num_rows * width > PARALLEL_ELEMENTS, silu_task, &silu);
}

typedef struct {
    int num_heads, num_kv_heads, head_dim, padded_dim, block_size;
    float eps;
    const void *query_norm, *key_norm; /* [head_dim], or NULL for no norm */
} Heads;

INLINE void rotate_head(const int is_bf16, const Heads *h, void *qkv, size_t at, const void *norm, const float *cos,
                        const float *sin) {
    const int half = h->head_dim / 2;
    const float scale = norm ? inverse_rms(is_bf16, qkv, at, h->head_dim, h->eps) : 1.0f;
    int i = 0;
    for (; i + LANES <= half; i += LANES) {
        vf a = load(is_bf16, qkv, at + i), b = load(is_bf16, qkv, at + half + i);
        if (norm) {
            a *= splat(scale) * load(is_bf16, norm, i);
            b *= splat(scale) * load(is_bf16, norm, half + i);
        }
        const vf c = load_f32(cos + i), s = load_f32(sin + i);
        store(is_bf16, qkv, at + i, a * c - b * s);
        store(is_bf16, qkv, at + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        float a = get(is_bf16, qkv, at + i), b = get(is_bf16, qkv, at + half + i);
        if (norm) {
            a *= scale * get(is_bf16, norm, i);
            b *= scale * get(is_bf16, norm, half + i);
        }
        put(is_bf16, qkv, at + i, a * cos[i] - b * sin[i]);
        put(is_bf16, qkv, at + half + i, b * cos[i] + a * sin[i]);
    }
}

/* The layouts of attention.c: keys [block][head][dim / p][token][p] and values [block][head][token / p][dim][p], with p
 * elements to a 32-bit word. */
INLINE void write_token(const int is_bf16, const Heads *h, const void *qkv, size_t key_at, size_t value_at, void *keys,
                        void *values, int64_t slot, int head) {
    const int p = is_bf16 ? 2 : 1;
    const int64_t block = slot / h->block_size, token = slot % h->block_size;
    const size_t base = ((size_t)block * h->num_kv_heads + head) * h->block_size * h->padded_dim;
    uint32_t *key_words = (uint32_t *)keys + base / p + token;
    const char *key = (const char *)qkv + (is_bf16 ? 2 : 4) * key_at;
    for (int i = 0; i < h->head_dim / p; i++) memcpy(key_words + (size_t)i * h->block_size, key + 4 * (size_t)i, 4);
    const size_t to = base + (size_t)(token / p) * h->padded_dim * p + token % p;
    for (int i = 0; i < h->head_dim; i++) {
        if (is_bf16)
            ((bf16 *)values)[to + 2 * (size_t)i] = ((const bf16 *)qkv)[value_at + i];
        else
            ((float *)values)[to + i] = ((const float *)qkv)[value_at + i];
    }
}

typedef struct {
    int is_bf16;
    const Heads *heads;
    void *qkv;
    const float *cos, *sin;
    void *keys, *values;
    const int64_t *slots;
} Rotation;

INLINE void rotate_token(const int is_bf16, const Rotation *r, int t) {
    const Heads *h = r->heads;
    const int half = h->head_dim / 2;
    const size_t row = (size_t)t * (h->num_heads + 2 * h->num_kv_heads) * h->head_dim;
    for (int i = 0; i < h->num_heads + h->num_kv_heads; i++)
        rotate_head(is_bf16, h, r->qkv, row + (size_t)i * h->head_dim, i < h->num_heads ? h->query_norm : h->key_norm,
                    r->cos + (size_t)t * half, r->sin + (size_t)t * half);
    if (r->slots[t] < 0) return; /* padding */
    for (int i = 0; i < h->num_kv_heads; i++) {
        const size_t key = row + (size_t)(h->num_heads + i) * h->head_dim;
        write_token(is_bf16, h, r->qkv, key, key + (size_t)h->num_kv_heads * h->head_dim, r->keys, r->values, r->slots[t], i);
    }
}

static void rotate_task(void *context, int t) {
    const Rotation *r = context;
    if (r->is_bf16)
        rotate_token(1, r, t);
    else
        rotate_token(0, r, t);
}

/* qkv [num_tokens, (H + 2 Hkv) * D], changed in place; cos, sin [num_tokens, D / 2]; slots [num_tokens], -1 is padding. */
EXPORT void rotate_and_store(int is_bf16, const Heads *h, void *qkv, const float *cos, const float *sin, void *keys,
                             void *values, const int64_t *slots, int num_tokens) {
    Rotation rotation = {is_bf16, h, qkv, cos, sin, keys, values, slots};
    const long elements = (long)num_tokens * (h->num_heads + 2 * h->num_kv_heads) * h->head_dim;
    parallel_for(num_tokens, elements > PARALLEL_ELEMENTS, rotate_task, &rotation);
}
