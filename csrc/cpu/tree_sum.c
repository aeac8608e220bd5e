#include "cpu/tree_sum.h"

#include <string.h>

#define BLOCK 4096 /* values that stay in the first cache while the arrays are added */

static void sum_block(float *x, int count, const float *const *left, int64_t begin, int64_t n, float *to)
{
    for (int k = 0; k < count; k++)
        for (int64_t i = 0; i < n; i++) x[i] += left[k][begin + i];
    if (to == x) return;
    memcpy(to, x, (size_t)n * sizeof *x);
    memset(x, 0, (size_t)n * sizeof *x);
}

nib_status nib_cpu_tree_sum(nib_ops *ops, float *x, int count, const float *const *left, int64_t n, float *to)
{
    if (count < 0 || count > NIB_TREE_SUM_LEVELS)
        return NIB_FAIL(NIB_ERROR_SHAPE, "tree_sum: %d arrays, at most %d", count, NIB_TREE_SUM_LEVELS);
    if (ops->rehearsal) return NIB_OK;
#pragma omp parallel for schedule(static) if (n > 65536)
    for (int64_t at = 0; at < n; at += BLOCK)
        sum_block(x + at, count, left, at, n - at < BLOCK ? n - at : BLOCK, to + at);
    return NIB_OK;
}
