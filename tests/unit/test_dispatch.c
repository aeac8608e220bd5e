/* The kernels of each lower instruction level, set in the backend's context, so that what runs on a processor without
 * AVX-512 or AVX2 is tested on one that has them. Levels that this machine lacks are the ones that run here anyway. */
#include "numeric.h"

#include "base/bf16.h"
#include "cpu/backend_internal.h"
#include "cpu/matmul.h"
#include "cpu/matvec.h"
#include "cpu/nf4.h"

#include <math.h>
#include <string.h>

/* 40 x 192 weights of every code, some scales negative zero, tiny and large. */
enum { ROWS = 40, COLUMNS = 192, BLOCKS = ROWS * COLUMNS / 64 };
typedef struct {
    uint8_t codes[ROWS * COLUMNS / 2];
    float absmax[BLOCKS];
    nib_nf4 nf4;
} weights;

static void weights_fill(weights *w)
{
    for (int i = 0; i < ROWS * COLUMNS / 2; i++) w->codes[i] = (uint8_t)(i * 37 + i / 256);
    for (int i = 0; i < BLOCKS; i++) w->absmax[i] = i % 7 == 0 ? 0.0f : ldexpf(1.0f + (float)i / BLOCKS, i % 31 - 20);
    w->nf4 = (nib_nf4){.codes = w->codes, .absmax = w->absmax};
}

/* The formula of bitsandbytes' blocks, written out: high nibble first, value times scale, rounded to bf16. */
static nib_bf16 expected(const weights *w, int64_t element)
{
    uint8_t pair = w->codes[element / 2];
    return nib_bf16_from_float(nib_nf4_values[element % 2 == 0 ? pair >> 4 : pair & 15] * w->absmax[element / 64]);
}

static void nf4_has_the_same_bits_at_every_level(void **state)
{
    (void)state;
    weights w;
    nib_ops *ops;
    static nib_bf16 narrow[ROWS * COLUMNS];
    static float wide[ROWS * COLUMNS];
    weights_fill(&w);
    w.absmax[3] = NAN; /* of a damaged model: stays one, to be found */
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    for (nib_cpu_level l = NIB_CPU_PORTABLE; l < NIB_CPU_LEVELS && nib_cpu_kernels_at(l) != NULL; l++) {
        nib_cpu_context_of(ops)->kernels = nib_cpu_kernels_at(l);
        memset(narrow, 0xff, sizeof narrow);
        nib_matrix out = {narrow, ROWS, COLUMNS, COLUMNS, NIB_DTYPE_BF16};
        assert_int_equal(nib_cpu_nf4_dequantize(ops, &w.nf4, out), NIB_OK);
        assert_int_equal(nib_cpu_nf4_dequantize(ops, &w.nf4, nib_test_matrix(wide, ROWS, COLUMNS)), NIB_OK);
        for (int64_t i = 0; i < ROWS * COLUMNS; i++) {
            assert_int_equal(narrow[i].bits, expected(&w, i).bits);
            float value = nib_bf16_to_float(expected(&w, i));
            assert_memory_equal(&wide[i], &value, sizeof value);
        }
    }
    nib_cpu_backend_free(ops);
}

/* Products of few rows against sums in double. Levels add in different orders: the bound is K roundings of the sum of
 * magnitudes, 192 * 2^-24. */
static void nf4_matvec_agrees_with_double_at_every_level(void **state)
{
    (void)state;
    weights w;
    nib_ops *ops;
    weights_fill(&w);
    nib_linear linear = {.K = COLUMNS, .parts = 3}; /* the last row, the 15 before it, the 24 before those */
    static const int64_t first[] = {39, 24, 0}, rows[] = {1, 15, 24};
    int64_t source[ROWS], outputs = 0; /* the row of w that each output is of */
    for (int p = 0; p < linear.parts; p++) {
        linear.part[p] = (nib_linear_part){
            .rows = rows[p],
            .nf4 = {.codes = w.codes + first[p] * COLUMNS / 2, .absmax = w.absmax + first[p] * COLUMNS / 64}};
        for (int64_t row = 0; row < rows[p]; row++) source[outputs++] = first[p] + row;
    }
    float *x = nib_test_values(1, NIB_CPU_MATVEC_ROWS * COLUMNS), y[NIB_CPU_MATVEC_ROWS * ROWS];
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    for (nib_cpu_level l = NIB_CPU_PORTABLE; l < NIB_CPU_LEVELS && nib_cpu_kernels_at(l) != NULL; l++) {
        nib_cpu_context_of(ops)->kernels = nib_cpu_kernels_at(l);
        for (int64_t M = 1; M <= NIB_CPU_MATVEC_ROWS; M++) {
            assert_int_equal(nib_cpu_nf4_matvec(ops, &linear, M, x, y), NIB_OK);
            for (int64_t i = 0; i < M * ROWS; i++) {
                double sum = 0, size = 0;
                for (int64_t k = 0; k < COLUMNS; k++) {
                    double term = (double)nib_bf16_to_float(expected(&w, source[i % ROWS] * COLUMNS + k)) *
                                  (double)x[i / ROWS * COLUMNS + k];
                    sum += term;
                    size += fabs(term);
                }
                assert_true(fabs(y[i] - sum) <= size * COLUMNS * 0x1p-24);
            }
        }
    }
    nib_free(x);
    nib_cpu_backend_free(ops);
}

/* The same of dense weights, K with and without a rest beside whole vectors. */
static void dense_matvec_agrees_with_double_at_every_level(void **state)
{
    (void)state;
    enum { N = 5, MOST = 75 };
    nib_ops *ops;
    float *x = nib_test_values(1, NIB_CPU_MATVEC_ROWS * MOST), *w = nib_test_values(2, N * MOST),
          y[NIB_CPU_MATVEC_ROWS * N];
    nib_bf16 narrow[N * MOST];
    for (int i = 0; i < N * MOST; i++) w[i] = nib_bf16_to_float(narrow[i] = nib_bf16_from_float(w[i]));
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    for (nib_cpu_level l = NIB_CPU_PORTABLE; l < NIB_CPU_LEVELS && nib_cpu_kernels_at(l) != NULL; l++) {
        nib_cpu_context_of(ops)->kernels = nib_cpu_kernels_at(l);
        static const int64_t sizes[] = {1, 7, 16, 33, 64, MOST};
        for (int64_t i = 0; i < 2 * NIB_CPU_MATVEC_ROWS * 6; i++) {
            const int64_t K = sizes[i % 6], M = i / 6 % NIB_CPU_MATVEC_ROWS + 1;
            const nib_matrix b = i < NIB_CPU_MATVEC_ROWS * 6 ? (nib_matrix){w, N, K, MOST, NIB_DTYPE_F32}
                                                             : (nib_matrix){narrow, N, K, MOST, NIB_DTYPE_BF16};
            const nib_matrix a = {x, M, K, MOST, NIB_DTYPE_F32};
            assert_int_equal(nib_cpu_dense_matvec(ops, a, b, NULL, nib_test_matrix(y, M, N)), NIB_OK);
            for (int64_t at = 0; at < M * N; at++) {
                double sum = 0, size = 0;
                for (int64_t k = 0; k < K; k++) {
                    double term = (double)w[at % N * MOST + k] * (double)x[at / N * MOST + k];
                    sum += term;
                    size += fabs(term);
                }
                assert_true(fabs(y[at] - sum) <= size * (double)(K + 1) * 0x1p-24);
            }
        }
    }
    nib_free(x);
    nib_free(w);
    nib_cpu_backend_free(ops);
}

/* bf16 without bf16 instructions: the operands are exact in fp32, so the product is fp32's, rounded once. */
static void widened_bf16_products_are_those_of_fp32(void **state)
{
    (void)state;
    enum { M = 29, N = 48, K = 70 };
    nib_ops *ops;
    nib_bf16 a[M * K], b[N * K], c[M * N];
    float *values = nib_test_values(5, M * K + N * K), wide_a[M * K], wide_b[N * K], wide_c[M * N], c32[M * N];
    for (int i = 0; i < M * K; i++) wide_a[i] = nib_bf16_to_float(a[i] = nib_bf16_from_float(values[i]));
    for (int i = 0; i < N * K; i++) wide_b[i] = nib_bf16_to_float(b[i] = nib_bf16_from_float(values[M * K + i]));
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    nib_cpu_context_of(ops)->bf16_matmul = false;
    nib_matrix narrow_a = {a, M, K, K, NIB_DTYPE_BF16}, narrow_b = {b, N, K, K, NIB_DTYPE_BF16};
    nib_matrix narrow_c = {c, M, N, N, NIB_DTYPE_BF16};
    assert_int_equal(nib_cpu_matmul(ops, nib_test_matrix(wide_a, M, K), false, nib_test_matrix(wide_b, N, K), true,
                                    false, nib_test_matrix(wide_c, M, N)),
                     NIB_OK);
    assert_int_equal(nib_cpu_matmul(ops, narrow_a, false, narrow_b, true, false, narrow_c), NIB_OK);
    assert_int_equal(nib_cpu_matmul(ops, narrow_a, false, narrow_b, true, false, nib_test_matrix(c32, M, N)), NIB_OK);
    for (int i = 0; i < M * N; i++) {
        assert_memory_equal(&c32[i], &wide_c[i], sizeof c32[i]);
        assert_int_equal(c[i].bits, nib_bf16_from_float(wide_c[i]).bits);
    }
    /* Accumulating adds in fp32 to what was there, then rounds, to 2^-8 of the value; a sum near 0 keeps what its two
     * parts were off. */
    assert_int_equal(nib_cpu_matmul(ops, narrow_a, false, narrow_b, true, true, narrow_c), NIB_OK);
    for (int i = 0; i < M * N; i++) {
        float twice = nib_bf16_to_float(nib_bf16_from_float(wide_c[i])) + wide_c[i];
        assert_true(fabsf(nib_bf16_to_float(c[i]) - twice) <= fabsf(twice) * 0x1p-8f + 1e-6f);
    }
    assert_int_equal(ops->scratch->used, 0);
    nib_free(values);
    nib_cpu_backend_free(ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nf4_has_the_same_bits_at_every_level),
        cmocka_unit_test(nf4_matvec_agrees_with_double_at_every_level),
        cmocka_unit_test(dense_matvec_agrees_with_double_at_every_level),
        cmocka_unit_test(widened_bf16_products_are_those_of_fp32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
