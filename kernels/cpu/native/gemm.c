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

#define COLUMNS 32
#define NUM_VECTORS (COLUMNS / LANES)

enum { F32, BF16, INT8, INT4 };

typedef struct {
    const char *x;
    size_t x_stride; /* bytes between rows */
    const char *panel;
    const float *scales; /* INT4: [K / group][32] of this panel */
    int num_steps;       /* F32: K; BF16: K / 2; INT8: K / 4; INT4: K / 8 */
    int group_steps;     /* INT4: steps per group */
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
        for (int v = 0; v < NUM_VECTORS; v++) acc[r][v] = (vf){0};
    const char *panel = t->panel;
    const size_t step_bytes = NUM_VECTORS * sizeof(vf);
    for (int k = 0; k < t->num_steps; k++, panel += step_bytes) {
        __builtin_prefetch(panel + 4096);
        __builtin_prefetch(panel + 4096 + 64);
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
            __builtin_prefetch(panel + 4096);
            __builtin_prefetch(panel + 4096 + 64);
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

/* A tile's sums to values of y, [rows, width]. */
INLINE void finish_tile(const Product *product, float *out, int start, int rows, int first, int width) {
    const Weights *w = product->w;
    for (int r = 0; r < rows; r++) {
        float *row = out + r * COLUMNS;
        if (w->kind == INT8) {
            int32_t sums[COLUMNS];
            memcpy(sums, row, sizeof sums);
            for (int c = 0; c < width; c++)
                row[c] = (float)(sums[c] - w->offsets[first + c]) * (w->scales[first + c] * product->row_scales[start + r]);
        }
        if (w->bias)
            for (int c = 0; c < width; c++) row[c] += w->bias[first + c];
        const size_t at = (size_t)(start + r) * w->num_columns + first;
        if (w->kind == F32)
            memcpy((float *)product->y + at, row, 4 * (size_t)width);
        else if (width == COLUMNS)
            for (int v = 0; v < NUM_VECTORS; v++)
                store_bf16((bf16 *)product->y + at + LANES * v, load_f32(row + LANES * v));
        else
            for (int c = 0; c < width; c++) ((bf16 *)product->y)[at + c] = narrow(row[c]);
    }
}

static void multiply_panel(void *context, int p) {
    const Product *product = context;
    const Weights *w = product->w;
    const int max_rows = w->kind == INT4 ? MAX_ROWS / 2 : MAX_ROWS;
    const int num_groups = w->kind == INT4 ? w->num_steps / w->group_steps : 0;
    const int num_tiles = (product->num_rows + max_rows - 1) / max_rows;
    const int first = p * COLUMNS;
    const int width = w->num_columns - first < COLUMNS ? w->num_columns - first : COLUMNS;
    float out[MAX_ROWS * COLUMNS] __attribute__((aligned(64)));
    for (int tile = 0; tile < num_tiles; tile++) {
        /* Tiles of nearly equal height: 13 rows are 7 and 6, not 12 and 1. */
        const int start = (int)((long)product->num_rows * tile / num_tiles);
        const int rows = (int)((long)product->num_rows * (tile + 1) / num_tiles) - start;
        const Tile t = {product->x + start * product->x_stride, product->x_stride, w->panels + p * w->panel_bytes,
                        w->scales + (size_t)p * num_groups * COLUMNS, w->num_steps, w->group_steps};
        TABLES[w->kind][rows](&t, out);
        finish_tile(product, out, start, rows, first, width);
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
