/* y = x W^T + bias + scale B (A dropout(x)), for several weights W that read the same x.
 *
 * Many rows: the weights of all parts are dequantised below each other into scratch, which both the forward product
 * (read transposed) and dX (read as it is) take, with the adapters beside them: linear and adapters are one product
 * (cuda/linear_joined.h). 2 bytes a weight are written and read again, which is 1 % of a training step. On Hopper y and
 * dx may instead be made of weights that are decoded in registers (cuda/nf4_matmul_hopper.h), each where that has been
 * measured to be faster. Few rows, as in generation: the codes are decoded in registers (cuda/nf4_small_matmul.h). In
 * 8-bit floating point the base is a product of its own (cuda/linear_fp8.h), to which the adapters', in bf16, add what
 * they have. Under dropout u and the adapters' part of dx have masks of their own (cuda/lora_masked.cu). Gradients of A
 * and B: cuda/lora_gradients.cu. DoRA: cuda/linear_dora.cu.
 *
 * Dettmers et al., "QLoRA", 2023. */
#include "cuda/backend.h"
#include "cuda/choice.h"
#include "cuda/intrinsics.cuh"
#include "cuda/launch.cuh"
#include "cuda/linear.h"
#include "cuda/linear_dora.h"
#include "cuda/linear_fp8.h"
#include "cuda/linear_joined.h"
#include "cuda/lora.h"
#include "cuda/matmul.h"
#include "cuda/nf4_matmul_hopper.h"
#include "cuda/nf4_small_matmul.h"
#include "cuda/status.cuh"

#include <string.h>

static const int THREADS = 256;

/* dbias[n] += sum over t of dy[t][n], in order of t; one thread a column. */
__global__ void bias_backward_kernel(const __nv_bfloat16 *dy, int64_t stride, int64_t T, float *dbias, int64_t n)
{
    int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (c >= n) return;
    float sum = dbias[c];
    for (int64_t t = 0; t < T; t++) sum += to_float(dy[t * stride + c]);
    dbias[c] = sum;
}

nib_status nib_cuda_linear_check(const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    int64_t N = nib_linear_outputs(linear), R = nib_linear_ranks(linear);
    if (x.columns < linear->K || y.columns < N || y.rows != x.rows || x.dtype != NIB_DTYPE_BF16 ||
        y.dtype != NIB_DTYPE_BF16)
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "linear %s: x [%lld, %lld] %s to y [%lld, %lld] %s, expected [T, %lld] to [T, %lld] in BF16",
                        linear->name, (long long)x.rows, (long long)x.columns, nib_dtype_name(x.dtype),
                        (long long)y.rows, (long long)y.columns, nib_dtype_name(y.dtype), (long long)linear->K,
                        (long long)N);
    if (R > 0 && (u.data == NULL || u.rows != x.rows || u.columns != R || u.dtype != x.dtype))
        return NIB_FAIL(NIB_ERROR_SHAPE, "linear %s: u is [%lld, %lld], expected [%lld, %lld]", linear->name,
                        (long long)u.rows, (long long)u.columns, (long long)x.rows, (long long)R);
    if ((linear->fp8_forward || linear->fp8_backward) && nib_linear_is_dora(linear))
        return NIB_FAIL(NIB_ERROR_SHAPE, "linear %s: DoRA's products are in bf16, not in 8 bits", linear->name);
    return NIB_OK;
}

/* u = dropout(x) A^T beside x, its columns padded as A's rows are. */
static nib_status down(nib_ops *ops, const nib_linear *linear, const nib_cuda_joined *j, nib_matrix x,
                       nib_dropout dropout, nib_matrix u)
{
    if (j->ranks == 0) return NIB_OK;
    return dropout.p > 0.0f ? nib_cuda_lora_down_masked(ops, linear, x, dropout, j->a, u)
                            : nib_cuda_matmul(ops, x, false, j->a, true, false, u);
}

/* y = x W^T in e4m3, then y += [u | 1] [scale B | bias]^T. */
static nib_status forward_fp8(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                              nib_matrix y)
{
    nib_cuda_joined j;
    nib_matrix beside;
    x = nib_matrix_columns(x, 0, linear->K);
    NIB_TRY(nib_cuda_linear_fp8_forward(ops, linear, x, y));
    NIB_TRY(nib_cuda_joined_adapters(ops, linear, &j));
    if (j.room == 0) return NIB_OK;
    NIB_TRY(nib_cuda_joined_take(ops, x.rows, j.room, &beside));
    NIB_TRY(down(ops, linear, &j, x, dropout, nib_matrix_columns(beside, 0, j.ranks)));
    NIB_TRY(nib_cuda_joined_finish(ops, linear, beside, u));
    return nib_cuda_matmul(ops, beside, false, j.beside, true, true, y);
}

/* A product of many rows with NF4 weights, and by which of the two ways. */
typedef struct nf4_call {
    nib_status (*make)(const struct nf4_call *call);
    nib_ops *ops;
    const nib_linear *linear;
    nib_matrix from, to; /* x and y, or [dy | du] and dx */
    nib_matrix u;        /* y's, and its dropout */
    nib_dropout dropout;
    bool decoded; /* in registers, by cuda/nf4_matmul_hopper.h; else dequantised into scratch */
} nf4_call;

static nib_status make_y(const nf4_call *call)
{
    nib_ops *ops = call->ops;
    nib_cuda_joined j;
    nib_matrix operand;
    NIB_TRY(call->decoded ? nib_cuda_joined_adapters(ops, call->linear, &j)
                          : nib_cuda_joined_weight(ops, call->linear, &j));
    NIB_TRY(nib_cuda_joined_operand(ops, call->from, j.K, j.room, &operand));
    NIB_TRY(down(ops, call->linear, &j, nib_matrix_columns(operand, 0, j.K), call->dropout,
                 nib_matrix_columns(operand, j.K, j.ranks)));
    NIB_TRY(nib_cuda_joined_finish(ops, call->linear, nib_matrix_columns(operand, j.K, j.room), call->u));
    return call->decoded ? nib_cuda_nf4_matmul_hopper(ops, call->linear, operand, j.beside, call->to)
                         : nib_cuda_matmul(ops, operand, false, j.rows, true, false, call->to);
}

static nib_status multiply_dx(const nf4_call *call, const nib_cuda_joined *j)
{
    return call->decoded ? nib_cuda_nf4_matmul_hopper_backward(call->ops, call->linear, call->from, j->a, call->to)
                         : nib_cuda_matmul(call->ops, call->from, false, j->columns, false, false, call->to);
}

/* Without what a backward pass does beside it, which adds up and cannot be repeated. */
static nib_status make_dx(const nf4_call *call)
{
    nib_cuda_joined j;
    NIB_TRY(call->decoded ? nib_cuda_joined_adapters(call->ops, call->linear, &j)
                          : nib_cuda_joined_weight(call->ops, call->linear, &j));
    return multiply_dx(call, &j);
}

static nib_status make_once(void *user)
{
    const nf4_call *call = (const nf4_call *)user;
    const size_t mark = call->ops->scratch->used;
    const nib_status status = call->make(call);
    nib_arena_reset(call->ops->scratch, mark);
    return status;
}

/* nib_matmul_measure: dequantised, decoded. */
static nib_status time_ways(void *user, int ways, float *microseconds)
{
    nf4_call call = *(const nf4_call *)user;
    for (int way = 0; way < ways; way++) {
        call.decoded = way == 1;
        NIB_TRY(nib_cuda_matmul_time(nib_cuda_matmul_cache_of(call.ops), make_once, &call, &microseconds[way]));
    }
    return NIB_OK;
}

/* Sets call->decoded: the faster way for such products, with W^T (for y) or W, measured when they are first met.
 * Without cublasLt's products there is no question. */
static nib_status choose_way(nf4_call *call, nib_cuda_choice kernel, bool transposed)
{
    static const char *const name[] = {"weights dequantised", "weights decoded in registers"};
    const uint64_t hash[] = {nib_matmul_hash(name[0], strlen(name[0])), nib_matmul_hash(name[1], strlen(name[1]))};
    nib_ops *ops = call->ops;
    const nib_linear *linear = call->linear;
    const int64_t sum = transposed ? linear->K : nib_linear_outputs(linear);
    const int64_t room = transposed ? nib_linear_room(linear) : nib_linear_padded_ranks(linear);
    const nib_matmul_class shape = {nib_matmul_class_size(call->to.rows),
                                    nib_matmul_class_size(call->to.columns),
                                    nib_matmul_class_size(sum),
                                    0,
                                    transposed,
                                    0,
                                    16,
                                    16,
                                    16,
                                    1,
                                    (int32_t)room};
    int chosen;
    call->decoded = false;
    if (ops->rehearsal || nib_cuda_is_plain(ops, kernel) ||
        !nib_cuda_nf4_matmul_hopper_takes(ops, linear, call->from, call->to))
        return NIB_OK;
    call->decoded = nib_cuda_is_plain(ops, NIB_CUDA_MATMUL);
    if (call->decoded) return NIB_OK;
    nib_matmul_choices *choices = nib_cuda_matmul_choices(nib_cuda_matmul_cache_of(ops));
    for (int way = 0; way < 2 && !nib_matmul_is_known(choices, &shape); way++) { /* so that their own are chosen */
        call->decoded = way == 1;
        NIB_TRY(make_once(call));
    }
    NIB_TRY(nib_matmul_choose(choices, &shape, 2, hash, name, time_ways, call, &chosen));
    call->decoded = chosen == 1;
    return NIB_OK;
}

static nib_status forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                          nib_matrix y)
{
    const bool dora = nib_linear_is_dora(linear);
    if (nib_cuda_nf4_small_matmul_takes(linear, x.rows) && !(dora && dropout.p > 0.0f)) {
        x = nib_matrix_columns(x, 0, linear->K);
        NIB_TRY(nib_cuda_lora_down_plain(ops, linear, x, dropout, u));
        return nib_cuda_nf4_small_matmul(ops, linear, x, u, y);
    }
    if (dora) return nib_cuda_linear_dora_forward(ops, linear, x, dropout, u, y);
    if (nib_cuda_is_plain(ops, NIB_CUDA_LINEAR)) return nib_cuda_linear_forward_plain(ops, linear, x, dropout, u, y);
    if (linear->fp8_forward) return forward_fp8(ops, linear, x, dropout, u, y);
    nf4_call call = {make_y, ops, linear, x, y, u, dropout, false};
    NIB_TRY(choose_way(&call, NIB_CUDA_NF4_MATMUL_HOPPER, true));
    return make_y(&call);
}

nib_status nib_cuda_linear_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                   nib_matrix u, nib_matrix y)
{
    NIB_TRY(nib_cuda_linear_check(linear, x, u, y));
    if (x.rows == 0) return NIB_OK;
    size_t mark = ops->scratch->used;
    nib_status status = forward(ops, linear, x, dropout, u, nib_matrix_columns(y, 0, nib_linear_outputs(linear)));
    nib_arena_reset(ops->scratch, mark);
    return status;
}

/* dW and dbias of a part that is trained itself. */
nib_status nib_cuda_linear_weight_backward(nib_ops *ops, const nib_linear_part *part, nib_matrix x, nib_matrix dy)
{
    if (part->dweight != NULL) {
        nib_matrix dw = {part->dweight, part->rows, x.columns, x.columns, NIB_DTYPE_F32};
        NIB_TRY(nib_cuda_matmul(ops, dy, true, x, false, true, dw));
    }
    if (part->dbias == NULL) return NIB_OK;
    return nib_cuda_launch(bias_backward_kernel, dim3((unsigned)((part->rows + THREADS - 1) / THREADS)), dim3(THREADS),
                           0, nib_cuda_stream(ops), (const __nv_bfloat16 *)dy.data, dy.stride, dy.rows, part->dbias,
                           part->rows);
}

/* The base's part of dx in e4m3; du and its part of dx, operand [dy | du] and j, in bf16. */
static nib_status backward_fp8(nib_ops *ops, const nib_linear *linear, const nib_cuda_joined *j, nib_matrix operand,
                               nib_dropout dropout, bool accumulate, nib_matrix dx)
{
    const nib_matrix du = nib_matrix_columns(operand, j->N, j->ranks);
    NIB_TRY(nib_cuda_linear_fp8_backward(ops, linear, nib_matrix_columns(operand, 0, j->N), accumulate, dx));
    if (j->ranks == 0) return NIB_OK;
    return dropout.p > 0.0f ? nib_cuda_lora_dx_masked(ops, linear, du, dropout, j->a, true, dx)
                            : nib_cuda_matmul(ops, du, false, j->a, false, true, dx);
}

static nib_status backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                           nib_matrix dy, bool accumulate, nib_matrix dx)
{
    nib_cuda_joined j;
    nib_matrix operand;
    if (nib_linear_is_dora(linear))
        return nib_cuda_linear_dora_backward(ops, linear, x, dropout, u, dy, accumulate, dx);
    if (nib_cuda_is_plain(ops, NIB_CUDA_LINEAR))
        return nib_cuda_linear_backward_plain(ops, linear, x, dropout, u, dy, accumulate, dx);
    const int64_t N = nib_linear_outputs(linear), ranks = nib_linear_padded_ranks(linear);
    const bool masked = ranks > 0 && dropout.p > 0.0f, weightless = linear->fp8_backward || dx.data == NULL;
    NIB_TRY(nib_cuda_joined_operand(ops, dy, N, ranks, &operand));
    nf4_call call = {make_dx, ops, linear, operand, dx, {}, {}, false};
    if (!weightless && !masked && !accumulate) NIB_TRY(choose_way(&call, NIB_CUDA_NF4_MATMUL_HOPPER_BACKWARD, false));
    NIB_TRY(weightless || call.decoded ? nib_cuda_joined_adapters(ops, linear, &j)
                                       : nib_cuda_joined_weight(ops, linear, &j));
    dy = nib_matrix_columns(operand, 0, N);
    const nib_matrix du = nib_matrix_columns(operand, N, ranks);
    for (int64_t p = 0, first = 0; p < linear->parts; first += linear->part[p++].rows)
        NIB_TRY(nib_cuda_linear_weight_backward(ops, &linear->part[p], x,
                                                nib_matrix_columns(dy, first, linear->part[p].rows)));
    if (ranks > 0) {
        NIB_TRY(nib_cuda_matmul(ops, dy, false, j.b, false, false, du));
        NIB_TRY(nib_cuda_lora_gradients(ops, linear, x, dropout, u, dy, du));
    }
    if (dx.data == NULL) return NIB_OK;
    if (linear->fp8_backward) return backward_fp8(ops, linear, &j, operand, dropout, accumulate, dx);
    if (masked) return nib_cuda_lora_dx_masked(ops, linear, operand, dropout, j.columns, accumulate, dx);
    return accumulate ? nib_cuda_matmul(ops, operand, false, j.columns, false, true, dx) : multiply_dx(&call, &j);
}

nib_status nib_cuda_linear_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                    nib_matrix u, nib_matrix dy, bool accumulate, nib_matrix dx)
{
    NIB_TRY(nib_cuda_linear_check(linear, x, u, dy));
    if (x.rows == 0) return NIB_OK;
    size_t mark = ops->scratch->used;
    x = nib_matrix_columns(x, 0, linear->K);
    nib_status status = backward(ops, linear, x, dropout, u, dy, accumulate, dx);
    nib_arena_reset(ops->scratch, mark);
    return status;
}
