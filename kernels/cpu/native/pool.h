/* Threads that share out the items of one call; see pool.c. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef void Task(void *context, int index);

/* Run task(context, i) for i in [0, count), on all threads if that is worth waking them; returns when all are done. */
void parallel_for(int count, int is_worth_it, Task *task, void *context);
