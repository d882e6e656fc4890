/* Packing weights [N, K] into the panels of gemm.c, straight from where the checkpoint lies.
 *
 * A panel holds words of 4 bytes: [K / p][32][p], with p = 2 bfloat16 or 1 float to a word. Rows of several weights may
 * follow one another in the same panels; what lies past the last row or column is zero.
 */
#include <sys/mman.h>

#include "common.h"

#define WORDS 16 /* of a row at a time: one cache line */
#define PAGE 4096

typedef struct {
    const char *weight;
    size_t row_bytes;
    int num_rows, first_row, num_steps;
    uint32_t *panels;
} Packing;

static void pack_panel(void *context, int i) {
    const Packing *job = context;
    const int panel = job->first_row / COLUMNS + i;
    uint32_t *to = job->panels + (size_t)panel * job->num_steps * COLUMNS;
    for (int start = 0; start < job->num_steps; start += WORDS) {
        const int count = job->num_steps - start < WORDS ? job->num_steps - start : WORDS;
        for (int column = 0; column < COLUMNS; column++) {
            const int row = panel * COLUMNS + column - job->first_row;
            if (row < 0 || row >= job->num_rows) continue;
            uint32_t words[WORDS] = {0};
            const size_t at = 4 * (size_t)start;
            const size_t left = job->row_bytes - at;
            memcpy(words, job->weight + row * job->row_bytes + at, left < 4 * (size_t)count ? left : 4 * (size_t)count);
            for (int k = 0; k < count; k++) to[(size_t)(start + k) * COLUMNS + column] = words[k];
        }
    }
}

/* weight: [num_rows] rows of row_bytes, contiguous; they become rows first_row and on of the panels. */
EXPORT void pack_rows(const char *weight, size_t row_bytes, int num_rows, int first_row, void *panels, int num_steps) {
    Packing job = {weight, row_bytes, num_rows, first_row, num_steps, panels};
    const int end = (first_row + num_rows + COLUMNS - 1) / COLUMNS;
    parallel_for(end - first_row / COLUMNS, num_rows * row_bytes > 65536, pack_panel, &job);
}

/* Ask for huge pages before memory is first touched: fewer faults at load, and reads that need not stop at each 4 KiB. */
EXPORT void prefer_huge_pages(void *memory, size_t num_bytes) {
    const uintptr_t start = ((uintptr_t)memory + PAGE - 1) / PAGE * PAGE, end = ((uintptr_t)memory + num_bytes) / PAGE * PAGE;
    if (end > start) madvise((void *)start, end - start, MADV_HUGEPAGE);
}
