/* NF4 quantisation (Dettmers et al., "QLoRA", 2023) with the bits of bitsandbytes.
 *
 * nf4_quantize: absmax of 64 values, then for each value the number of midpoints between neighbouring NF4 values that
 *   lie below value / absmax. Eight lanes share a block of 64: a lane loads 8 values (32 bytes), the largest is found
 *   by three shuffles, a lane writes 4 bytes of codes. 256 threads, no shared memory.
 * nf4_quantize_absmax: mean of all absmax; then in nested blocks of 256 the difference to the mean, divided by its
 *   largest, rounded to a grid of 65536 steps on [-1, 1] and to the nearest entry of the map. The mean is summed in the
 *   order of numpy's and torch's pairwise sum, without which the offset would differ in its last bit: the tree's leaves
 *   (at most 128 values) one a thread, then its levels one after the other in one block. Then 256 threads, one nested
 *   block each.
 * Divisions and sums are rounded one by one: no contraction, no approximate reciprocal.
 */
#include "cuda/backend.h"
#include "cuda/intrinsics.cuh"
#include "cuda/launch.cuh"
#include "cuda/nf4_quantize.h"
#include "cuda/reduce.cuh"
#include "cuda/status.cuh"

namespace
{

constexpr int THREADS = 256;

struct nf4_midpoints {
    float value[15];
};

/* Eight values from `first` on; zeros after the last of n. */
__device__ void load_values(const float *weight, int64_t first, int64_t n, float (&value)[8])
{
    if (first + 8 <= n) {
        const uint4 low = load16_stream(weight + first), high = load16_stream(weight + first + 4);
        const uint32_t bits[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        for (int i = 0; i < 8; i++) value[i] = __uint_as_float(bits[i]);
        return;
    }
    for (int i = 0; i < 8; i++) value[i] = first + i < n ? weight[first + i] : 0.0f;
}

__device__ uint32_t nearest_code(float x, const nf4_midpoints &midpoints)
{
    uint32_t code = 0;
    for (int i = 0; i < 15; i++) code += x > midpoints.value[i];
    return code;
}

__global__ void __launch_bounds__(THREADS)
    nf4_quantize_kernel(const float *weight, int64_t n, nf4_midpoints midpoints, uint8_t *codes, float *absmax)
{
    const int64_t group = (int64_t)blockIdx.x * THREADS + threadIdx.x, first = group * 8;
    float value[8], largest = 0.0f;
    load_values(weight, first, n, value);
    for (int i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(value[i]));
    for (int lane = 1; lane < 8; lane *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
    if (first >= n) return;
    if (group % 8 == 0) absmax[group / 8] = largest;

    const float inverse = largest > 0.0f ? __fdiv_rn(1.0f, largest) : 0.0f;
    uint32_t packed = 0;
    for (int i = 0; i < 8; i++) {
        const uint32_t code = first + i < n ? nearest_code(__fmul_rn(value[i], inverse), midpoints) : 0;
        packed |= code << (8 * (i / 2) + (i % 2 == 0 ? 4 : 0));
    }
    if (first + 8 <= n)
        *reinterpret_cast<uint32_t *>(codes + first / 2) = packed;
    else
        for (int64_t i = first / 2; i < (n + 1) / 2; i++) codes[i] = (uint8_t)(packed >> (8 * (i - first / 2)));
}

/* Pairwise summation: a node of more than 128 values is split at half of them, rounded down to a multiple of 8. */
constexpr int PAIRWISE_LEAF = 128;

struct pairwise_node {
    int64_t first, size;
};

/* Node `index` of level `level`. Below a leaf, its leftmost descendant stands for it and the others are empty. */
__device__ pairwise_node pairwise_node_at(int64_t n, int level, int64_t index)
{
    pairwise_node node = {0, n};
    for (int bit = level - 1; bit >= 0; bit--) {
        const bool right = (index >> bit & 1) != 0;
        if (node.size <= PAIRWISE_LEAF) {
            if (right) node.size = 0;
            continue;
        }
        const int64_t half = node.size / 2 / 8 * 8;
        node.first += right ? half : 0;
        node.size = right ? node.size - half : half;
    }
    return node;
}

__device__ float pairwise_leaf_sum(const float *x, int64_t n)
{
    int64_t i = 0;
    float sum = 0.0f;
    if (n >= 8) {
        float lane[8];
        for (int j = 0; j < 8; j++) lane[j] = x[j];
        for (i = 8; i + 8 <= n; i += 8)
            for (int j = 0; j < 8; j++) lane[j] += x[i + j];
        sum = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
    }
    for (; i < n; i++) sum += x[i];
    return sum;
}

__global__ void __launch_bounds__(THREADS) pairwise_leaves_kernel(const float *x, int64_t n, int levels, float *partial)
{
    const int64_t slot = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (slot >= (int64_t)1 << levels) return;
    const pairwise_node leaf = pairwise_node_at(n, levels, slot);
    if (leaf.size > 0) partial[slot] = pairwise_leaf_sum(x + leaf.first, leaf.size);
}

/* One block. The sum of a node stands in the slot of its leftmost leaf. */
__global__ void __launch_bounds__(THREADS) pairwise_mean_kernel(int64_t n, int levels, float *partial, float *mean)
{
    for (int level = levels - 1; level >= 0; level--) {
        const int shift = levels - level;
        for (int64_t index = threadIdx.x; index < (int64_t)1 << level; index += THREADS)
            if (pairwise_node_at(n, level, index).size > PAIRWISE_LEAF)
                partial[index << shift] += partial[(index << shift) + ((int64_t)1 << (shift - 1))];
        __syncthreads();
    }
    if (threadIdx.x == 0) *mean = __fdiv_rn(partial[0], (float)n);
}

constexpr float GRID_STEPS = 65535.0f;

__device__ uint8_t nearest_of_map(float x, const float *map)
{
    int low = 0, high = 255;
    while (low < high) { /* first entry not below x */
        const int middle = (low + high) / 2;
        if (map[middle] < x)
            low = middle + 1;
        else
            high = middle;
    }
    return (uint8_t)(low > 0 && x - map[low - 1] <= map[low] - x ? low - 1 : low);
}

__global__ void __launch_bounds__(THREADS)
    nf4_quantize_absmax_kernel(const float *absmax, int64_t blocks, const float *mean, const float *map, uint8_t *codes,
                               float *nested_absmax)
{
    float *warp_largest = dynamic_shared<float>(); /* [THREADS / 32] */
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const float difference = i < blocks ? absmax[i] - *mean : 0.0f;
    float largest = warp_max(fabsf(difference));
    if (threadIdx.x % 32 == 0) warp_largest[threadIdx.x / 32] = largest;
    __syncthreads();
    for (int warp = 0; warp < THREADS / 32; warp++) largest = fmaxf(largest, warp_largest[warp]);
    if (threadIdx.x == 0) nested_absmax[blockIdx.x] = largest;
    if (i >= blocks) return;

    const float inverse = largest > 0.0f ? __fdiv_rn(1.0f, largest) : 0.0f;
    const float scaled = __fmul_rn(difference, inverse);
    const float step = floorf(__fadd_rn(__fmul_rn(__fadd_rn(scaled, 1.0f), GRID_STEPS / 2.0f), 0.5f));
    codes[i] = nearest_of_map(__fadd_rn(__fmul_rn(step, 2.0f / GRID_STEPS), -1.0f), map);
}

/* Levels of the tree of n values below its root. */
int pairwise_levels(int64_t n)
{
    int levels = 0;
    /* The right half is the larger one: at most 8 + half. */
    for (int64_t largest = n; largest > PAIRWISE_LEAF; largest -= largest / 2 / 8 * 8) levels++;
    return levels;
}

} // namespace

nib_status nib_cuda_nf4_quantize(nib_ops *ops, const float *weight, int64_t n, uint8_t *codes, float *absmax)
{
    if ((uintptr_t)weight % 16 != 0 || (uintptr_t)codes % 4 != 0)
        return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_quantize: values at %p and codes at %p, expected multiples of 16 and 4",
                        (const void *)weight, (const void *)codes);
    if (n == 0) return NIB_OK;
    nf4_midpoints midpoints;
    for (int i = 0; i < 15; i++)
        midpoints.value[i] = (float)(((double)nib_nf4_values[i] + (double)nib_nf4_values[i + 1]) / 2);
    const int64_t groups = (n + 7) / 8;
    return nib_cuda_launch(nf4_quantize_kernel, dim3((unsigned)((groups + THREADS - 1) / THREADS)), dim3(THREADS), 0,
                           nib_cuda_stream(ops), weight, n, midpoints, codes, absmax);
}

static nib_status quantize_absmax(nib_ops *ops, const float *absmax, int64_t blocks, const float *nested_map,
                                  uint8_t *absmax_codes, float *nested_absmax, float *nested_offset)
{
    const cudaStream_t stream = nib_cuda_stream(ops);
    const int levels = pairwise_levels(blocks);
    const int64_t slots = (int64_t)1 << levels;
    float *partial, *mean;
    NIB_TRY(nib_arena_take(ops->scratch, slots, sizeof *partial, &partial));
    NIB_TRY(nib_arena_take(ops->scratch, 1, sizeof *mean, &mean));
    NIB_TRY(nib_cuda_launch(pairwise_leaves_kernel, dim3((unsigned)((slots + THREADS - 1) / THREADS)), dim3(THREADS), 0,
                            stream, absmax, blocks, levels, partial));
    NIB_TRY(nib_cuda_launch(pairwise_mean_kernel, dim3(1), dim3(THREADS), 0, stream, blocks, levels, partial, mean));
    NIB_TRY(nib_cuda_launch(nf4_quantize_absmax_kernel, dim3((unsigned)((blocks + 255) / 256)), dim3(THREADS),
                            THREADS / 32 * sizeof(float), stream, absmax, blocks, mean, nested_map, absmax_codes,
                            nested_absmax));
    NIB_TRY(ops->download(ops, nested_offset, mean, sizeof *mean));
    return ops->synchronize(ops);
}

nib_status nib_cuda_nf4_quantize_absmax(nib_ops *ops, const float *absmax, int64_t blocks, const float *nested_map,
                                        uint8_t *absmax_codes, float *nested_absmax, float *nested_offset)
{
    *nested_offset = 0.0f;
    if (blocks == 0) return NIB_OK;
    const size_t mark = ops->scratch->used;
    const nib_status status =
        quantize_absmax(ops, absmax, blocks, nested_map, absmax_codes, nested_absmax, nested_offset);
    nib_arena_reset(ops->scratch, mark);
    return status;
}
