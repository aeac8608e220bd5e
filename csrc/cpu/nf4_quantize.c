/* Quantising, bit-exact with bitsandbytes 0.50 on the CPU (tests/golden/test_nf4.c). */
#include "cpu/backend_internal.h"
#include "cpu/nf4.h"

#include <math.h>

/* Index of the nearest NF4 value: the number of midpoints below x. */
static inline uint8_t nearest(float x, const float midpoint[15])
{
    uint8_t index = 0;
    for (int i = 0; i < 15; i++) index = (uint8_t)(index + (x > midpoint[i]));
    return index;
}

NIB_CPU_CLONES static void quantize_block(const float *weight, int64_t n, const float midpoint[15], uint8_t *codes,
                                          float *absmax)
{
    float largest = 0.0f;
    uint8_t index[64] = {0};
    for (int64_t i = 0; i < n; i++) {
        float magnitude = fabsf(weight[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    float inverse = largest > 0.0f ? 1.0f / largest : 0.0f;
    for (int64_t i = 0; i < n; i++) index[i] = nearest(weight[i] * inverse, midpoint);
    for (int64_t i = 0; i < (n + 1) / 2; i++) codes[i] = (uint8_t)(index[2 * i] << 4 | index[2 * i + 1]);
    *absmax = largest;
}

nib_status nib_cpu_nf4_quantize(nib_ops *ops, const float *weight, int64_t n, uint8_t *codes, float *absmax)
{
    (void)ops;
    float midpoint[15];
    for (int i = 0; i < 15; i++) midpoint[i] = (float)(((double)nib_nf4_values[i] + (double)nib_nf4_values[i + 1]) / 2);
#pragma omp parallel for schedule(static) if (n > 65536)
    for (int64_t block = 0; block < (n + 63) / 64; block++) {
        int64_t first = block * 64;
        quantize_block(weight + first, n - first < 64 ? n - first : 64, midpoint, codes + first / 2, absmax + block);
    }
    return NIB_OK;
}

/* Pairwise fp32 sum in the order of numpy's and torch's (blocks of 128 in eight lanes), so that the offset has the same
 * bits as theirs. */
static float pairwise_sum(const float *x, int64_t n)
{
    if (n < 8) {
        float sum = 0.0f;
        for (int64_t i = 0; i < n; i++) sum += x[i];
        return sum;
    }
    if (n <= 128) {
        float lane[8];
        int64_t i = 8;
        for (int j = 0; j < 8; j++) lane[j] = x[j];
        for (; i + 8 <= n; i += 8)
            for (int j = 0; j < 8; j++) lane[j] += x[i + j];
        float sum = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
        for (; i < n; i++) sum += x[i];
        return sum;
    }
    int64_t half = n / 2 / 8 * 8;
    return pairwise_sum(x, half) + pairwise_sum(x + half, n - half);
}

/* bitsandbytes finds the nearest map entry through a table over [-1, 1] of 65,536 steps; so do we, entry by entry. */
#define GRID 65535

static uint8_t nearest_of_map(float x, const float *map)
{
    int low = 0, high = 255;
    while (low < high) { /* first entry not below x */
        int middle = (low + high) / 2;
        if (map[middle] < x)
            low = middle + 1;
        else
            high = middle;
    }
    return (uint8_t)(low > 0 && x - map[low - 1] <= map[low] - x ? low - 1 : low);
}

nib_status nib_cpu_nf4_quantize_absmax(nib_ops *ops, const float *absmax, int64_t blocks, const float *nested_map,
                                       uint8_t *absmax_codes, float *nested_absmax, float *nested_offset)
{
    (void)ops;
    float mean = blocks > 0 ? pairwise_sum(absmax, blocks) / (float)blocks : 0.0f;
    *nested_offset = mean;
    for (int64_t first = 0; first < blocks; first += 256) {
        int64_t n = blocks - first < 256 ? blocks - first : 256;
        float largest = 0.0f;
        for (int64_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(absmax[first + i] - mean));
        float inverse = largest > 0.0f ? 1.0f / largest : 0.0f;
        for (int64_t i = 0; i < n; i++) {
            float scaled = (absmax[first + i] - mean) * inverse;
            float step = floorf((scaled + 1.0f) * (GRID / 2.0f) + 0.5f);
            absmax_codes[first + i] = nearest_of_map(step * (2.0f / GRID) - 1.0f, nested_map);
        }
        nested_absmax[first / 256] = largest;
    }
    return NIB_OK;
}
