#include "cpu/adamw.h"
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
    clip->norm = sqrt(total);
    clip->scale = (float)(max_norm > 0 ? fmin(1.0, max_norm / (clip->norm + 1e-6)) : 1.0);
    return NIB_OK;
}

/* PyTorch's order of operations: decay, moments, then lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon).
 */
nib_status nib_cpu_adamw(nib_ops *ops, nib_adamw o, const nib_clip *clip, int64_t n, float *parameter,
                         const float *gradient, float *first_moment, float *second_moment)
{
    (void)ops;
    if (!isfinite(clip->norm)) return NIB_OK;
    float gradient_scale = clip->scale;
    float decay = (float)(1.0 - o.learning_rate * o.weight_decay);
    float beta1 = (float)o.beta1, beta2 = (float)o.beta2, rest1 = (float)(1.0 - o.beta1),
          rest2 = (float)(1.0 - o.beta2);
    float step_size = (float)(o.learning_rate / (1.0 - pow(o.beta1, (double)o.step)));
    float root = (float)sqrt(1.0 - pow(o.beta2, (double)o.step)), epsilon = (float)o.epsilon;
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float g = gradient[i] * gradient_scale;
        float m = first_moment[i] * beta1 + g * rest1;
        float v = second_moment[i] * beta2 + g * g * rest2;
        first_moment[i] = m;
        second_moment[i] = v;
        parameter[i] = parameter[i] * decay - step_size * m / (sqrtf(v) / root + epsilon);
    }
    return NIB_OK;
}
