/* table[t] = cos and sin of position[t] * frequency[i], times scale. A pair (a, b) of a head becomes
 * (a cos - b sin, b cos + a sin), or, for the inverse, is turned back by the same angle.
 *
 * A block takes one token, since all its heads share the angles: a thread loads N cosines and sines once and turns the
 * same N pairs of every head that comes its way, so that table costs 1 / heads of what x does.
 *   threads    enough for every pair of every head, at most 256; those that would hold no whole set of pairs stay idle
 *   registers  below 64, no shared memory */
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/rotary.h"
#include "cuda/vector.cuh"

constexpr int THREADS = 256;

/* Sine and cosine of any fp32 angle below 2^30, within 2 ulp of 1. Cody & Waite's reduction by quarter turns, which in
 * double needs one part of pi / 2, then Cephes' polynomials on [-pi/4, pi/4]. CUDA's own sincosf has a path for large
 * angles that needs local memory. */
__device__ __forceinline__ void sine_and_cosine(float angle, float *sine, float *cosine)
{
    const double turns = rint((double)angle * 0.63661977236758134308);
    const float r = (float)((double)angle - turns * 1.57079632679489661923), z = r * r;
    const float s = r + r * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
    const float c =
        1.0f - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    const int quarter = (int)turns & 3;
    const float a = quarter & 1 ? c : s, b = quarter & 1 ? s : c;
    *sine = quarter & 2 ? -a : a;
    *cosine = quarter == 1 || quarter == 2 ? -b : b;
}

__global__ void rotary_table_kernel(int64_t n, int pairs, const int32_t *position, const float *frequency, float scale,
                                    float *table)
{
    const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n) return;
    const int64_t t = at / pairs, i = at % pairs;
    const float angle = __fmul_rn((float)position[t], frequency[i]); /* fp32, as the reference computes it */
    float sine, cosine;
    sine_and_cosine(angle, &sine, &cosine);
    table[t * 2 * pairs + i] = cosine * scale;
    table[t * 2 * pairs + pairs + i] = sine * scale;
}

/* N pairs of a head, of which i is the first, as their first and second dims. */
template <bool INTERLEAVED, int N>
__device__ __forceinline__ void load_pairs(const __nv_bfloat16 *head, int i, int pairs, float (&a)[N], float (&b)[N])
{
    if constexpr (INTERLEAVED) {
        float both[2 * N];
        load(head + 2 * i, both);
#pragma unroll
        for (int j = 0; j < N; j++) {
            a[j] = both[2 * j];
            b[j] = both[2 * j + 1];
        }
    } else {
        load(head + i, a);
        load(head + pairs + i, b);
    }
}
template <bool INTERLEAVED, int N>
__device__ __forceinline__ void store_pairs(__nv_bfloat16 *head, int i, int pairs, const float (&a)[N],
                                            const float (&b)[N])
{
    if constexpr (INTERLEAVED) {
        float both[2 * N];
#pragma unroll
        for (int j = 0; j < N; j++) {
            both[2 * j] = a[j];
            both[2 * j + 1] = b[j];
        }
        store(head + 2 * i, both);
    } else {
        store(head + i, a);
        store(head + pairs + i, b);
    }
}

template <int N, bool INTERLEAVED>
__global__ void __launch_bounds__(THREADS)
    rotary_kernel(__nv_bfloat16 *x, int64_t stride, int heads, int head_dim, const float *table, int pairs, float sign)
{
    const int64_t t = blockIdx.x;
    const int sets = pairs / N; /* of a head */
    const int together = blockDim.x / sets;
    const int i = threadIdx.x % sets * N;
    if ((int)threadIdx.x >= together * sets) return;
    float cosine[N], sine[N];
    load(table + t * 2 * pairs + i, cosine);
    load(table + t * 2 * pairs + pairs + i, sine);
    for (int h = threadIdx.x / sets; h < heads; h += together) {
        __nv_bfloat16 *head = x + t * stride + (int64_t)h * head_dim;
        float a[N], b[N], turned[N];
        load_pairs<INTERLEAVED>(head, i, pairs, a, b);
#pragma unroll
        for (int j = 0; j < N; j++) {
            turned[j] = a[j] * cosine[j] - sign * b[j] * sine[j];
            b[j] = b[j] * cosine[j] + sign * a[j] * sine[j];
        }
        store_pairs<INTERLEAVED>(head, i, pairs, turned, b);
    }
}

nib_status nib_cuda_rotary_table(nib_ops *ops, const int32_t *position, int64_t T, const float *frequency,
                                 int64_t pairs, float scale, float *table)
{
    const int64_t n = T * pairs;
    if (n == 0) return NIB_OK;
    return nib_cuda_launch(rotary_table_kernel, dim3((unsigned)divide_up(n, THREADS)), dim3(THREADS), 0,
                           nib_cuda_stream(ops), n, (int)pairs, position, frequency, scale, table);
}

nib_status nib_cuda_rotary(nib_ops *ops, nib_matrix x, int64_t heads, int64_t head_dim, const float *table,
                           int64_t pairs, nib_rotary_layout layout, bool inverse)
{
    const bool vectors = whole_vectors({x}) && pairs % VECTOR == 0 && head_dim % VECTOR == 0 && whole_vectors(table);
    const int64_t sets = vectors ? pairs / VECTOR : pairs;
    if (x.dtype != NIB_DTYPE_BF16 || x.columns != heads * head_dim || 2 * pairs > head_dim || sets > THREADS)
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "rotary: %lld columns of %s for %lld heads of %lld, %lld pairs; bf16, at most %d",
                        (long long)x.columns, nib_dtype_name(x.dtype), (long long)heads, (long long)head_dim,
                        (long long)pairs, THREADS);
    if (x.rows == 0 || sets == 0) return NIB_OK;
    const int64_t busy = sets * heads < THREADS ? sets * heads : THREADS;
    const auto kernel = layout == NIB_ROTARY_INTERLEAVED
                            ? (vectors ? rotary_kernel<VECTOR, true> : rotary_kernel<1, true>)
                            : (vectors ? rotary_kernel<VECTOR, false> : rotary_kernel<1, false>);
    return nib_cuda_launch(kernel, dim3((unsigned)x.rows), dim3((unsigned)(divide_up(busy, 32) * 32)), 0,
                           nib_cuda_stream(ops), bf16_of(x), x.stride, (int)heads, (int)head_dim, table, (int)pairs,
                           inverse ? -1.0f : 1.0f);
}
