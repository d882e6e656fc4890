/* Paged attention: softmax(scale q k^T + causal mask) v, read from the blocks in place.
 *
 * The caches lie as the multiplications want them, so that nothing is gathered or transposed:
 *
 *   keys    [block][kv head][dim / p][token][p]     a word holds p neighbours of the head dimension of one token
 *   values  [block][kv head][token / p][dim][p]     a word holds one dimension of p neighbouring tokens
 *
 * with p = 2 for bfloat16 and 1 for float, and dim padded to a multiple of 16. A work item is the query rows, tokens times
 * the query heads that share a key/value head, of one sequence, one such head and one tile of tokens.
 *
 * Keys are taken in partitions of a fixed number of blocks, counted from the sequence's first; within a partition softmax
 * runs online, 128 keys at a time, and partitions merge in order. So a row's arithmetic is the same whether it is
 * computed alone, in a chunk or in a batch, and whether its partitions run on one thread or on many.
 */
#include "common.h"

#define MAX_TILE_ROWS 48
#define MAX_DIM 256
#define RUN_TOKENS 128 /* a block's greatest size */
#define PARTITION_TOKENS 512
#define TILE_ROWS (MAX_ROWS / 2) /* four sums per row and pair of vectors */

typedef struct {
    int num_heads, num_kv_heads, head_dim, padded_dim, block_size, num_tokens, num_seqs, max_blocks;
    size_t query_stride; /* elements between tokens */
    float scale;
    const void *query, *keys, *values;
    const int32_t *starts, *seq_lens, *tables;
    void *out; /* [num_tokens, num_heads * head_dim] */
} Attention;

/* Running softmax of a tile's rows: greatest score (in units of log2), sum of weights, weighted sum of values. */
typedef struct {
    float most[MAX_TILE_ROWS];
    float sum[MAX_TILE_ROWS];
    float out[MAX_TILE_ROWS * MAX_DIM] __attribute__((aligned(64)));
} State;

typedef struct {
    int seq, kv_head, first_token, num_tokens; /* tokens of the query, relative to the sequence's first one in the batch */
    int first_key_limit;                       /* keys that the first token sees */
} Item;

/* acc + word * packed: two bfloat16 products per lane, or one of float. */
INLINE vf add_product(const int is_bf16, vf acc, int32_t word, vi packed) {
    if (is_bf16) return dot_pairs(acc, word - (vi){0}, packed);
    float f;
    memcpy(&f, &word, 4);
    return acc + splat(f) * (vf)packed;
}

/* scores[rows][block_size] = q k^T: the register tile of a matrix product, keys as the packed operand. Even and odd words
 * have sums of their own, since with the two rows of a decode one chain of additions would wait for itself. */
INLINE void score_rows(const int is_bf16, const int rows, const char *query, size_t stride, const char *keys, int num_words,
                       int block_size, const char *ahead, float *scores) {
    for (int first = 0; first < block_size; first += 2 * LANES) {
        const int vectors = block_size - first > LANES ? 2 : 1;
        vf acc[TILE_ROWS][2][2];
        for (int r = 0; r < rows; r++) acc[r][0][0] = acc[r][0][1] = acc[r][1][0] = acc[r][1][1] = (vf){0};
        for (int k = 0; k < num_words; k += 2)
            for (int odd = 0; odd < 2; odd++) {
                const size_t line = 4 * ((size_t)(k + odd) * block_size + first);
                __builtin_prefetch(ahead + line);
                __builtin_prefetch(ahead + line + 64);
                const char *at = keys + 4 * ((size_t)(k + odd) * block_size + first);
                const vi k0 = load_i32(at), k1 = vectors == 2 ? load_i32(at + sizeof(vi)) : (vi){0};
                for (int r = 0; r < rows; r++) {
                    int32_t word;
                    memcpy(&word, query + r * stride + 4 * (size_t)(k + odd), 4);
                    acc[r][0][odd] = add_product(is_bf16, acc[r][0][odd], word, k0);
                    acc[r][1][odd] = add_product(is_bf16, acc[r][1][odd], word, k1);
                }
            }
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++)
                store_f32(scores + r * RUN_TOKENS + first + LANES * v, acc[r][v][0] + acc[r][v][1]);
    }
}

/* out[rows][16 * vectors] += weights[rows][num_words] v for the dimensions from `values` and `out` on. */
INLINE void add_values_of(const int is_bf16, const int rows, const int vectors, const int32_t *weights, const char *values,
                          int num_words, int padded_dim, const char *ahead, float *out) {
    vf acc[TILE_ROWS][8];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) acc[r][v] = load_f32(out + r * MAX_DIM + LANES * v);
    for (int k = 0; k < num_words; k++) {
        const char *at = values + 4 * (size_t)k * padded_dim;
        for (int v = 0; v < vectors; v++) {
            __builtin_prefetch(ahead + 4 * (size_t)k * padded_dim + sizeof(vi) * v);
            const vi value = load_i32(at + sizeof(vi) * v);
            for (int r = 0; r < rows; r++) acc[r][v] = add_product(is_bf16, acc[r][v], weights[r * RUN_TOKENS + k], value);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store_f32(out + r * MAX_DIM + LANES * v, acc[r][v]);
}

INLINE void add_values(const int is_bf16, const int rows, const int32_t *weights, const char *values, int num_words,
                       int padded_dim, const char *ahead, float *out) {
    const int wide = rows <= TILE_ROWS / 2 ? 8 : 4;
    int first = 0;
    for (; padded_dim - first >= wide * LANES; first += wide * LANES)
        add_values_of(is_bf16, rows, wide, weights, values + 4 * (size_t)first, num_words, padded_dim,
                      ahead + 4 * (size_t)first, out + first);
    for (; first < padded_dim; first += LANES)
        add_values_of(is_bf16, rows, 1, weights, values + 4 * (size_t)first, num_words, padded_dim,
                      ahead + 4 * (size_t)first, out + first);
}

/* Whole runs, so that runs too are counted from the sequence's first key. */
INLINE int blocks_per_partition(const Attention *a) {
    return PARTITION_TOKENS / RUN_TOKENS * (RUN_TOKENS / a->block_size);
}

/* One constant number of rows per function, so that the accumulators are registers. */
#define ROWS_CASE(n) \
    case n: \
        CALL(n); \
        break;
#if MAX_ROWS == 12
#define ROWS_SWITCH(rows) \
    switch (rows) { ROWS_CASE(1) ROWS_CASE(2) ROWS_CASE(3) ROWS_CASE(4) ROWS_CASE(5) ROWS_CASE(6) }
#else
#define ROWS_SWITCH(rows) \
    switch (rows) { ROWS_CASE(1) }
#endif

static void __attribute__((noinline)) scores_bf16(int rows, const char *q, size_t s, const char *k, int n, int b, const char *a, float *o) {
#define CALL(R) score_rows(1, R, q, s, k, n, b, a, o)
    ROWS_SWITCH(rows)
#undef CALL
}
static void __attribute__((noinline)) scores_f32(int rows, const char *q, size_t s, const char *k, int n, int b, const char *a, float *o) {
#define CALL(R) score_rows(0, R, q, s, k, n, b, a, o)
    ROWS_SWITCH(rows)
#undef CALL
}
static void __attribute__((noinline)) values_bf16(int rows, const int32_t *w, const char *v, int n, int d, const char *a, float *o) {
#define CALL(R) add_values(1, R, w, v, n, d, a, o)
    ROWS_SWITCH(rows)
#undef CALL
}
static void __attribute__((noinline)) values_f32(int rows, const int32_t *w, const char *v, int n, int d, const char *a, float *o) {
#define CALL(R) add_values(0, R, w, v, n, d, a, o)
    ROWS_SWITCH(rows)
#undef CALL
}

/* Scores of one row to weights: 2^(score - most), masked keys exactly 0; updates the row's state. */
INLINE void soften_row(const int is_bf16, const Attention *a, float *scores, int num_keys, int num_visible, State *state,
                       int row, int32_t *weights) {
    const vf unit = splat(a->scale * 1.44269504088896f);
    const vi lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vf most = splat(-INFINITY);
    for (int i = 0; i < num_keys; i += LANES) {
        vi visible = lanes + i < num_visible - (vi){0};
        vf s = load_f32(scores + i) * unit;
        s = (vf)(((vi)s & visible) | ((vi)splat(-INFINITY) & ~visible));
        store_f32(scores + i, s);
        most = vmax(most, s);
    }
    const float before = state->most[row];
    const float block_most = lanes_max(most);
    const float now = block_most > before ? block_most : before;
    if (now == -INFINITY) { /* nothing seen so far */
        memset(weights, 0, sizeof(float) * RUN_TOKENS);
        return;
    }
    vf sum = (vf){0};
    for (int i = 0; i < num_keys; i += LANES) {
        vf w = exp2_nonpositive(load_f32(scores + i) - splat(now));
        sum += w;
        if (is_bf16)
            store_bf16((bf16 *)weights + i, w);
        else
            store_f32((float *)weights + i, w);
    }
    const float shrink = exp2_nonpositive(splat(before - now))[0];
    state->most[row] = now;
    state->sum[row] = state->sum[row] * shrink + lanes_sum(sum);
    if (shrink != 1.0f) {
        float *out = state->out + row * MAX_DIM;
        for (int i = 0; i < a->padded_dim; i += LANES) store_f32(out + i, load_f32(out + i) * splat(shrink));
    }
}

static void clear(State *state, int rows, int padded_dim) {
    for (int r = 0; r < rows; r++) {
        state->most[r] = -INFINITY;
        state->sum[r] = 0.0f;
        memset(state->out + r * MAX_DIM, 0, 4 * (size_t)padded_dim);
    }
}

/* The rows of one item over the keys of one partition. */
/* Where one key/value head of a sequence's b-th block begins, in either cache. */
INLINE size_t block_at(const Attention *a, const Item *item, size_t block_bytes, int b) {
    const size_t block = (size_t)a->tables[(size_t)item->seq * a->max_blocks + b];
    return (block * a->num_kv_heads + item->kv_head) * block_bytes;
}

/* The rows of one item over the keys of one partition: in runs of blocks, each a softmax's worth of work. */
INLINE void attend_partition(const int is_bf16, const Attention *a, const Item *item, int partition, const char *query,
                             State *state) {
    const int group = a->num_heads / a->num_kv_heads, rows = item->num_tokens * group, p = is_bf16 ? 2 : 1;
    const int size = a->block_size, per_run = RUN_TOKENS / size, per_partition = blocks_per_partition(a);
    const size_t element = is_bf16 ? 2 : 4, stride = element * (size_t)a->padded_dim;
    const size_t block_bytes = element * size * a->padded_dim;
    const char *keys = a->keys, *values = a->values;
    const int limit = item->first_key_limit + item->num_tokens - 1; /* keys that the last token sees */
    int end = (partition + 1) * per_partition;
    if (end > (limit + size - 1) / size) end = (limit + size - 1) / size;
    float scores[TILE_ROWS * RUN_TOKENS] __attribute__((aligned(64)));
    int32_t weights[TILE_ROWS * RUN_TOKENS] __attribute__((aligned(64)));
    for (int run = partition * per_partition; run < end; run += per_run) {
        const int count = end - run < per_run ? end - run : per_run;
        for (int first = 0; first < rows; first += TILE_ROWS) {
            const int n = rows - first < TILE_ROWS ? rows - first : TILE_ROWS;
            /* Blocks lie anywhere, so the CPU's own prefetching ends with each: a block's values come while its keys are at
             * work, and the next run's keys while the values are. */
            for (int b = 0; b < count; b++) {
                const size_t at = block_at(a, item, block_bytes, run + b);
                (is_bf16 ? scores_bf16 : scores_f32)(n, query + first * stride, stride, keys + at, a->padded_dim / p, size,
                                                     values + at, scores + b * size);
            }
            for (int r = 0; r < n; r++) {
                const int visible = item->first_key_limit + (first + r) / group - run * size;
                soften_row(is_bf16, a, scores + r * RUN_TOKENS, count * size, visible, state, first + r,
                           weights + r * RUN_TOKENS);
            }
            for (int b = 0; b < count; b++) {
                const int following = run + per_run + b < end ? run + per_run + b : end - 1;
                const int left = limit - (run + b) * size, words = left < size ? left / p : size / p;
                const int32_t *w = weights + b * size / p;
                const char *v = values + block_at(a, item, block_bytes, run + b);
                const char *ahead = keys + block_at(a, item, block_bytes, following);
                float *out = state->out + first * MAX_DIM;
                (is_bf16 ? values_bf16 : values_f32)(n, w, v, words, a->padded_dim, ahead, out);
                if (left < size && left % p) {
                    /* The last word's second token is not the sequence's: another's, whose 0 * inf would be NaN. */
                    uint32_t last[MAX_DIM] __attribute__((aligned(64)));
                    memcpy(last, v + 4 * (size_t)words * a->padded_dim, 4 * (size_t)a->padded_dim);
                    for (int i = 0; i < a->padded_dim; i++) last[i] &= 0xFFFF;
                    values_bf16(n, w + words, (const char *)last, 1, a->padded_dim, ahead, out);
                }
            }
        }
    }
}

/* total becomes the softmax over what it and `next` have seen. */
static void merge(State *total, const State *next, int rows, int padded_dim) {
    for (int r = 0; r < rows; r++) {
        const float most = total->most[r] > next->most[r] ? total->most[r] : next->most[r];
        if (most == -INFINITY) continue;
        const float keep = exp2_nonpositive(splat(total->most[r] - most))[0];
        const float add = exp2_nonpositive(splat(next->most[r] - most))[0];
        total->most[r] = most;
        total->sum[r] = total->sum[r] * keep + next->sum[r] * add;
        float *out = total->out + r * MAX_DIM;
        const float *other = next->out + r * MAX_DIM;
        for (int i = 0; i < padded_dim; i += LANES)
            store_f32(out + i, load_f32(out + i) * splat(keep) + load_f32(other + i) * splat(add));
    }
}

/* The item's query rows, token by token and head by head, padded to padded_dim. */
static void take_query(const Attention *a, size_t element, const Item *item, char *query) {
    const int group = a->num_heads / a->num_kv_heads;
    for (int t = 0; t < item->num_tokens; t++)
        for (int g = 0; g < group; g++) {
            const size_t token = (size_t)a->starts[item->seq] + item->first_token + t;
            const size_t from = token * a->query_stride + (size_t)(item->kv_head * group + g) * a->head_dim;
            memcpy(query, (const char *)a->query + element * from, element * (size_t)a->head_dim);
            memset(query + element * a->head_dim, 0, element * (size_t)(a->padded_dim - a->head_dim));
            query += element * a->padded_dim;
        }
}

INLINE void give_out(const int is_bf16, const Attention *a, const Item *item, const State *state) {
    const int group = a->num_heads / a->num_kv_heads;
    for (int r = 0; r < item->num_tokens * group; r++) {
        const size_t token = (size_t)a->starts[item->seq] + item->first_token + r / group;
        const size_t to = (token * a->num_heads + item->kv_head * group + r % group) * a->head_dim;
        const float inverse = state->sum[r] > 0.0f ? 1.0f / state->sum[r] : 0.0f; /* no keys: padding */
        int i = 0;
        for (; i + LANES <= a->head_dim; i += LANES) {
            const vf x = load_f32(state->out + r * MAX_DIM + i) * splat(inverse);
            if (is_bf16)
                store_bf16((bf16 *)a->out + to + i, x);
            else
                store_f32((float *)a->out + to + i, x);
        }
        for (; i < a->head_dim; i++) {
            const float x = state->out[r * MAX_DIM + i] * inverse;
            if (is_bf16)
                ((bf16 *)a->out)[to + i] = narrow(x);
            else
                ((float *)a->out)[to + i] = x;
        }
    }
}

INLINE int num_partitions(const Attention *a, const Item *item) {
    const int tokens = blocks_per_partition(a) * a->block_size;
    return (item->first_key_limit + item->num_tokens - 1 + tokens - 1) / tokens;
}

INLINE Item item_at(const Attention *a, int seq, int kv_head, int tile, int tile_tokens) {
    const int length = a->starts[seq + 1] - a->starts[seq], first = tile * tile_tokens;
    const int num = length - first < tile_tokens ? length - first : tile_tokens;
    return (Item){seq, kv_head, first, num, a->seq_lens[seq] - length + first + 1};
}

typedef struct {
    const Attention *a;
    const int32_t *work; /* [num_work][2]: sequence, tile */
    int is_bf16, tile_tokens;
} Step;

INLINE void attend_item(const int is_bf16, const Step *step, int i) {
    const Attention *a = step->a;
    const int32_t *w = step->work + 2 * (i / a->num_kv_heads);
    const Item item = item_at(a, w[0], i % a->num_kv_heads, w[1], step->tile_tokens);
    const int rows = item.num_tokens * (a->num_heads / a->num_kv_heads), count = num_partitions(a, &item);
    State total, next;
    char query[MAX_TILE_ROWS * MAX_DIM * 4] __attribute__((aligned(64)));
    take_query(a, is_bf16 ? 2 : 4, &item, query);
    clear(&total, rows, a->padded_dim);
    attend_partition(is_bf16, a, &item, 0, query, &total);
    for (int part = 1; part < count; part++) {
        clear(&next, rows, a->padded_dim);
        attend_partition(is_bf16, a, &item, part, query, &next);
        merge(&total, &next, rows, a->padded_dim);
    }
    give_out(is_bf16, a, &item, &total);
}

static void attend_task(void *context, int i) {
    const Step *step = context;
    if (step->is_bf16)
        attend_item(1, step, i);
    else
        attend_item(0, step, i);
}

/* Rows of a tile of `tokens` query tokens must not exceed this. */
EXPORT int max_tile_rows(void) { return MAX_TILE_ROWS; }

EXPORT void paged_attention(int is_bf16, const Attention *a, const int32_t *work, int num_work, int tile_tokens) {
    Step step = {a, work, is_bf16, tile_tokens};
    const long elements = (long)num_work * a->num_kv_heads * a->padded_dim;
    parallel_for(num_work * a->num_kv_heads, elements > PARALLEL_ELEMENTS / 32, attend_task, &step);
}
