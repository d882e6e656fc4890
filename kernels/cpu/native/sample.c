/* Choosing one token per row of logits: argmax, or a Gumbel draw from what min_p, top_k and top_p leave.
 *
 * The form of `reference.sample`. A row that has edits is first copied and changed; the copy stays in a core's cache. A
 * row is read once or twice; what is sorted or searched is only the few tokens that can still be chosen. Rows are
 * independent.
 */
#include <stdlib.h>

#include "common.h"

#define NUM_GROUPS 64 /* times 16 lanes: the groups whose greatest values bound the k-th greatest of all */
#define MAX_BOUNDED_K 512

typedef struct {
    int is_bf16, vocab_size;
    const char *logits;
    size_t row_bytes;
    const float *temperature, *top_p, *min_p;
    const int32_t *top_k;
    const uint32_t *k1, *k2;
    int64_t *tokens;
    /* LogitEdits, in its order; all NULL where no row has any. */
    const int32_t *bitmask, *mask_row, *bias_start, *bias_ids;
    const float *bias_values;
    const int32_t *counts, *count_slot;
    const float *repetition, *frequency, *presence;
} Sampling;

/* Tokens that may still be chosen: scaled logits, weights e^scaled, ids. One per thread, kept. */
typedef struct {
    float *scaled, *weight;
    int32_t *id;
    int room;
} Candidates;
static __thread Candidates scratch;
/* A row after its edits, with room for a whole vector at its end. One per thread, kept. */
static __thread struct {
    float *x;
    int room;
} edited;

static const vi LANE_IDS = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* 16 logits from token i on; -inf past the vocabulary's end. */
INLINE vf logits_at(const int is_bf16, const char *row, int i, int vocab_size) {
    if (i + LANES <= vocab_size) return is_bf16 ? load_bf16((const bf16 *)row + i) : load_f32((const float *)row + i);
    vf v = splat(-INFINITY);
    for (int lane = 0; i + lane < vocab_size; lane++)
        v[lane] = is_bf16 ? widen(((const bf16 *)row)[i + lane]) : ((const float *)row)[i + lane];
    return v;
}

/* ln x for positive normal x, error some 1e-7: x = 2^e m with m near 1, ln m = 2 artanh((m - 1) / (m + 1)). */
INLINE vf ln(vf x) {
    vi bits = (vi)x;
    /* Mantissas from sqrt(2) on count as halves of the next power. */
    vi e = (bits - 0x3F3504F3) >> 23;
    vf m = (vf)(bits - (e << 23));
    vf z = (m - splat(1.0f)) / (m + splat(1.0f));
    vf z2 = z * z;
    vf series = splat(1.0f / 9.0f);
    series = series * z2 + splat(1.0f / 7.0f);
    series = series * z2 + splat(1.0f / 5.0f);
    series = series * z2 + splat(1.0f / 3.0f);
    series = series * z2 * z + z;
    return __builtin_convertvector(e, vf) * splat(0.693147181f) + splat(2.0f) * series;
}

INLINE vu fmix32(vu h) {
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    return h ^ (h >> 16);
}

/* `reference.gumbel_noise` for 16 token ids of one row. */
INLINE vf gumbel(vi ids, uint32_t k1, uint32_t k2) {
    vu h = fmix32((vu)ids ^ k1) + k2;
    vf v = (__builtin_convertvector(h, vf) + splat(0.5f)) * splat(0x1p-32f);
    const vf most = splat(1.0f - 0x1p-24f);
    v = (vf)(((vi)v & (v < most)) | ((vi)most & ~(v < most)));
    /* ln(1 - v) with what rounding 1 - v has lost. */
    vf u = splat(1.0f) - v;
    vf exponential = ((u - splat(1.0f)) + v) / u - ln(u);
    return splat(0.0f) - ln(exponential);
}

/* The noise of tokens 0 to num_tokens - 1, a multiple of 16, for tests. */
EXPORT void gumbel_noise(uint32_t k1, uint32_t k2, int num_tokens, float *noise) {
    for (int i = 0; i < num_tokens; i += LANES) store_f32(noise + i, gumbel(LANE_IDS + i, k1, k2));
}

typedef struct {
    vf value;
    vi id;
} Best;

INLINE void keep_best(Best *best, vf value, vi id) {
    vi better = value > best->value;
    best->value = (vf)(((vi)value & better) | ((vi)best->value & ~better));
    best->id = (id & better) | (best->id & ~better);
}

/* The greatest of the lanes; of equals the lowest id. */
INLINE int best_id(const Best *best) {
    int at = 0;
    for (int i = 1; i < LANES; i++)
        if (best->value[i] > best->value[at] || (best->value[i] == best->value[at] && best->id[i] < best->id[at])) at = i;
    return best->id[at];
}

INLINE int argmax(const int is_bf16, const char *row, int vocab_size) {
    Best best = {splat(-INFINITY), LANE_IDS - LANE_IDS};
    for (int i = 0; i < vocab_size; i += LANES) keep_best(&best, logits_at(is_bf16, row, i, vocab_size), LANE_IDS + i);
    return best_id(&best);
}

/* The k-th greatest of n values, k from 1; reorders them. */
static float kth_greatest(float *values, int n, int k) {
    int low = 0, high = n - 1;
    while (low < high) {
        const float pivot = values[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (values[i] > pivot) i++;
            while (values[j] < pivot) j--;
            if (i <= j) {
                const float swap = values[i];
                values[i++] = values[j];
                values[j--] = swap;
            }
        }
        if (k - 1 <= j)
            high = j;
        else if (k - 1 >= i)
            low = i;
        else
            break;
    }
    return values[k - 1];
}

static void swap_candidates(Candidates *c, int i, int j) {
    const float scaled = c->scaled[i], weight = c->weight[i];
    c->scaled[i] = c->scaled[j];
    c->weight[i] = c->weight[j];
    c->scaled[j] = scaled;
    c->weight[j] = weight;
}

/* The greatest value such that the weights of what reaches it sum to `target`; reorders scaled and weight, not id. */
static float mass_threshold(Candidates *c, int n, double target) {
    int low = 0, high = n;
    double above = 0.0;
    float threshold = -INFINITY;
    while (low < high) {
        const float pivot = c->scaled[low + (high - low) / 2];
        /* [low, more) > pivot, [more, less) == pivot, [less, high) < pivot */
        int more = low, less = high;
        double more_mass = 0.0, equal_mass = 0.0;
        for (int i = low; i < less;) {
            if (c->scaled[i] > pivot) {
                more_mass += c->weight[i];
                swap_candidates(c, i++, more++);
            } else if (c->scaled[i] < pivot) {
                swap_candidates(c, i, --less);
            } else {
                equal_mass += c->weight[i++];
            }
        }
        if (above + more_mass >= target) {
            high = more;
            continue;
        }
        threshold = pivot;
        above += more_mass + equal_mass;
        if (above >= target) break;
        low = less;
    }
    return threshold;
}

static void make_room(int num_tokens) {
    if (scratch.room >= num_tokens) return;
    free(scratch.scaled);
    free(scratch.weight);
    free(scratch.id);
    scratch.room = num_tokens;
    scratch.scaled = malloc(sizeof(float) * num_tokens);
    scratch.weight = malloc(sizeof(float) * num_tokens);
    scratch.id = malloc(sizeof(int32_t) * num_tokens);
}

/* Collect the tokens whose logit is at least `least`, scaled: (logit - most) / temperature. */
INLINE int collect(const int is_bf16, const char *row, int vocab_size, float least, float most, float temperature) {
    int n = 0;
    for (int i = 0; i < vocab_size; i += LANES) {
        vf x = logits_at(is_bf16, row, i, vocab_size);
        vi kept = x >= splat(least);
        int any = 0;
        for (int lane = 0; lane < LANES; lane++) any |= kept[lane];
        if (!any) continue;
        for (int lane = 0; lane < LANES && i + lane < vocab_size; lane++)
            if (kept[lane]) {
                scratch.scaled[n] = (x[lane] - most) / temperature;
                scratch.id[n++] = i + lane;
            }
    }
    return n;
}

/* A lower bound of the k-th greatest logit: the k-th greatest of the groups' greatest. */
static float bound_of_kth(const float *groups, int k) {
    float copy[NUM_GROUPS * LANES];
    memcpy(copy, groups, sizeof copy);
    return kth_greatest(copy, NUM_GROUPS * LANES, k);
}

/* e^x for x <= 0. */
INLINE vf exp_nonpositive(vf x) { return exp2_nonpositive(x * splat(1.44269504f)); }

/* Sum of e^((logit - most) / temperature) over the row; in double from one run of tokens to the next. */
INLINE double row_mass(const int is_bf16, const char *row, int vocab_size, float most, float temperature) {
    double mass = 0.0;
    for (int start = 0; start < vocab_size; start += 32 * LANES) {
        vf sum = (vf){0};
        for (int i = start; i < start + 32 * LANES && i < vocab_size; i += LANES)
            sum += exp_nonpositive((logits_at(is_bf16, row, i, vocab_size) - splat(most)) / splat(temperature));
        mass += lanes_sum(sum);
    }
    return mass;
}

/* Whatever of the row's tokens passes min_p, top_k and top_p stands in `scratch` with its scaled logit; returns how many. */
INLINE int truncate_row(const int is_bf16, const Sampling *s, const char *row, int r, const float *groups, float most) {
    const int vocab_size = s->vocab_size, k = s->top_k[r];
    const float temperature = s->temperature[r], top_p = s->top_p[r], min_p = s->min_p[r];
    const float min_scaled = min_p > 0.0f ? (float)log((double)min_p) : -INFINITY;
    const int has_k = k > 0 && k < vocab_size;
    /* Bounds on the logit, each a little low, so that rounding loses no token; the exact filters follow. */
    float least = -INFINITY;
    if (has_k && k <= MAX_BOUNDED_K) least = bound_of_kth(groups, k);
    if (min_p > 0.0f) {
        const float bound = most + min_scaled * temperature;
        const float low = bound - fabsf(bound) * 1e-5f - 1e-5f;
        least = low > least ? low : least;
    }
    double mass = 0.0; /* of all that top_p is a share of */
    const int is_mass_known = !has_k && min_p <= 0.0f && top_p < 1.0f;
    if (is_mass_known) {
        mass = row_mass(is_bf16, row, vocab_size, most, temperature);
        /* All tokens below this weight, together, have less mass than top_p leaves out: none of them is kept. */
        const double weight = 0.5 * (1.0 - top_p) * mass / vocab_size;
        const float bound = weight > 0.0 ? most + (float)log(weight) * temperature : -INFINITY;
        least = bound - fabsf(bound) * 1e-5f - 1e-5f;
    }
    make_room(vocab_size);
    int n = collect(is_bf16, row, vocab_size, least, most, temperature), kept = 0;
    for (int i = 0; i < n; i++)
        if (scratch.scaled[i] >= min_scaled) {
            scratch.scaled[kept] = scratch.scaled[i];
            scratch.id[kept++] = scratch.id[i];
        }
    n = kept;
    float threshold = -INFINITY;
    if (has_k && k < n) {
        memcpy(scratch.weight, scratch.scaled, sizeof(float) * n);
        threshold = kth_greatest(scratch.weight, n, k);
    }
    if (top_p < 1.0f) {
        /* The search reorders, so it works on a copy behind the candidates' own order: ids must stay with their values. */
        float *scaled = malloc(2 * sizeof(float) * (n > 0 ? n : 1));
        Candidates copy = {scaled, scaled + n, NULL, n};
        int m = 0;
        for (int i = 0; i < n; i++)
            if (scratch.scaled[i] >= threshold) copy.scaled[m++] = scratch.scaled[i];
        for (int i = 0; i < m; i += LANES) {
            vf x = splat(-INFINITY);
            for (int lane = 0; lane < LANES && i + lane < m; lane++) x[lane] = copy.scaled[i + lane];
            vf w = exp_nonpositive(x);
            for (int lane = 0; lane < LANES && i + lane < m; lane++) {
                copy.weight[i + lane] = w[lane];
                if (!is_mass_known) mass += w[lane];
            }
        }
        const float by_mass = mass_threshold(&copy, m, (double)top_p * mass);
        threshold = by_mass > threshold ? by_mass : threshold;
        free(scaled);
    }
    for (int i = kept = 0; i < n; i++)
        if (scratch.scaled[i] >= threshold) {
            scratch.scaled[kept] = scratch.scaled[i];
            scratch.id[kept++] = scratch.id[i];
        }
    return kept;
}

INLINE int sample_row(const int is_bf16, const Sampling *s, const char *row, int r) {
    const int vocab_size = s->vocab_size;
    const float temperature = s->temperature[r];
    if (temperature == 0.0f) return argmax(is_bf16, row, vocab_size);
    float groups[NUM_GROUPS * LANES];
    vf all = splat(-INFINITY);
    const int per_group = (vocab_size + NUM_GROUPS * LANES - 1) / (NUM_GROUPS * LANES) * LANES;
    for (int g = 0; g < NUM_GROUPS; g++) {
        vf group = splat(-INFINITY);
        for (int i = g * per_group; i < (g + 1) * per_group && i < vocab_size; i += LANES)
            group = vmax(group, logits_at(is_bf16, row, i, vocab_size));
        store_f32(groups + g * LANES, group);
        all = vmax(all, group);
    }
    const float most = lanes_max(all);
    Best best = {splat(-INFINITY), LANE_IDS - LANE_IDS};
    if ((s->top_k[r] > 0 && s->top_k[r] < vocab_size) || s->top_p[r] < 1.0f || s->min_p[r] > 0.0f) {
        const int n = truncate_row(is_bf16, s, row, r, groups, most);
        for (int i = 0; i < n; i += LANES) {
            vf value = splat(-INFINITY);
            vi id = LANE_IDS - LANE_IDS;
            for (int lane = 0; lane < LANES && i + lane < n; lane++) {
                value[lane] = scratch.scaled[i + lane];
                id[lane] = scratch.id[i + lane];
            }
            keep_best(&best, value + gumbel(id, s->k1[r], s->k2[r]), id);
        }
        return best_id(&best);
    }
    for (int i = 0; i < vocab_size; i += LANES) {
        vf scaled = (logits_at(is_bf16, row, i, vocab_size) - splat(most)) / splat(temperature);
        keep_best(&best, scaled + gumbel(LANE_IDS + i, s->k1[r], s->k2[r]), LANE_IDS + i);
    }
    return best_id(&best);
}

INLINE void copy_row(const int is_bf16, const char *row, int vocab_size, float *x) {
    for (int i = 0; i < vocab_size; i += LANES) store_f32(x + i, logits_at(is_bf16, row, i, vocab_size));
}

/* -inf where the bit of the token is not set. */
static void mask_tokens(float *x, const uint32_t *words, int vocab_size) {
    for (int i = 0; i < vocab_size; i += LANES) {
        const vi bits = ((int32_t)(words[i / 32] >> i % 32) - (vi){0}) >> LANE_IDS;
        const vi allowed = (bits & 1) != 0;
        store_f32(x + i, (vf)(((vi)load_f32(x + i) & allowed) | ((vi)splat(-INFINITY) & ~allowed)));
    }
}

/* The price of one token that the sequence holds. Products are made in double, where they are exact, and rounded once:
 * the compiler would fuse a float product with the sum after it, and a tie would be decided unlike the reference's. */
static float penalised(float x, int in_output, float repetition, float frequency, float presence) {
    float y = x > 0.0f ? x / repetition : (float)((double)x * repetition);
    y -= (float)((double)in_output * frequency);
    return in_output > 0 ? y - presence : y;
}

static void penalise(const Sampling *s, int r, float *x) {
    const int32_t *counts = s->counts + (size_t)s->count_slot[r] * s->vocab_size;
    const float repetition = s->repetition[r], frequency = s->frequency[r], presence = s->presence[r];
    for (int i = 0; i < s->vocab_size; i += LANES) {
        const int num = s->vocab_size - i < LANES ? s->vocab_size - i : LANES;
        int any = 0;
        if (num == LANES) {
            const vi some = load_i32((const char *)(counts + i));
            for (int lane = 0; lane < LANES; lane++) any |= some[lane];
            if (!any) continue;
        }
        for (int t = i; t < i + num; t++)
            if (counts[t]) x[t] = penalised(x[t], counts[t] >> 1, repetition, frequency, presence);
    }
}

static int has_edits(const Sampling *s, int r) {
    return s->mask_row && (s->mask_row[r] >= 0 || s->count_slot[r] >= 0 || s->bias_start[r + 1] > s->bias_start[r]);
}

/* `reference.edit_logits` of one row. */
static const char *edit_row(const Sampling *s, const char *row, int r) {
    const int vocab_size = s->vocab_size;
    if (edited.room < vocab_size) {
        free(edited.x);
        edited.room = vocab_size;
        edited.x = malloc(sizeof(float) * ((size_t)vocab_size + LANES));
    }
    float *x = edited.x;
    if (s->is_bf16)
        copy_row(1, row, vocab_size, x);
    else
        copy_row(0, row, vocab_size, x);
    if (s->mask_row[r] >= 0)
        mask_tokens(x, (const uint32_t *)s->bitmask + (size_t)s->mask_row[r] * ((vocab_size + 31) / 32), vocab_size);
    for (int i = s->bias_start[r]; i < s->bias_start[r + 1]; i++) x[s->bias_ids[i]] += s->bias_values[i];
    if (s->count_slot[r] >= 0) penalise(s, r, x);
    return (const char *)x;
}

static void sample_task(void *context, int r) {
    const Sampling *s = context;
    const char *row = s->logits + r * s->row_bytes;
    if (has_edits(s, r))
        s->tokens[r] = sample_row(0, s, edit_row(s, row, r), r);
    else
        s->tokens[r] = s->is_bf16 ? sample_row(1, s, row, r) : sample_row(0, s, row, r);
}

/* logits: rows of row_bytes. All else but the edits is [num_rows]; k1 and k2 are the words of `reference.row_keys`. */
EXPORT void sample(const Sampling *s, int num_rows) {
    Sampling copy = *s;
    parallel_for(num_rows, (long)num_rows * s->vocab_size > PARALLEL_ELEMENTS, sample_task, &copy);
}
