/* y = gain z + bias, z = W x + scale B u: the joined product of cuda/linear_joined.h without the bias, in fp32, and the
 * kernels of cuda/dora.h behind it. z is not kept: rounding it to bf16 before it is scaled would lose what the gain has
 * learnt until it has moved by 2^-9, so a chunk of tokens at a time is written in fp32 and read again, 8 bytes an
 * output.
 *
 * Backward, with s = gain dy:  dmagnitude = sum over t of dy z / norm,  du = s (scale B),  dx = s W + du A,
 * and the adapter's gradients are LoRA's of s. z is computed again, a third product of the base's size where LoRA has
 * two, rather than kept, which would take as much memory as all other activations of a layer together.
 *
 * Under dropout, as in PEFT, d = dropout(x) with a mask for each part takes the place of x in what the gain changes:
 *     y = W x + bias + (gain - 1) z + scale B u,  z = W d + scale B u,  dx = dy W + mask ((s - dy) W + du A) / (1 - p).
 */
#include "cuda/backend.h"
#include "cuda/choice.h"
#include "cuda/convert.h"
#include "cuda/dora.h"
#include "cuda/launch.cuh"
#include "cuda/linear.h"
#include "cuda/linear_dora.h"
#include "cuda/linear_joined.h"
#include "cuda/lora.h"
#include "cuda/matmul.h"
#include "cuda/token_chunks.cuh"
#include "cuda/vector.cuh"

namespace
{

constexpr int64_t CHUNK = 1024; /* tokens */

nib_linear without_bias(const nib_linear *linear)
{
    nib_linear copy = *linear;
    for (int p = 0; p < copy.parts; p++) copy.part[p].bias = NULL;
    return copy;
}

nib_status take_sums(nib_ops *ops, int64_t rows, int64_t columns, nib_matrix *sums)
{
    *sums = {NULL, rows, columns, columns, NIB_DTYPE_F32};
    return nib_arena_take(ops->scratch, rows * columns, sizeof(float), &sums->data);
}

/* Where a part stands in S, and among the padded columns of u and du. */
struct place {
    int64_t row, rows, rank, ranks;
};

/* visit(p, place) of every part that has an adapter. */
template <class Visit> nib_status each_adapter(const nib_linear *linear, Visit visit)
{
    place at = {};
    for (int p = 0; p < linear->parts; p++) {
        at.rows = linear->part[p].rows;
        at.ranks = divide_up(linear->part[p].lora.rank, 8) * 8;
        if (at.ranks > 0) NIB_TRY(visit(p, at));
        at.row += at.rows;
        at.rank += at.ranks;
    }
    return NIB_OK;
}

/* z [rows, N] fp32 of tokens first, first + 1, ...; x and padded u of these tokens; where a part has no DoRA, none. */
nib_status find_z(nib_ops *ops, const nib_linear *linear, const nib_cuda_joined *j, int64_t first, nib_matrix x,
                  nib_matrix u, nib_dropout dropout, nib_matrix z)
{
    const nib_matrix weight = nib_matrix_rows(j->columns, 0, j->N);
    nib_matrix dropped;
    if (dropout.p <= 0.0f) {
        NIB_TRY(nib_cuda_matmul(ops, x, false, weight, true, false, z));
        return nib_cuda_matmul(ops, u, false, j->b, true, true, z);
    }
    NIB_TRY(nib_cuda_joined_take(ops, x.rows, j->K, &dropped));
    return each_adapter(linear, [&](int p, place at) {
        const nib_matrix out = nib_matrix_columns(z, at.row, at.rows);
        const nib_matrix b = nib_matrix_columns(nib_matrix_rows(j->b, at.row, at.rows), at.rank, at.ranks);
        if (linear->part[p].lora.dora.gain == NULL) return NIB_OK;
        NIB_TRY(nib_cuda_lora_drop(ops, first, x, dropout, p, dropped));
        NIB_TRY(nib_cuda_matmul(ops, dropped, false, nib_matrix_rows(weight, at.row, at.rows), true, false, out));
        return nib_cuda_matmul(ops, nib_matrix_columns(u, at.rank, at.ranks), false, b, true, true, out);
    });
}

/* y of tokens first, first + 1, ..., from [x | u]. */
nib_status output_chunk(nib_ops *ops, const nib_linear *linear, const nib_cuda_joined *j, int64_t first,
                        nib_matrix operand, nib_dropout dropout, nib_matrix y)
{
    nib_matrix base, z;
    NIB_TRY(take_sums(ops, y.rows, j->N, &base));
    NIB_TRY(nib_cuda_matmul(ops, operand, false, j->rows, true, false, base));
    z = base;
    if (dropout.p > 0.0f) {
        NIB_TRY(take_sums(ops, y.rows, j->N, &z));
        NIB_TRY(find_z(ops, linear, j, first, nib_matrix_columns(operand, 0, j->K),
                       nib_matrix_columns(operand, j->K, j->ranks), dropout, z));
    }
    return nib_cuda_dora_output(ops, linear, base, z, y);
}

/* dmagnitude += what tokens first, first + 1, ... add to it. */
nib_status magnitude_chunk(nib_ops *ops, const nib_linear *linear, const nib_cuda_joined *j, int64_t first,
                           nib_matrix x, nib_matrix u, nib_dropout dropout, nib_matrix dy)
{
    nib_matrix z;
    NIB_TRY(take_sums(ops, x.rows, j->N, &z));
    NIB_TRY(find_z(ops, linear, j, first, x, u, dropout, z));
    return nib_cuda_dora_magnitude(ops, linear, dy, z);
}

/* dx under dropout of tokens first, first + 1, ...; du padded. */
nib_status dropped_dx_chunk(nib_ops *ops, const nib_linear *linear, const nib_cuda_joined *j, int64_t first,
                            nib_matrix dy, nib_matrix du, nib_dropout dropout, bool accumulate, nib_matrix dx)
{
    const nib_matrix weight = nib_matrix_rows(j->columns, 0, j->N);
    nib_matrix sum, through, more; /* more [rows, N] = (gain - 1) dy */
    NIB_TRY(take_sums(ops, dx.rows, j->K, &sum));
    NIB_TRY(take_sums(ops, dx.rows, j->K, &through));
    NIB_TRY(nib_cuda_joined_take(ops, dx.rows, j->N, &more));
    if (accumulate) NIB_TRY(nib_cuda_convert(ops, dx, sum));
    NIB_TRY(nib_cuda_matmul(ops, dy, false, weight, false, accumulate, sum));
    NIB_TRY(nib_cuda_dora_gradient(ops, linear, dy, 1.0f, more));
    const auto add = [&](int p, place at) {
        NIB_TRY(nib_cuda_matmul(ops, nib_matrix_columns(du, at.rank, at.ranks), false,
                                nib_matrix_rows(j->a, at.rank, at.ranks), false, false, through));
        NIB_TRY(nib_cuda_matmul(ops, nib_matrix_columns(more, at.row, at.rows), false,
                                nib_matrix_rows(weight, at.row, at.rows), false, true, through));
        return nib_cuda_lora_add_dropped(ops, first, through, dropout, p, sum);
    };
    NIB_TRY(each_adapter(linear, add));
    return nib_cuda_convert(ops, sum, dx);
}

/* dA and dB from dy scaled by gains; du padded. */
nib_status adapter_gradients(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                             nib_matrix scaled, nib_matrix du)
{
    nib_matrix narrow;
    if (!nib_cuda_is_plain(ops, NIB_CUDA_LINEAR))
        return nib_cuda_lora_gradients(ops, linear, x, dropout, u, scaled, du);
    NIB_TRY(nib_cuda_joined_take(ops, u.rows, u.columns, &narrow));
    NIB_TRY(nib_cuda_lora_du_plain(ops, linear, scaled, narrow));
    return nib_cuda_lora_gradients_plain(ops, linear, x, dropout, u, scaled, narrow);
}

} // namespace

nib_status nib_cuda_linear_dora_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                        nib_matrix u, nib_matrix y)
{
    const nib_linear unbiased = without_bias(linear);
    nib_cuda_joined j;
    nib_matrix operand;
    NIB_TRY(nib_cuda_joined_weight(ops, &unbiased, &j));
    NIB_TRY(nib_cuda_joined_operand(ops, x, j.K, j.room, &operand));
    const nib_matrix inside = nib_matrix_columns(operand, 0, j.K), beside = nib_matrix_columns(operand, j.K, j.ranks);
    NIB_TRY(dropout.p > 0.0f ? nib_cuda_lora_down_masked(ops, linear, inside, dropout, j.a, beside)
                             : nib_cuda_matmul(ops, inside, false, j.a, true, false, beside));
    NIB_TRY(nib_cuda_joined_finish(ops, &unbiased, beside, u));
    return for_each_chunk(ops, x.rows, CHUNK, [&](int64_t first, int64_t rows) {
        return output_chunk(ops, linear, &j, first, nib_matrix_rows(operand, first, rows), dropout,
                            nib_matrix_rows(y, first, rows));
    });
}

nib_status nib_cuda_linear_dora_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                         nib_matrix u, nib_matrix dy, bool accumulate, nib_matrix dx)
{
    const nib_linear unbiased = without_bias(linear);
    nib_cuda_joined j;
    nib_matrix padded, operand; /* operand [T, N + ranks] = [gain dy | du] */
    NIB_TRY(nib_cuda_joined_weight(ops, &unbiased, &j));
    NIB_TRY(nib_cuda_joined_spread(ops, linear, u, &padded));
    NIB_TRY(nib_cuda_joined_take(ops, x.rows, j.N + j.ranks, &operand));
    const nib_matrix scaled = nib_matrix_columns(operand, 0, j.N), du = nib_matrix_columns(operand, j.N, j.ranks);
    dy = nib_matrix_columns(dy, 0, j.N);
    for (int64_t p = 0, first = 0; p < linear->parts; first += linear->part[p++].rows) /* a bias is not scaled */
        NIB_TRY(nib_cuda_linear_weight_backward(ops, &linear->part[p], x,
                                                nib_matrix_columns(dy, first, linear->part[p].rows)));
    NIB_TRY(for_each_chunk(ops, x.rows, CHUNK, [&](int64_t first, int64_t rows) {
        return magnitude_chunk(ops, linear, &j, first, nib_matrix_rows(x, first, rows),
                               nib_matrix_rows(padded, first, rows), dropout, nib_matrix_rows(dy, first, rows));
    }));
    NIB_TRY(nib_cuda_dora_gradient(ops, linear, dy, 0.0f, scaled));
    NIB_TRY(nib_cuda_matmul(ops, scaled, false, j.b, false, false, du));
    NIB_TRY(adapter_gradients(ops, linear, x, dropout, u, scaled, du));
    if (dx.data == NULL) return NIB_OK;
    if (dropout.p <= 0.0f) return nib_cuda_matmul(ops, operand, false, j.columns, false, accumulate, dx);
    return for_each_chunk(ops, x.rows, CHUNK, [&](int64_t first, int64_t rows) {
        return dropped_dx_chunk(ops, linear, &j, first, nib_matrix_rows(dy, first, rows),
                                nib_matrix_rows(du, first, rows), dropout, accumulate,
                                nib_matrix_rows(dx, first, rows));
    });
}
