/* best = argmax z;  w[v] = floor(2^44 exp((z[v] - best) / temperature));  kept: those above a logit, and of those equal
 * to it the first by id;  id = the first at which the running sum of kept weights passes floor(r sum / 2^64).
 *
 * A block chooses for one row, in passes over its logits, which stay in L2. Sorting is not needed: what top-k and top-p
 * keep is told by one logit, found digit by digit from the top of its bits (radix select; Alabi et al., "Fast
 * k-selection algorithms for graphics processing units", 2012): a histogram of the next 11 bits holds, for each digit,
 * how many logits (top-k) or how much weight (top-p) it has, and the digit at which the sum from above reaches what is
 * wanted is the logit's. Sums are whole numbers, so that no order of threads or atomics changes them. passes   1
 * greedy; 3 drawing from all; 4 more for top-k and 5 more for top-p threads  1024 a row, fewer for a small vocabulary;
 * each takes every 1024th logit, but a warp a run of neighbours where the order of ids counts shared   2048 sums of 8
 * bytes, and 33 more */
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/sample.h"
#include "cuda/vector.cuh"

#include <cfloat>

constexpr int THREADS = 1024, WARPS = THREADS / 32;
constexpr int DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS;

typedef unsigned long long sum_t; /* of atomicAdd */

typedef struct {
    bool greedy;
    float rate; /* log2(e) / temperature */
    double top_p;
    int top_k; /* V: off */
    uint64_t seed;
} rule;

typedef struct {
    sum_t histogram[DIGITS];
    sum_t warp[WARPS];
    sum_t found; /* what one thread tells the others */
    sum_t above;
} block_memory;

/* Bits that are ordered as the finite values are; -0 is 0. */
__device__ __forceinline__ uint32_t key_of(float z)
{
    const uint32_t bits = __float_as_uint(z + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float logit_of(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* cpu/sample.c's weight, operation by operation; the coefficients are cpu/exponential.h's. */
__device__ __forceinline__ sum_t weight_of(float z, float largest, float rate)
{
    const float term[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                          4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    const float x = __fmul_rn(__fsub_rn(z, largest), rate);
    if (!(x >= -NIB_SAMPLE_WEIGHT_BITS)) return 0;
    const float whole = rintf(x), r = __fmul_rn(__fsub_rn(x, whole), 0.693147181f);
    float sum = term[0];
#pragma unroll
    for (int i = 1; i < 6; i++) sum = __fadd_rn(__fmul_rn(sum, r), term[i]);
    sum = __fadd_rn(__fadd_rn(__fmul_rn(sum, __fmul_rn(r, r)), r), 1.0f);
    const float power = __uint_as_float((unsigned)(127 + NIB_SAMPLE_WEIGHT_BITS + (int)whole) << 23);
    return (sum_t)__fmul_rn(sum, power);
}

/* Over a block; every thread has the result. The first barrier keeps the last call's readers and this one's writers
 * apart. */
template <class Combine> __device__ sum_t block_combine(sum_t x, Combine combine, block_memory *shared)
{
    for (int apart = 16; apart > 0; apart /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, apart));
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared->warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = shared->warp[0];
    for (int w = 1; w < (int)blockDim.x / 32; w++) x = combine(x, shared->warp[w]);
    return x;
}

/* x of the warp's lower lanes and of this one. */
__device__ __forceinline__ sum_t inclusive_sum(sum_t x)
{
    const int lane = threadIdx.x % 32;
    for (int apart = 1; apart < 32; apart *= 2) {
        const sum_t below = __shfl_up_sync(0xffffffffu, x, apart);
        if (lane >= apart) x += below;
    }
    return x;
}

template <class Measure> __device__ sum_t block_total(const float *z, int V, Measure measure, block_memory *shared)
{
    sum_t sum = 0;
#pragma unroll 4
    for (int v = threadIdx.x; v < V; v += blockDim.x) sum += measure(z[v], v);
    return block_combine(
        sum, [](sum_t a, sum_t b) { return a + b; }, shared);
}

/* The largest logit's key above the complement of its lowest id; all ones if a logit is not finite. */
__device__ sum_t find_largest(const float *z, int V, block_memory *shared)
{
    sum_t largest = 0;
#pragma unroll 4
    for (int v = threadIdx.x; v < V; v += blockDim.x) {
        const float x = z[v];
        const sum_t own = isfinite(x) ? (sum_t)key_of(x) << 32 | ~(unsigned)v : ~sum_t{0};
        largest = max(largest, own);
    }
    return block_combine(
        largest, [](sum_t a, sum_t b) { return max(a, b); }, shared);
}

/* The digit at which the histogram's sum from its upper end reaches `wanted`; *above: the sum before it. */
__device__ int find_digit(sum_t wanted, sum_t *above, block_memory *shared)
{
    const int each = (DIGITS + blockDim.x - 1) / blockDim.x, first = DIGITS - 1 - (int)threadIdx.x * each;
    sum_t own = 0;
    for (int d = first; d > first - each && d >= 0; d--) own += shared->histogram[d];
    const sum_t through = inclusive_sum(own);
    __syncthreads();
    if (threadIdx.x % 32 == 31) shared->warp[threadIdx.x / 32] = through;
    __syncthreads();
    sum_t before = through - own;
    for (int w = 0; w < (int)threadIdx.x / 32; w++) before += shared->warp[w];
    if (before < wanted && wanted <= before + own) {
        int d = first;
        while (before + shared->histogram[d] < wanted) before += shared->histogram[d--];
        shared->found = (sum_t)d;
        shared->above = before;
    }
    __syncthreads();
    *above = shared->above;
    return (int)shared->found;
}

/* The largest key for which the logits of that key and above measure `wanted` or more; *above: those above alone. */
template <class Measure>
__device__ uint32_t select_key(const float *z, int V, sum_t wanted, Measure measure, sum_t *above, block_memory *shared)
{
    uint64_t key = 0;
    *above = 0;
    for (int shift = 32, bits; shift > 0;) {
        bits = shift < DIGIT_BITS ? shift : DIGIT_BITS;
        for (int d = threadIdx.x; d < DIGITS; d += blockDim.x) shared->histogram[d] = 0;
        __syncthreads();
#pragma unroll 4
        for (int v = threadIdx.x; v < V; v += blockDim.x) {
            const float x = z[v];
            const uint64_t own = key_of(x);
            const sum_t part = own >> shift == key ? measure(x, v) : 0;
            if (part > 0) atomicAdd(&shared->histogram[own >> (shift - bits) & ((1u << bits) - 1)], part);
        }
        __syncthreads();
        sum_t higher;
        const int digit = find_digit(wanted - *above, &higher, shared);
        *above += higher;
        key = key << bits | (unsigned)digit;
        shift -= bits;
    }
    return (uint32_t)key;
}

/* The first id at which the running sum of measures passes `target`, which is below their total. */
template <class Measure>
__device__ int locate(const float *z, int V, sum_t target, Measure measure, block_memory *shared)
{
    const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int each = (V + warps - 1) / warps, first = warp * each, end = min(first + each, V);
    sum_t sum = 0;
#pragma unroll 4
    for (int v = first + lane; v < end; v += 32) sum += measure(z[v], v);
    sum = inclusive_sum(sum);
    __syncthreads();
    if (lane == 31) shared->warp[warp] = sum;
    __syncthreads();
    sum_t before = 0;
    for (int w = 0; w < warp; w++) before += shared->warp[w];
    if (before <= target && target < before + shared->warp[warp]) /* a whole warp */
        for (int at = first; before <= target; at += 32) {
            const int v = at + lane;
            const sum_t through = before + inclusive_sum(v < end ? measure(z[v], v) : 0);
            const unsigned passed = __ballot_sync(0xffffffffu, through > target);
            if (passed != 0 && lane == __ffs((int)passed) - 1) shared->found = (sum_t)v;
            before = __shfl_sync(0xffffffffu, through, 31);
        }
    __syncthreads();
    return (int)shared->found;
}

__global__ void __launch_bounds__(THREADS)
    sample_kernel(rule r, const float *logits, int V, const int64_t *position, int32_t *id)
{
    block_memory *shared = dynamic_shared<block_memory>();
    const float *z = logits + (int64_t)blockIdx.x * V;
    const sum_t largest = find_largest(z, V, shared);
    const int best = largest == ~sum_t{0} ? -1 : (int)~(unsigned)largest;
    if (best < 0 || r.greedy) {
        if (threadIdx.x == 0) id[blockIdx.x] = best;
        return;
    }
    const float top = z[best];
    uint32_t key = 0; /* what is kept: keys above this one, and this one itself up to the id `last` */
    int last = V;
    sum_t above;
    const auto weight = [&](float x, int) { return weight_of(x, top, r.rate); };
    const auto tie = [&](float x, int) { return (sum_t)(key_of(x) == key); };
    const auto kept_weight = [&](float x, int v) {
        const uint32_t own = key_of(x);
        return own > key || (own == key && v <= last) ? weight_of(x, top, r.rate) : 0;
    };
    if (r.top_k < V) {
        const auto one = [](float, int) { return sum_t{1}; };
        key = select_key(z, V, (sum_t)r.top_k, one, &above, shared);
        last = locate(z, V, r.top_k - above - 1, tie, shared);
    }
    sum_t total = block_total(z, V, kept_weight, shared);
    if (r.top_p < 1.0) {
        const sum_t share = (sum_t)ceil(r.top_p * (double)total), wanted = min(max(share, sum_t{1}), total);
        key = select_key(z, V, wanted, weight, &above, shared); /* in all of V: where it stops nothing else counts */
        last = locate(z, V, (wanted - above - 1) / weight_of(logit_of(key), top, r.rate), tie, shared);
        total = block_total(z, V, kept_weight, shared);
    }
    const uint4 word = philox4x32(r.seed, 0, (uint64_t)position[blockIdx.x]);
    const sum_t target = __umul64hi((sum_t)word.x << 32 | word.y, total);
    const int chosen = locate(z, V, target, kept_weight, shared);
    if (threadIdx.x == 0) id[blockIdx.x] = chosen;
}

nib_status nib_cuda_sample(nib_ops *ops, nib_sampling sampling, const float *logits, int64_t rows, int64_t V,
                           const int64_t *position, int32_t *id)
{
    if (V < 1 || V > NIB_SAMPLE_VOCABULARY)
        return NIB_FAIL(NIB_ERROR_SHAPE, "sample: a vocabulary of %lld, expected 1 to %d", (long long)V,
                        NIB_SAMPLE_VOCABULARY);
    if (rows == 0) return NIB_OK;
    const size_t mark = ops->scratch->used;
    int64_t *device_position;
    NIB_TRY(nib_arena_take(ops->scratch, rows, sizeof *position, &device_position));
    nib_arena_reset(ops->scratch, mark);
    if (ops->rehearsal) return NIB_OK;
    NIB_TRY(ops->upload(ops, device_position, position, (size_t)rows * sizeof *position));
    rule r = {};
    r.greedy = sampling.temperature <= 0;
    if (!r.greedy) r.rate = (float)fmin(1.44269504088896340736 / sampling.temperature, FLT_MAX);
    r.top_p = sampling.top_p;
    r.top_k = (int)(sampling.top_k > 0 && sampling.top_k < V ? sampling.top_k : V);
    r.seed = sampling.seed;
    const int64_t threads = divide_up(V, 32) * 32;
    return nib_cuda_launch(sample_kernel, dim3((unsigned)rows), dim3((unsigned)(threads < THREADS ? threads : THREADS)),
                           sizeof(block_memory), nib_cuda_stream(ops), r, logits, (int)V,
                           (const int64_t *)device_position, id);
}
