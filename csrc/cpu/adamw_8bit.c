#include "cpu/adamw_8bit.h"
#include "cpu/adamw_step.h"
#include "cpu/backend_internal.h"

/* The entry nearest to x, which is at most 1; of two as near the lower. */
static uint8_t nearest(float x, const float *map)
{
    int low = 0; /* the last entry that is not above x, or the first */
    for (int step = 128; step > 0; step /= 2) low += step * (map[low + step] <= x); /* no branch to guess */
    return (uint8_t)(low + (low < 255 && map[low + 1] - x < x - map[low]));
}

/* One block of n values. least: the code of a value above 0 that is as small as can be. */
static void quantise(const float *value, int64_t n, const float *map, uint8_t least, uint8_t *code, float *absmax)
{
    float largest = 0.0f;
    for (int64_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(value[i]));
    for (int64_t i = 0; i < n; i++) {
        code[i] = nearest(largest > 0.0f ? value[i] / largest : 0.0f, map);
        if (value[i] > 0.0f && code[i] < least) code[i] = least;
    }
    *absmax = largest;
}

nib_status nib_cpu_adamw_8bit(nib_ops *ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n,
                              float *parameter, const float *gradient, nib_moments_8bit moments)
{
    (void)ops;
    if (!isfinite(clip->norm)) return NIB_OK;
    const nib_adamw_factors f = factors[clip->missed];
    const float scale = clip->scale, *signed_map = moments.maps, *unsigned_map = moments.maps + 256;
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < (n + NIB_MOMENT_BLOCK - 1) / NIB_MOMENT_BLOCK; block++) {
        float first[NIB_MOMENT_BLOCK], second[NIB_MOMENT_BLOCK];
        const int64_t at = block * NIB_MOMENT_BLOCK, left = n - at;
        const int64_t count = left < NIB_MOMENT_BLOCK ? left : NIB_MOMENT_BLOCK;
        for (int64_t i = 0; i < count; i++) {
            first[i] = signed_map[moments.first[at + i]] * moments.first_absmax[block];
            second[i] = unsigned_map[moments.second[at + i]] * moments.second_absmax[block];
            adamw_step(f, gradient[at + i] * scale, &first[i], &second[i], &parameter[at + i]);
        }
        quantise(first, count, signed_map, 0, moments.first + at, &moments.first_absmax[block]);
        quantise(second, count, unsigned_map, 1, moments.second + at, &moments.second_absmax[block]);
    }
    return NIB_OK;
}
