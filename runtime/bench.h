/* nibble bench: one file a kind, bench_KIND.c, one row each in cmd_bench.c. */
#ifndef NIB_BENCH_H
#define NIB_BENCH_H

#include "base/status.h"

#include <stddef.h>

/* argc, argv: what follows the kind's name. */
nib_status nib_bench_step(int argc, char **argv);
nib_status nib_bench_generate(int argc, char **argv);
nib_status nib_bench_ops(int argc, char **argv);

/* Monotonic time in seconds. */
double nib_bench_seconds(void);
/* Largest resident memory of this process so far, in bytes (VmHWM). */
size_t nib_bench_peak_bytes(void);

#endif
