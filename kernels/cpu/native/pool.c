/* Threads that share out the items of one call.
 *
 * A step makes hundreds of short calls, a few microseconds apart, on cores that a server's other processes use too. So an
 * idle thread spins for as long as the next call may take to come, then sleeps: OpenMP's either sleep at once, and waking
 * them costs more than a small call, or spin on and starve the neighbours. And items are handed out as threads come for
 * them: a thread that the system has put aside holds up one item, not its whole share.
 */
#include "pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_THREADS 256
#define SPINS_BEFORE_SLEEP 4000 /* some 50 microseconds */
#define SPINS_BEFORE_YIELD 20000

static struct {
    Task *task;
    void *context;
    int count, chunk;
} job;
static atomic_int next_item, is_open, num_inside, num_sleeping, num_helpers;
static atomic_uint generation;
static int num_started;
static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_items(void) {
    for (;;) {
        int i = atomic_fetch_add_explicit(&next_item, job.chunk, memory_order_relaxed);
        if (i >= job.count) return;
        for (int end = i + job.chunk < job.count ? i + job.chunk : job.count; i < end; i++) job.task(job.context, i);
    }
}

static void *help(void *argument) {
    const int id = (int)(intptr_t)argument;
    unsigned seen = 0;
    for (;;) {
        unsigned now = atomic_load(&generation);
        for (int spins = 0; now == seen && spins < SPINS_BEFORE_SLEEP; spins++) {
            relax();
            now = atomic_load(&generation);
        }
        if (now == seen) {
            atomic_fetch_add(&num_sleeping, 1);
            syscall(SYS_futex, &generation, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
            atomic_fetch_sub(&num_sleeping, 1);
            continue;
        }
        seen = now;
        if (id >= atomic_load(&num_helpers)) continue;
        /* Who enters after the owner has closed sees it closed; whom the owner saw inside, it waits for. */
        atomic_fetch_add(&num_inside, 1);
        if (atomic_load(&is_open)) take_items();
        atomic_fetch_sub(&num_inside, 1);
    }
    return NULL;
}

EXPORT void set_num_threads(int num_threads) {
    pthread_mutex_lock(&owner);
    if (num_threads > MAX_THREADS) num_threads = MAX_THREADS;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (num_started < num_threads - 1) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, help, (void *)(intptr_t)num_started)) break;
        num_started++;
    }
    pthread_attr_destroy(&attributes);
    atomic_store(&num_helpers, num_threads - 1 < num_started ? num_threads - 1 : num_started);
    pthread_mutex_unlock(&owner);
}

void parallel_for(int count, int is_worth_it, Task *task, void *context) {
    const int helpers = atomic_load(&num_helpers);
    /* Two callers at once: the second does its own work alone. */
    if (!is_worth_it || count < 2 || helpers == 0 || pthread_mutex_trylock(&owner)) {
        for (int i = 0; i < count; i++) task(context, i);
        return;
    }
    const int chunk = count / (8 * (helpers + 1));
    job.task = task;
    job.context = context;
    job.count = count;
    job.chunk = chunk > 1 ? chunk : 1;
    atomic_store(&next_item, 0);
    atomic_store(&is_open, 1);
    atomic_fetch_add(&generation, 1);
    if (atomic_load(&num_sleeping)) syscall(SYS_futex, &generation, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    take_items();
    atomic_store(&is_open, 0);
    for (int spins = 0; atomic_load(&num_inside); spins++) {
        relax();
        if (spins > SPINS_BEFORE_YIELD) sched_yield();
    }
    pthread_mutex_unlock(&owner);
}
