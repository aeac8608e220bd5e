/* h = f(g) u, so du = dh f(g) and dg = dh u f'(g), where f is one of
 *     SiLU       g sigmoid(g)
 *     GELU       g Phi(g), Phi the normal distribution (Hendrycks & Gimpel, 2016)
 *     GELU tanh  g (1 + tanh z) / 2 = g sigmoid(2 z), z = sqrt(2 / pi) (g + 0.044715 g^3), of the same paper. */
#include "cpu/glu.h"
#include "cpu/backend_internal.h"
#include "cpu/vector.h"

#include <math.h>

#define PIECE 256 /* columns worked on in fp32 at a time */

static nib_status check(nib_activation activation, nib_matrix gate_up, nib_matrix h)
{
    if (activation != NIB_ACTIVATION_SILU && activation != NIB_ACTIVATION_GELU_TANH &&
        activation != NIB_ACTIVATION_GELU)
        return NIB_FAIL(NIB_ERROR_SHAPE, "glu: there is no activation %d", (int)activation);
    if (gate_up.rows != h.rows || gate_up.columns != 2 * h.columns || gate_up.dtype != h.dtype)
        return NIB_FAIL(NIB_ERROR_SHAPE, "glu: gate_up [%lld, %lld], h [%lld, %lld]", (long long)gate_up.rows,
                        (long long)gate_up.columns, (long long)h.rows, (long long)h.columns);
    return NIB_OK;
}

NIB_INLINE nib_v16 sigmoid(nib_v16 x)
{
    return 1.0f / (1.0f + nib_v16_exp(nib_v16_select(x < -88.0f, nib_v16_set(88.0f), -x)));
}

/* Phi(x), by erfc, which is exact in the lower tail too, and its derivative. */
NIB_INLINE void normal(nib_v16 x, nib_v16 *distribution, nib_v16 *density)
{
    float lanes[16];
    memcpy(lanes, &x, sizeof lanes);
    for (int i = 0; i < 16; i++) lanes[i] = 0.5f * erfcf(lanes[i] * -0.70710678118654752f);
    memcpy(distribution, lanes, sizeof lanes);
    *density = 0.39894228040143268f * nib_v16_exp(x * x * -0.5f);
}

/* f(x), and f'(x) if it is asked for. */
NIB_INLINE nib_v16 activate(nib_activation activation, nib_v16 x, nib_v16 *derivative)
{
    nib_v16 share, slope; /* f(x) = x share(x), slope = share' */
    if (activation == NIB_ACTIVATION_GELU) {
        normal(x, &share, &slope);
    } else if (activation == NIB_ACTIVATION_GELU_TANH) {
        share = sigmoid(x * (1.59576912160573071f + 0.07135481282553515f * x * x));
        slope = share * (1.0f - share) * (1.59576912160573071f + 0.21406443847660545f * x * x);
    } else {
        share = sigmoid(x);
        slope = share * (1.0f - share);
    }
    if (derivative != NULL) *derivative = share + x * slope;
    return x * share;
}

/* n <= PIECE columns; what is beyond n in the pieces is never stored. */
NIB_CPU_CLONES static void forward_piece(nib_activation activation, const void *gate, const void *up, nib_dtype dtype,
                                         int64_t n, void *h)
{
    float g[PIECE] = {0}, u[PIECE] = {0};
    nib_load_row(gate, dtype, n, g);
    nib_load_row(up, dtype, n, u);
    for (int64_t i = 0; i < n; i += 16) {
        nib_v16 x = *(nib_v16 *)(g + i);
        *(nib_v16 *)(g + i) = activate(activation, x, NULL) * *(nib_v16 *)(u + i);
    }
    nib_store_row(g, dtype, n, h);
}

NIB_CPU_CLONES static void backward_piece(nib_activation activation, const void *dh, void *gate, void *up,
                                          nib_dtype dtype, int64_t n)
{
    float d[PIECE] = {0}, g[PIECE] = {0}, u[PIECE] = {0};
    nib_load_row(dh, dtype, n, d);
    nib_load_row(gate, dtype, n, g);
    nib_load_row(up, dtype, n, u);
    for (int64_t i = 0; i < n; i += 16) {
        nib_v16 dy = *(nib_v16 *)(d + i), derivative;
        nib_v16 y = activate(activation, *(nib_v16 *)(g + i), &derivative);
        *(nib_v16 *)(g + i) = dy * *(nib_v16 *)(u + i) * derivative;
        *(nib_v16 *)(u + i) = dy * y;
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
            forward_piece(activation, nib_matrix_at(nib_matrix_columns(gate_up, c, n), t, 0),
                          nib_matrix_at(nib_matrix_columns(gate_up, h.columns + c, n), t, 0), h.dtype, n,
                          nib_matrix_at(nib_matrix_columns(h, c, n), t, 0));
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
            backward_piece(activation, nib_matrix_at(nib_matrix_columns(dh, c, n), t, 0),
                           nib_matrix_at(nib_matrix_columns(gate_up, c, n), t, 0),
                           nib_matrix_at(nib_matrix_columns(gate_up, dh.columns + c, n), t, 0), dh.dtype, n);
        }
    return NIB_OK;
}
