/* y = x W^T and dx = dy W with both operands in e4m3, W from NF4 at each pass.
 *
 * x and dy have a scale for each row (cuda/quantize_e4m3.h), W one for all parts: e4m3 keeps its three bits of mantissa
 * over a range of 2^14, far more than the parts' weights differ by, and dx is a sum over all of them. The tensor cores
 * want both operands with the summed dimension side by side ("TN", which is all that Hopper has), so W is decoded as it
 * lies for y, transposed for dx. W is frozen: no product for its gradient. 1 byte a weight is written and read again.
 *
 * What stays in bf16: the adapters, whose products add to y and dx (cuda/linear.cu), and everything but the linears.
 * Measured against bf16 and fp32: profiling/results/fp8.md.
 *
 * The weights' scale is a bound's, not the largest weight's: of double-quantised ones, absmax <= nested absmax + offset
 * in each group of 16384 weights, of which there are few enough for one block. A scale too large by two costs nothing
 * (cuda/e4m3.cuh). */
#include "cuda/backend.h"
#include "cuda/e4m3.cuh"
#include "cuda/launch.cuh"
#include "cuda/linear_fp8.h"
#include "cuda/linear_parts.cuh"
#include "cuda/nf4_dequantize.h"
#include "cuda/quantize_e4m3.h"
#include "cuda/reduce.cuh"

namespace
{

constexpr int THREADS = 1024, GROUP = 256; /* blocks of a nested absmax */

/* scale[0 .. count - 1] = that of all parts' weights. One block. */
__global__ void __launch_bounds__(THREADS) linear_fp8_scale_kernel(linear_parts parts, float *scale, int64_t count)
{
    float largest = 0.0f;
    for (int p = 0; p < parts.count; p++) {
        const nib_nf4 &nf4 = parts.part[p].nf4;
        const int64_t blocks = (parts.part[p].rows * parts.K + 63) / 64;
        if (nf4.absmax != nullptr)
            for (int64_t i = threadIdx.x; i < blocks; i += THREADS) largest = fmaxf(largest, fabsf(nf4.absmax[i]));
        else
            for (int64_t i = threadIdx.x; i * GROUP < blocks; i += THREADS)
                largest = fmaxf(largest, __fadd_rn(fabsf(nf4.nested_absmax[i]), fabsf(nf4.nested_offset)));
    }
    largest = block_max(largest, dynamic_shared<float>());
    const float value = __uint_as_float(e4m3_scale_bits(__float_as_uint(largest)));
    for (int64_t i = threadIdx.x; i < count; i += THREADS) scale[i] = value;
}

nib_status check(const nib_linear *linear)
{
    bool fits = linear->K % 16 == 0;
    for (int p = 0; p < linear->parts; p++)
        fits = fits && linear->part[p].rows % 16 == 0 && linear->part[p].nf4.codes != NULL;
    return fits ? NIB_OK
                : NIB_FAIL(NIB_ERROR_SHAPE,
                           "linear %s in fp8: [%lld, %lld] in %d parts, expected NF4, K and the rows of each part "
                           "multiples of 16",
                           linear->name, (long long)nib_linear_outputs(linear), (long long)linear->K, linear->parts);
}

/* W [outputs, K], or its transpose, in ops->scratch. */
nib_status take_weight(nib_ops *ops, const nib_linear *linear, bool transposed, nib_cuda_e4m3 *weight)
{
    const int64_t N = nib_linear_outputs(linear), K = linear->K, rows = transposed ? K : N,
                  columns = transposed ? N : K;
    *weight = {NULL, rows, columns, columns, NULL};
    NIB_TRY(nib_arena_take(ops->scratch, rows * columns, 1, &weight->data));
    NIB_TRY(nib_arena_take(ops->scratch, rows, sizeof(float), &weight->scale));
    NIB_TRY(nib_cuda_launch(linear_fp8_scale_kernel, dim3(1), dim3(THREADS), 32 * sizeof(float), nib_cuda_stream(ops),
                            linear_parts_of(linear, nib_dropout{}), weight->scale, rows));
    for (int64_t p = 0, row = 0; p < linear->parts; row += linear->part[p++].rows) {
        const nib_linear_part *part = &linear->part[p];
        NIB_TRY(transposed ? nib_cuda_nf4_dequantize_e4m3_transposed(ops, &part->nf4, part->rows, K, weight->scale,
                                                                     weight->data + row, N)
                           : nib_cuda_nf4_dequantize_e4m3(ops, &part->nf4, part->rows, K, weight->scale,
                                                          weight->data + row * K, K));
    }
    return NIB_OK;
}

nib_status multiply(nib_ops *ops, const nib_linear *linear, nib_matrix from, bool transposed, bool accumulate,
                    nib_matrix to)
{
    nib_cuda_e4m3 weight, narrow;
    const size_t mark = ops->scratch->used;
    NIB_TRY(check(linear));
    nib_status status = take_weight(ops, linear, transposed, &weight);
    if (status == NIB_OK) status = nib_cuda_quantize_e4m3(ops, from, &narrow);
    if (status == NIB_OK) status = nib_cuda_matmul_e4m3(ops, &narrow, &weight, accumulate, to);
    nib_arena_reset(ops->scratch, mark);
    return status;
}

} // namespace

nib_status nib_cuda_linear_fp8_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix y)
{
    return multiply(ops, linear, x, false, false, y);
}

nib_status nib_cuda_linear_fp8_backward(nib_ops *ops, const nib_linear *linear, nib_matrix dy, bool accumulate,
                                        nib_matrix dx)
{
    return multiply(ops, linear, dy, true, accumulate, dx);
}
