/* A linear and its adapters as products of their own, the adapters' by the kernels of cuda/lora_plain.cu: the oracle of
 * cuda/linear.cu. y and dx are rounded once more for each product that is added. */
#include "cuda/backend.h"
#include "cuda/convert.h"
#include "cuda/intrinsics.cuh"
#include "cuda/launch.cuh"
#include "cuda/linear.h"
#include "cuda/linear_fp8.h"
#include "cuda/lora.h"
#include "cuda/matmul.h"
#include "cuda/nf4_dequantize.h"

static const int THREADS = 256;

/* y[t][n] += bias[n]; a block takes THREADS columns of one row. */
__global__ void add_bias_kernel(__nv_bfloat16 *y, int64_t stride, const float *bias, int64_t n)
{
    int64_t c = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    __nv_bfloat16 *at = y + (int64_t)blockIdx.x * stride + c;
    if (c < n) *at = to_bf16(to_float(*at) + bias[c]);
}

/* W [outputs, K] of all parts. */
static nib_status base_weight(nib_ops *ops, const nib_linear *linear, nib_matrix *weight)
{
    const int64_t N = nib_linear_outputs(linear);
    *weight = {NULL, N, linear->K, linear->K, NIB_DTYPE_BF16};
    NIB_TRY(nib_arena_take(ops->scratch, N * linear->K, sizeof(nib_bf16), &weight->data));
    for (int64_t p = 0, row = 0; p < linear->parts; row += linear->part[p++].rows) {
        const nib_linear_part *part = &linear->part[p];
        nib_matrix rows = nib_matrix_rows(*weight, row, part->rows);
        NIB_TRY(part->nf4.codes != NULL ? nib_cuda_nf4_dequantize(ops, &part->nf4, rows)
                                        : nib_cuda_convert(ops, part->dense, rows));
    }
    return NIB_OK;
}

/* y = x W^T; dx = dy W (+ dx). */
static nib_status base_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix y)
{
    nib_matrix weight;
    if (linear->fp8_forward) return nib_cuda_linear_fp8_forward(ops, linear, x, y);
    NIB_TRY(base_weight(ops, linear, &weight));
    return nib_cuda_matmul(ops, x, false, weight, true, false, y);
}

static nib_status base_backward(nib_ops *ops, const nib_linear *linear, nib_matrix dy, bool accumulate, nib_matrix dx)
{
    nib_matrix weight;
    if (dx.data == NULL) return NIB_OK;
    if (linear->fp8_backward) return nib_cuda_linear_fp8_backward(ops, linear, dy, accumulate, dx);
    NIB_TRY(base_weight(ops, linear, &weight));
    return nib_cuda_matmul(ops, dy, false, weight, false, accumulate, dx);
}

static nib_status add_bias(nib_ops *ops, const nib_linear *linear, nib_matrix y)
{
    for (int64_t p = 0, first = 0; p < linear->parts; first += linear->part[p++].rows) {
        const nib_linear_part *part = &linear->part[p];
        nib_matrix of_part = nib_matrix_columns(y, first, part->rows);
        if (part->bias != NULL)
            NIB_TRY(nib_cuda_launch(add_bias_kernel,
                                    dim3((unsigned)y.rows, (unsigned)((part->rows + THREADS - 1) / THREADS)),
                                    dim3(THREADS), 0, nib_cuda_stream(ops), (__nv_bfloat16 *)of_part.data,
                                    of_part.stride, part->bias, part->rows));
    }
    return NIB_OK;
}

nib_status nib_cuda_linear_forward_plain(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                         nib_matrix u, nib_matrix y)
{
    NIB_TRY(nib_cuda_linear_check(linear, x, u, y));
    if (x.rows == 0) return NIB_OK;
    size_t mark = ops->scratch->used;
    x = nib_matrix_columns(x, 0, linear->K);
    nib_status status = base_forward(ops, linear, x, y);
    if (status == NIB_OK) status = add_bias(ops, linear, y);
    if (status == NIB_OK) status = nib_cuda_lora_down_plain(ops, linear, x, dropout, u);
    if (status == NIB_OK) status = nib_cuda_lora_up_plain(ops, linear, u, y);
    nib_arena_reset(ops->scratch, mark);
    return status;
}

static nib_status lora_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                                nib_matrix dy, nib_matrix dx)
{
    const int64_t ranks = nib_linear_ranks(linear);
    nib_matrix du = {NULL, x.rows, ranks, ranks, NIB_DTYPE_BF16};
    NIB_TRY(nib_arena_take(ops->scratch, x.rows * ranks, sizeof(nib_bf16), &du.data));
    NIB_TRY(nib_cuda_lora_du_plain(ops, linear, dy, du));
    NIB_TRY(nib_cuda_lora_gradients_plain(ops, linear, x, dropout, u, dy, du));
    return dx.data == NULL ? NIB_OK : nib_cuda_lora_dx_plain(ops, linear, du, dropout, dx);
}

static nib_status backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                           nib_matrix dy, bool accumulate, nib_matrix dx)
{
    NIB_TRY(base_backward(ops, linear, dy, accumulate, dx));
    for (int64_t p = 0, first = 0; p < linear->parts; first += linear->part[p++].rows)
        NIB_TRY(nib_cuda_linear_weight_backward(ops, &linear->part[p], x,
                                                nib_matrix_columns(dy, first, linear->part[p].rows)));
    return nib_linear_ranks(linear) == 0 ? NIB_OK : lora_backward(ops, linear, x, dropout, u, dy, dx);
}

nib_status nib_cuda_linear_backward_plain(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                          nib_matrix u, nib_matrix dy, bool accumulate, nib_matrix dx)
{
    NIB_TRY(nib_cuda_linear_check(linear, x, u, dy));
    if (x.rows == 0) return NIB_OK;
    size_t mark = ops->scratch->used;
    nib_status status = backward(ops, linear, nib_matrix_columns(x, 0, linear->K), dropout, u,
                                 nib_matrix_columns(dy, 0, nib_linear_outputs(linear)), accumulate, dx);
    nib_arena_reset(ops->scratch, mark);
    return status;
}
