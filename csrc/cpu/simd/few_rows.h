/* What the kernels of products with few rows (generation) share. */
#ifndef NIB_SIMD_FEW_ROWS_H
#define NIB_SIMD_FEW_ROWS_H

#include "cpu/matvec.h"
#include "cpu/simd/vector.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Bytes of weights that are asked for ahead: each is read once, from memory, and the processor's own reading ahead ends
 * at every page of 4 KB. */
#define WEIGHTS_AHEAD 8192

/* M is a constant at each call, so that the sums stay in registers: two for each row, to hide the latency of adding,
 * where there are enough beside `others`. The index of the second. */
ALWAYS_INLINE int second_sum(int M, int others) { return 2 * M + others <= VEC_REGISTERS ? 1 : 0; }

/* call(M) with M as a constant. */
_Static_assert(NIB_CPU_MATVEC_ROWS == 8, "all are listed");
#define FOR_CONSTANT_ROWS(M, call)                                                                                     \
    do {                                                                                                               \
        if ((M) == 1) call(1);                                                                                         \
        if ((M) == 2) call(2);                                                                                         \
        if ((M) == 3) call(3);                                                                                         \
        if ((M) == 4) call(4);                                                                                         \
        if ((M) == 5) call(5);                                                                                         \
        if ((M) == 6) call(6);                                                                                         \
        if ((M) == 7) call(7);                                                                                         \
        if ((M) == 8) call(8);                                                                                         \
    } while (0)

#endif
