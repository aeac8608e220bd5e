#include "cpu/adamw.h"
#include "cpu/adamw_step.h"
#include "cpu/backend_internal.h"

#include <math.h>

#define BLOCK 4096 /* partial sums are of fixed blocks, so that threads do not change the order */

static double block_sum(const float *x, int64_t n)
{
    double lane[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
    for (; i < n; i++) lane[0] += (double)x[i] * (double)x[i];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

nib_status nib_cpu_global_norm(nib_ops *ops, int count, float *const *array, const int64_t *length, double max_norm,
                               nib_clip *clip)
{
    size_t mark = ops->scratch->used;
    double total = 0.0;
    for (int a = 0; a < count; a++) {
        int64_t blocks = (length[a] + BLOCK - 1) / BLOCK;
        double *partial;
        NIB_TRY(nib_arena_take(ops->scratch, blocks, sizeof *partial, &partial));
        if (ops->rehearsal) blocks = 0;
#pragma omp parallel for schedule(static)
        for (int64_t b = 0; b < blocks; b++)
            partial[b] = block_sum(array[a] + b * BLOCK, length[a] - b * BLOCK < BLOCK ? length[a] - b * BLOCK : BLOCK);
        for (int64_t b = 0; b < blocks; b++) total += partial[b];
        nib_arena_reset(ops->scratch, mark);
    }
    clip->missed = !isfinite(clip->norm);
    clip->norm = sqrt(total);
    clip->scale = (float)(max_norm > 0 ? fmin(1.0, max_norm / (clip->norm + 1e-6)) : 1.0);
    return NIB_OK;
}

nib_status nib_cpu_adamw(nib_ops *ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n,
                         float *parameter, const float *gradient, float *first_moment, float *second_moment)
{
    (void)ops;
    if (!isfinite(clip->norm)) return NIB_OK;
    const nib_adamw_factors f = factors[clip->missed];
    const float scale = clip->scale;
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++)
        adamw_step(f, gradient[i] * scale, &first_moment[i], &second_moment[i], &parameter[i]);
    return NIB_OK;
}
