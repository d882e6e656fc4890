/* Linear layers: y [M, N] = x [M, K] w^T + bias, for weights packed once in panels of 32 output columns.
 *
 * A panel is read once per call, in order, and multiplies up to MAX_ROWS rows from registers: with few rows the time is
 * that of reading the weights, with many that of the multiplications. An element of y is one sum over K in one order,
 * whatever M is and wherever its row stands, so a row's result never depends on its company.
 *
 *   kind  panel                          x            sum
 *   F32   [K][32] float                  float        float
 *   BF16  [K/2][32][2] bfloat16          bfloat16     float
 *   INT8  [K/4][32][4] int8              uint8, K/4   int32, exact
 *   INT4  [K/8][2][16] words of 8 nibbles  bfloat16     float per group of K, then scaled
 */
#include "common.h"

#define CHUNK_STEPS 128   /* 16 KiB of a panel: half of a first-level cache */
#define MAX_CHUNKED_TILES 4
#define FETCH_AHEAD 4096  /* bytes */
#define NUM_VECTORS (COLUMNS / LANES)
#define STEP_BYTES (4 * COLUMNS)

enum { F32, BF16, INT8, INT4 };

typedef struct {
    const char *x;
    size_t x_stride; /* bytes between rows */
    const char *panel;
    const float *scales; /* INT4: [K / group][32] of this panel */
    int num_steps;       /* F32: K; BF16: K / 2; INT8: K / 4; INT4: K / 8 */
    int group_steps;     /* INT4: steps per group */
    int is_continued;    /* the sums so far are in `out` */
    const char *ahead;   /* what to fetch meanwhile, `ahead_stride` bytes per step */
    size_t ahead_stride;
} Tile;

#if defined(__AVX512BW__) && defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define HAS_QUANTIZED 1
/* bfloat16 of q - 8 for q in 0..15, for lookups by 16-bit index. */
static const bf16 NIBBLES[32] = {0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80, 0x0000, 0x3F80, 0x4000,
                                 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040,
                                 0xC000, 0xBF80, 0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0};
#endif

INLINE int32_t word_at(const char *p, int i) {
    int32_t w;
    memcpy(&w, p + 4 * (size_t)i, 4);
    return w;
}

INLINE void run_tile(const int kind, const int rows, const Tile *t, float *out) {
    vf acc[MAX_ROWS][NUM_VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < NUM_VECTORS; v++)
            acc[r][v] = t->is_continued ? load_f32(out + r * COLUMNS + LANES * v) : (vf){0};
    const char *panel = t->panel, *ahead = t->ahead;
    for (int k = 0; k < t->num_steps; k++, panel += STEP_BYTES, ahead += t->ahead_stride) {
        __builtin_prefetch(ahead);
        __builtin_prefetch(ahead + 64);
        for (int r = 0; r < rows; r++) {
            int32_t word = word_at(t->x + r * t->x_stride, k);
            for (int v = 0; v < NUM_VECTORS; v++) {
                if (kind == F32) {
                    float f;
                    memcpy(&f, &word, 4);
                    acc[r][v] += splat(f) * load_f32((const float *)panel + LANES * v);
                } else if (kind == BF16) {
                    acc[r][v] = dot_pairs(acc[r][v], word - (vi){0}, load_i32(panel + sizeof(vi) * v));
                } else {
#if defined(HAS_QUANTIZED)
                    acc[r][v] = (vf)_mm512_dpbusd_epi32((__m512i)acc[r][v], _mm512_set1_epi32(word),
                                                        (__m512i)load_i32(panel + sizeof(vi) * v));
#endif
                }
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < NUM_VECTORS; v++) store_f32(out + r * COLUMNS + LANES * v, acc[r][v]);
}

#if defined(HAS_QUANTIZED)
/* Nibble i and nibble i + 4 of a word are the pair (2 i, 2 i + 1) of its eight columns of K. */
INLINE void run_tile_int4(const int rows, const Tile *t, float *out) {
    vf acc[MAX_ROWS / 2][NUM_VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < NUM_VECTORS; v++) acc[r][v] = (vf){0};
    const __m512i table = _mm512_loadu_si512(NIBBLES), mask = _mm512_set1_epi32(0x000F000F);
    const char *panel = t->panel;
    for (int start = 0, g = 0; start < t->num_steps; start += t->group_steps, g++) {
        vf part[MAX_ROWS / 2][NUM_VECTORS];
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < NUM_VECTORS; v++) part[r][v] = (vf){0};
        for (int k = start; k < start + t->group_steps; k++, panel += 2 * sizeof(vi)) {
            __builtin_prefetch(panel + FETCH_AHEAD);
            __builtin_prefetch(panel + FETCH_AHEAD + 64);
            __m512i words[NUM_VECTORS] = {_mm512_loadu_si512(panel), _mm512_loadu_si512(panel + 64)};
            for (int i = 0; i < 4; i++) {
                vi w[NUM_VECTORS];
                for (int v = 0; v < NUM_VECTORS; v++)
                    w[v] = (vi)_mm512_permutexvar_epi16(_mm512_and_si512(_mm512_srli_epi32(words[v], 4 * i), mask), table);
                for (int r = 0; r < rows; r++) {
                    int32_t pair = word_at(t->x + r * t->x_stride, 4 * k + i);
                    for (int v = 0; v < NUM_VECTORS; v++) part[r][v] = dot_pairs(part[r][v], pair - (vi){0}, w[v]);
                }
            }
        }
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < NUM_VECTORS; v++)
                acc[r][v] += part[r][v] * load_f32(t->scales + (size_t)g * COLUMNS + LANES * v);
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < NUM_VECTORS; v++) store_f32(out + r * COLUMNS + LANES * v, acc[r][v]);
}
#endif

typedef void TileFunction(const Tile *, float *);
#define TILE(kind, rows) \
    static void __attribute__((noinline)) tile_##kind##_##rows(const Tile *t, float *out) { run_tile(kind, rows, t, out); }
#define TILE4(rows) \
    static void __attribute__((noinline)) tile_INT4_##rows(const Tile *t, float *out) { run_tile_int4(rows, t, out); }
#if MAX_ROWS == 12
#define TILES(kind) TILE(kind, 1) TILE(kind, 2) TILE(kind, 3) TILE(kind, 4) TILE(kind, 5) TILE(kind, 6) TILE(kind, 7) \
        TILE(kind, 8) TILE(kind, 9) TILE(kind, 10) TILE(kind, 11) TILE(kind, 12)
#define TABLE(k) {0, tile_##k##_1, tile_##k##_2, tile_##k##_3, tile_##k##_4, tile_##k##_5, tile_##k##_6, tile_##k##_7, \
        tile_##k##_8, tile_##k##_9, tile_##k##_10, tile_##k##_11, tile_##k##_12}
#else
#define TILES(kind) TILE(kind, 1) TILE(kind, 2) TILE(kind, 3)
#define TABLE(k) {0, tile_##k##_1, tile_##k##_2, tile_##k##_3}
#endif
TILES(F32)
TILES(BF16)
#if defined(HAS_QUANTIZED)
TILES(INT8)
TILE4(1) TILE4(2) TILE4(3) TILE4(4) TILE4(5) TILE4(6)
#endif

static TileFunction *const TABLES[4][13] = {
    TABLE(F32), TABLE(BF16),
#if defined(HAS_QUANTIZED)
    TABLE(INT8),
    {0, tile_INT4_1, tile_INT4_2, tile_INT4_3, tile_INT4_4, tile_INT4_5, tile_INT4_6},
#endif
};

EXPORT int has_quantized(void) {
#if defined(HAS_QUANTIZED)
    return 1;
#else
    return 0;
#endif
}

typedef struct {
    int kind, num_columns, num_steps, group_steps;
    size_t panel_bytes;
    const char *panels;
    const float *scales;        /* INT4: [panels][groups][32]; INT8: [N], the scale of each column */
    const int32_t *offsets;     /* INT8: [N], 128 times the sum of each column's weights */
    const float *bias;          /* [N] or NULL */
} Weights;

typedef struct {
    const Weights *w;
    const char *x;
    size_t x_stride;
    const float *row_scales;
    void *y;
    int num_rows;
} Product;

/* Tiles of nearly equal height: 13 rows are 7 and 6, not 12 and 1. */
INLINE int first_row(const Product *product, int tile, int num_tiles) {
    return (int)((long)product->num_rows * tile / num_tiles);
}

/* A tile's sums to values of y, [rows, width]. */
INLINE void finish_tile(const Product *product, const float *out, int start, int rows, int first, int width) {
    const Weights *w = product->w;
    /* Per column, padded to the panel's width: what lies past `width` is computed and not stored. */
    float scales[COLUMNS] = {0}, bias[COLUMNS] = {0};
    int32_t offsets[COLUMNS] = {0};
    if (w->kind == INT8) memcpy(scales, w->scales + first, sizeof(float) * width);
    if (w->kind == INT8) memcpy(offsets, w->offsets + first, sizeof(int32_t) * width);
    if (w->bias) memcpy(bias, w->bias + first, sizeof(float) * width);
    for (int r = 0; r < rows; r++) {
        const size_t at = (size_t)(start + r) * w->num_columns + first;
        bf16 narrowed[COLUMNS];
        float row[COLUMNS];
        for (int v = 0; v < NUM_VECTORS; v++) {
            vf y = load_f32(out + r * COLUMNS + LANES * v);
            if (w->kind == INT8) {
                const vf sums = __builtin_convertvector((vi)y - load_i32(offsets + LANES * v), vf);
                y = sums * (load_f32(scales + LANES * v) * splat(product->row_scales[start + r]));
            }
            if (w->bias) y += load_f32(bias + LANES * v);
            store_f32(row + LANES * v, y);
            store_bf16(narrowed + LANES * v, y);
        }
        if (w->kind == F32)
            memcpy((float *)product->y + at, row, sizeof(float) * width);
        else
            memcpy((bf16 *)product->y + at, narrowed, sizeof(bf16) * width);
    }
}

/* One panel times all rows. A few tiles take turns on each chunk of the panel, so that it comes from memory while they
 * compute, each fetching its share of the next; with many tiles the panel is in the cache for all but the first. */
static void multiply_panel(void *context, int p) {
    const Product *product = context;
    const Weights *w = product->w;
    const int max_rows = w->kind == INT4 ? MAX_ROWS / 2 : MAX_ROWS;
    const int num_groups = w->kind == INT4 ? w->num_steps / w->group_steps : 0;
    const int num_tiles = (product->num_rows + max_rows - 1) / max_rows;
    const int first = p * COLUMNS;
    const int width = w->num_columns - first < COLUMNS ? w->num_columns - first : COLUMNS;
    const char *panel = w->panels + p * w->panel_bytes;
    const int is_chunked = w->kind != INT4 && num_tiles > 1 && num_tiles <= MAX_CHUNKED_TILES;
    const int at_once = is_chunked ? num_tiles : 1, chunk_steps = is_chunked ? CHUNK_STEPS : w->num_steps;
    float out[MAX_CHUNKED_TILES][MAX_ROWS * COLUMNS] __attribute__((aligned(64)));
    for (int turn = 0; turn < num_tiles; turn += at_once) {
        for (int step = 0; step < w->num_steps; step += chunk_steps) {
            const int steps = w->num_steps - step < chunk_steps ? w->num_steps - step : chunk_steps;
            const char *chunk = panel + (size_t)step * STEP_BYTES;
            for (int tile = 0; tile < at_once; tile++) {
                const int start = first_row(product, turn + tile, num_tiles);
                const Tile t = {.x = product->x + start * product->x_stride + 4 * (size_t)step,
                                .x_stride = product->x_stride,
                                .panel = chunk,
                                .scales = w->scales + (size_t)p * num_groups * COLUMNS,
                                .num_steps = steps,
                                .group_steps = w->group_steps,
                                .is_continued = step > 0,
                                .ahead = chunk + (is_chunked ? STEP_BYTES * (size_t)(steps + steps * tile / num_tiles) : FETCH_AHEAD),
                                .ahead_stride = STEP_BYTES / at_once};
                TABLES[w->kind][first_row(product, turn + tile + 1, num_tiles) - start](&t, out[tile]);
            }
        }
        for (int tile = 0; tile < at_once; tile++) {
            const int start = first_row(product, turn + tile, num_tiles);
            finish_tile(product, out[tile], start, first_row(product, turn + tile + 1, num_tiles) - start, first, width);
        }
    }
}

/* x: [M] rows of x_stride bytes. row_scales: INT8, [M]. y: [M, N] of float (F32) or bfloat16 (all others). */
EXPORT void linear(const Weights *w, const char *x, size_t x_stride, const float *row_scales, void *y, int num_rows) {
    Product product = {w, x, x_stride, row_scales, y, num_rows};
    const int num_panels = (w->num_columns + COLUMNS - 1) / COLUMNS;
    parallel_for(num_panels, w->panel_bytes * num_panels > PARALLEL_ELEMENTS, multiply_panel, &product);
}

typedef struct {
    const bf16 *x;
    uint8_t *q;
    float *scales;
    int width;
} Quantization;

static void quantize_row(void *context, int r) {
    typedef uint8_t vb __attribute__((vector_size(LANES)));
    const Quantization *z = context;
    const bf16 *row = z->x + (size_t)r * z->width;
    vf most = (vf){0};
    for (int i = 0; i < z->width; i += LANES) most = vmax(most, (vf)((vi)load_bf16(row + i) & 0x7FFFFFFF));
    const float amax = lanes_max(most);
    const float inverse = amax > 0.0f ? 127.0f / amax : 0.0f;
    z->scales[r] = amax / 127.0f;
    for (int i = 0; i < z->width; i += LANES) {
        /* 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits. */
        vi rounded = (vi)(load_bf16(row + i) * splat(inverse) + splat(12582912.0f)) - (vi)splat(12582912.0f);
        vb bytes = __builtin_convertvector((vu)(rounded + 128), vb);
        memcpy(z->q + (size_t)r * z->width + i, &bytes, sizeof bytes);
    }
}

/* Per row: scale = max |x| / 127 and uint8 of round(x / scale) + 128. x [M, K] bfloat16, q [M, K], scales [M]. */
EXPORT void quantize_rows(const bf16 *x, uint8_t *q, float *scales, int num_rows, int width) {
    Quantization quantization = {x, q, scales, width};
    parallel_for(num_rows, (long)num_rows * width > PARALLEL_ELEMENTS, quantize_row, &quantization);
}
