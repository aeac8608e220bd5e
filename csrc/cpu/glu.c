/* SwiGLU: h = g sigmoid(g) u. With s = sigmoid(g): du = dh g s, dg = dh u s (1 + g (1 - s)). */
#include "cpu/glu.h"
#include "cpu/backend_internal.h"
#include "cpu/vector.h"

#define PIECE 256 /* columns worked on in fp32 at a time */

static nib_status check(nib_activation activation, nib_matrix gate_up, nib_matrix h)
{
    if (activation != NIB_ACTIVATION_SILU)
        return NIB_FAIL(NIB_ERROR_SHAPE, "glu: activation %d is not supported on the CPU", (int)activation);
    if (gate_up.rows != h.rows || gate_up.columns != 2 * h.columns || gate_up.dtype != h.dtype)
        return NIB_FAIL(NIB_ERROR_SHAPE, "glu: gate_up [%lld, %lld], h [%lld, %lld]", (long long)gate_up.rows,
                        (long long)gate_up.columns, (long long)h.rows, (long long)h.columns);
    return NIB_OK;
}

NIB_INLINE nib_v16 sigmoid(nib_v16 x)
{
    return 1.0f / (1.0f + nib_v16_exp(nib_v16_select(x < -88.0f, nib_v16_set(88.0f), -x)));
}

/* n <= PIECE columns; what is beyond n in the pieces is never stored. */
NIB_CPU_CLONES static void forward_piece(const void *gate, const void *up, nib_dtype dtype, int64_t n, void *h)
{
    float g[PIECE] = {0}, u[PIECE] = {0};
    nib_load_row(gate, dtype, n, g);
    nib_load_row(up, dtype, n, u);
    for (int64_t i = 0; i < n; i += 16) {
        nib_v16 x = *(nib_v16 *)(g + i);
        *(nib_v16 *)(g + i) = x * sigmoid(x) * *(nib_v16 *)(u + i);
    }
    nib_store_row(g, dtype, n, h);
}

NIB_CPU_CLONES static void backward_piece(const void *dh, void *gate, void *up, nib_dtype dtype, int64_t n)
{
    float d[PIECE] = {0}, g[PIECE] = {0}, u[PIECE] = {0};
    nib_load_row(dh, dtype, n, d);
    nib_load_row(gate, dtype, n, g);
    nib_load_row(up, dtype, n, u);
    for (int64_t i = 0; i < n; i += 16) {
        nib_v16 x = *(nib_v16 *)(g + i), s = sigmoid(x), dy = *(nib_v16 *)(d + i);
        *(nib_v16 *)(g + i) = dy * *(nib_v16 *)(u + i) * s * (1.0f + x * (1.0f - s));
        *(nib_v16 *)(u + i) = dy * x * s;
    }
    nib_store_row(g, dtype, n, gate);
    nib_store_row(u, dtype, n, up);
}

nib_status nib_cpu_glu_forward(nib_ops *ops, nib_activation activation, nib_matrix gate_up, nib_matrix h)
{
    (void)ops;
    NIB_TRY(check(activation, gate_up, h));
#pragma omp parallel for schedule(static) if (h.rows > 1)
    for (int64_t t = 0; t < h.rows; t++)
        for (int64_t c = 0; c < h.columns; c += PIECE) {
            int64_t n = h.columns - c < PIECE ? h.columns - c : PIECE;
            forward_piece(nib_row(nib_matrix_columns(gate_up, c, n), t),
                          nib_row(nib_matrix_columns(gate_up, h.columns + c, n), t), h.dtype, n,
                          nib_row(nib_matrix_columns(h, c, n), t));
        }
    return NIB_OK;
}

nib_status nib_cpu_glu_backward(nib_ops *ops, nib_activation activation, nib_matrix dh, nib_matrix gate_up)
{
    (void)ops;
    NIB_TRY(check(activation, gate_up, dh));
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < dh.rows; t++)
        for (int64_t c = 0; c < dh.columns; c += PIECE) {
            int64_t n = dh.columns - c < PIECE ? dh.columns - c : PIECE;
            backward_piece(nib_row(nib_matrix_columns(dh, c, n), t), nib_row(nib_matrix_columns(gate_up, c, n), t),
                           nib_row(nib_matrix_columns(gate_up, dh.columns + c, n), t), dh.dtype, n);
        }
    return NIB_OK;
}
