/* The form of `reference.expand_step`: from a step's tables and its sequences' rows to what the other kernels read.
 *
 * Some thousand words at most, so one thread writes them.
 */
#include "common.h"

/* Columns of a row's parameters, and its flags: `SamplingColumn` and what stands beside it in interface.py. */
enum { TEMPERATURE, TOP_P, MIN_P, TOP_K, SEED, REPETITION = 6, FREQUENCY, PRESENCE, FLAGS, NUM_COLUMNS };
enum { HAS_COUNTS = 1, HAS_MASK = 2 };

typedef struct {
    int num_seqs, block_size, max_blocks, row_blocks, out_blocks; /* the last two: entries between rows of the tables */
    const int32_t *rows, *starts, *seq_lens, *places, *token_ids;       /* StepTables */
    const int32_t *block_table, *last_tokens, *sampling;                /* RowState */
    int64_t *input_ids, *positions, *slots;                             /* StepInputs, from here on */
    int32_t *out_table;
    int64_t *logits_indices;
    int32_t *sample_rows;
    float *temperature;
    int32_t *top_k;
    float *top_p, *min_p;
    int64_t *seeds, *sample_positions;
    int32_t *mask_row, *count_slot;
    float *repetition, *frequency, *presence;
} Step;

static float as_float(int32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static void expand_sampling(const Step *s, int row, int p) {
    const int32_t *column = s->sampling + (size_t)row * NUM_COLUMNS;
    s->sample_rows[p] = row;
    s->temperature[p] = as_float(column[TEMPERATURE]);
    s->top_p[p] = as_float(column[TOP_P]);
    s->min_p[p] = as_float(column[MIN_P]);
    s->top_k[p] = column[TOP_K];
    s->seeds[p] = (int64_t)((uint64_t)(uint32_t)column[SEED + 1] << 32 | (uint32_t)column[SEED]);
    s->repetition[p] = as_float(column[REPETITION]);
    s->frequency[p] = as_float(column[FREQUENCY]);
    s->presence[p] = as_float(column[PRESENCE]);
    s->mask_row[p] = column[FLAGS] & HAS_MASK ? row : -1;
    s->count_slot[p] = column[FLAGS] & HAS_COUNTS ? row : -1;
}

static void expand_tokens(const Step *s, int i, const int32_t *blocks) {
    const int start = s->starts[i], end = s->starts[i + 1], seq_len = s->seq_lens[i];
    const int32_t last = s->last_tokens[s->rows[i]];
    for (int t = start; t < end; t++) {
        const int position = seq_len - end + t;
        if (seq_len == 0) { /* padding */
            s->input_ids[t] = s->positions[t] = 0;
            s->slots[t] = -1;
            continue;
        }
        s->input_ids[t] = s->token_ids[t] == -1 ? last : s->token_ids[t];
        s->positions[t] = position;
        s->slots[t] = (int64_t)blocks[position / s->block_size] * s->block_size + position % s->block_size;
    }
}

EXPORT void expand_step(const Step *s) {
    for (int i = 0; i < s->num_seqs; i++) {
        const int seq_len = s->seq_lens[i], p = s->places[i];
        const int32_t *blocks = s->block_table + (size_t)s->rows[i] * s->row_blocks;
        int num_blocks = (seq_len + s->block_size - 1) / s->block_size;
        if (num_blocks > s->max_blocks) num_blocks = s->max_blocks;
        memcpy(s->out_table + (size_t)i * s->out_blocks, blocks, 4 * (size_t)num_blocks);
        expand_tokens(s, i, blocks);
        if (p < 0) continue;
        s->logits_indices[p] = s->starts[i + 1] - 1;
        s->sample_positions[p] = seq_len;
        expand_sampling(s, s->rows[i], p);
    }
}
