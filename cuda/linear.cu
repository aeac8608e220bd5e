/* y = x W^T + bias + scale B (A dropout(x)), for several weights W that read the same x.
 *
 * Many rows: the weights of all parts are dequantised below each other into scratch, [outputs, K] bf16, which both the
 * forward product (read transposed) and dX (read as it is) take; 2 bytes a weight are written and read again, which is
 * 1 % of a training step. Few rows, as in generation: the codes are decoded in registers (cuda/nf4_small_matmul.h).
 * The adapter's own products, bound by the passes over activations, are in cuda/lora.h.
 *
 * Dettmers et al., "QLoRA", 2023. */
#include "cuda/backend.h"
#include "cuda/convert.h"
#include "cuda/intrinsics.cuh"
#include "cuda/launch.cuh"
#include "cuda/linear.h"
#include "cuda/lora.h"
#include "cuda/matmul.h"
#include "cuda/nf4_dequantize.h"
#include "cuda/nf4_small_matmul.h"
#include "cuda/status.cuh"

static const int THREADS = 256;

/* y[t][n] += bias[n]; a block takes THREADS columns of one row. */
__global__ void add_bias_kernel(__nv_bfloat16 *y, int64_t stride, const float *bias, int64_t n)
{
    int64_t c = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    __nv_bfloat16 *at = y + (int64_t)blockIdx.x * stride + c;
    if (c < n) *at = to_bf16(to_float(*at) + bias[c]);
}

/* dbias[n] += sum over t of dy[t][n], in order of t; one thread a column. */
__global__ void bias_backward_kernel(const __nv_bfloat16 *dy, int64_t stride, int64_t T, float *dbias, int64_t n)
{
    int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (c >= n) return;
    float sum = dbias[c];
    for (int64_t t = 0; t < T; t++) sum += to_float(dy[t * stride + c]);
    dbias[c] = sum;
}

static unsigned blocks_for(int64_t n) { return (unsigned)((n + THREADS - 1) / THREADS); }

static nib_status scratch_matrix(nib_ops *ops, int64_t rows, int64_t columns, nib_matrix *matrix)
{
    *matrix = {NULL, rows, columns, columns, NIB_DTYPE_BF16};
    return nib_arena_take(ops->scratch, rows * columns, sizeof(nib_bf16), &matrix->data);
}

static nib_status check(const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    int64_t N = nib_linear_outputs(linear), R = nib_linear_ranks(linear);
    if (x.columns != linear->K || y.columns != N || y.rows != x.rows || x.dtype != NIB_DTYPE_BF16 ||
        y.dtype != NIB_DTYPE_BF16)
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "linear %s: x [%lld, %lld] %s to y [%lld, %lld] %s, expected [T, %lld] to [T, %lld] in BF16",
                        linear->name, (long long)x.rows, (long long)x.columns, nib_dtype_name(x.dtype),
                        (long long)y.rows, (long long)y.columns, nib_dtype_name(y.dtype), (long long)linear->K,
                        (long long)N);
    if (R > 0 && (u.data == NULL || u.rows != x.rows || u.columns != R || u.dtype != x.dtype))
        return NIB_FAIL(NIB_ERROR_SHAPE, "linear %s: u is [%lld, %lld], expected [%lld, %lld]", linear->name,
                        (long long)u.rows, (long long)u.columns, (long long)x.rows, (long long)R);
    return NIB_OK;
}

/* W [outputs, K] of all parts. */
static nib_status base_weight(nib_ops *ops, const nib_linear *linear, nib_matrix *weight)
{
    const nib_linear_part *only = &linear->part[0];
    if (linear->parts == 1 && only->nf4.codes == NULL && only->dense.dtype == NIB_DTYPE_BF16) {
        *weight = only->dense;
        return NIB_OK;
    }
    NIB_TRY(scratch_matrix(ops, nib_linear_outputs(linear), linear->K, weight));
    for (int64_t p = 0, row = 0; p < linear->parts; row += linear->part[p++].rows) {
        const nib_linear_part *part = &linear->part[p];
        nib_matrix rows = nib_matrix_rows(*weight, row, part->rows);
        NIB_TRY(part->nf4.codes != NULL ? nib_cuda_nf4_dequantize(ops, &part->nf4, rows)
                                        : nib_cuda_convert(ops, part->dense, rows));
    }
    return NIB_OK;
}

static nib_status add_bias(nib_ops *ops, const nib_linear *linear, nib_matrix y)
{
    for (int64_t p = 0, first = 0; p < linear->parts; first += linear->part[p++].rows) {
        const nib_linear_part *part = &linear->part[p];
        nib_matrix of_part = nib_matrix_columns(y, first, part->rows);
        if (part->bias != NULL)
            NIB_TRY(nib_cuda_launch(add_bias_kernel, dim3((unsigned)y.rows, blocks_for(part->rows)), dim3(THREADS), 0,
                                    nib_cuda_stream(ops), (__nv_bfloat16 *)of_part.data, of_part.stride, part->bias,
                                    part->rows));
    }
    return NIB_OK;
}

static nib_status forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                          nib_matrix y)
{
    nib_matrix weight;
    NIB_TRY(nib_cuda_lora_down(ops, linear, x, dropout, u));
    if (nib_cuda_nf4_small_matmul_takes(linear, x.rows)) return nib_cuda_nf4_small_matmul(ops, linear, x, u, y);
    NIB_TRY(base_weight(ops, linear, &weight));
    NIB_TRY(nib_cuda_matmul(ops, x, false, weight, true, false, y));
    NIB_TRY(add_bias(ops, linear, y));
    return nib_cuda_lora_up(ops, linear, u, y);
}

nib_status nib_cuda_linear_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                   nib_matrix u, nib_matrix y)
{
    NIB_TRY(check(linear, x, u, y));
    if (x.rows == 0) return NIB_OK;
    size_t mark = ops->scratch->used;
    nib_status status = forward(ops, linear, x, dropout, u, y);
    nib_arena_reset(ops->scratch, mark);
    return status;
}

/* dW and dbias of a part that is trained itself. */
static nib_status weight_backward(nib_ops *ops, const nib_linear_part *part, nib_matrix x, nib_matrix dy)
{
    if (part->dweight != NULL) {
        nib_matrix dw = {part->dweight, part->rows, x.columns, x.columns, NIB_DTYPE_F32};
        NIB_TRY(nib_cuda_matmul(ops, dy, true, x, false, true, dw));
    }
    if (part->dbias == NULL) return NIB_OK;
    return nib_cuda_launch(bias_backward_kernel, dim3(blocks_for(part->rows)), dim3(THREADS), 0, nib_cuda_stream(ops),
                           (const __nv_bfloat16 *)dy.data, dy.stride, dy.rows, part->dbias, part->rows);
}

static nib_status lora_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                                nib_matrix dy, nib_matrix dx)
{
    nib_matrix du;
    NIB_TRY(scratch_matrix(ops, x.rows, nib_linear_ranks(linear), &du));
    NIB_TRY(nib_cuda_lora_du(ops, linear, dy, du));
    NIB_TRY(nib_cuda_lora_gradients(ops, linear, x, dropout, u, dy, du));
    return dx.data == NULL ? NIB_OK : nib_cuda_lora_dx(ops, linear, du, dropout, dx);
}

static nib_status backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                           nib_matrix dy, bool accumulate, nib_matrix dx)
{
    if (dx.data != NULL) {
        nib_matrix weight;
        size_t mark = ops->scratch->used;
        NIB_TRY(base_weight(ops, linear, &weight));
        NIB_TRY(nib_cuda_matmul(ops, dy, false, weight, false, accumulate, dx));
        nib_arena_reset(ops->scratch, mark); /* in one stream, the product is done before anything writes there */
    }
    for (int64_t p = 0, first = 0; p < linear->parts; first += linear->part[p++].rows)
        NIB_TRY(weight_backward(ops, &linear->part[p], x, nib_matrix_columns(dy, first, linear->part[p].rows)));
    return nib_linear_ranks(linear) == 0 ? NIB_OK : lora_backward(ops, linear, x, dropout, u, dy, dx);
}

nib_status nib_cuda_linear_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                    nib_matrix u, nib_matrix dy, bool accumulate, nib_matrix dx)
{
    NIB_TRY(check(linear, x, u, dy));
    if (x.rows == 0) return NIB_OK;
    size_t mark = ops->scratch->used;
    nib_status status = backward(ops, linear, x, dropout, u, dy, accumulate, dx);
    nib_arena_reset(ops->scratch, mark);
    return status;
}
