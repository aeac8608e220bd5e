/* Linear layers over dense and NF4 weights with LoRA: values against double arithmetic, gradients against differences,
 * bf16 against fp32, threads against one thread. */
#include "numeric.h"

#include "base/bf16.h"

#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { T = 37, K = 128, PARTS = 3, RANK = 4 };
static const int64_t rows_of[PARTS] = {96, 32, 48};
enum { N = 96 + 32 + 48, RANKS = PARTS * RANK };

typedef struct {
    nib_ops *ops;
    nib_linear linear;
    nib_dropout dropout;
    uint64_t key[PARTS];
    float *x, *y, *u, *weights; /* weights [N]: L = sum of weights * y */
    float *w[PARTS], *bias[PARTS], *a[PARTS], *b[PARTS];
    float *dw[PARTS], *dbias[PARTS], *da[PARTS], *db[PARTS];
} fixture;

static void fixture_begin(fixture *f, float p)
{
    memset(f, 0, sizeof *f);
    assert_int_equal(nib_cpu_backend_create(64 << 20, &f->ops), NIB_OK);
    for (int i = 0; i < PARTS; i++) f->key[i] = 77 + (uint64_t)i;
    f->dropout = (nib_dropout){.p = p, .key = f->key};
    f->x = nib_test_values(1, T * K);
    f->y = nib_test_values(2, T * N);
    f->u = nib_test_values(3, T * RANKS);
    f->weights = nib_test_values(4, T * N);
    f->linear = (nib_linear){.name = "test", .K = K, .parts = PARTS};
    for (int i = 0; i < PARTS; i++) {
        int64_t n = rows_of[i];
        f->w[i] = nib_test_values(10 + (uint64_t)i, n * K);
        f->bias[i] = nib_test_values(20 + (uint64_t)i, n);
        f->a[i] = nib_test_values(30 + (uint64_t)i, RANK * K);
        f->b[i] = nib_test_values(40 + (uint64_t)i, n * RANK);
        f->dw[i] = nib_calloc((size_t)(n * K), 4);
        f->dbias[i] = nib_calloc((size_t)n, 4);
        f->da[i] = nib_calloc((size_t)(RANK * K), 4);
        f->db[i] = nib_calloc((size_t)(n * RANK), 4);
        f->linear.part[i] = (nib_linear_part){
            .rows = n,
            .dense = nib_test_matrix(f->w[i], n, K),
            .bias = f->bias[i],
            .lora = {.rank = RANK,
                     .scale = 0.5f * (float)(i + 1),
                     .a = nib_test_matrix(f->a[i], RANK, K),
                     .b = nib_test_matrix(f->b[i], n, RANK),
                     .da = f->da[i],
                     .db = f->db[i]},
            .dweight = f->dw[i],
            .dbias = f->dbias[i],
        };
    }
}

static void fixture_end(fixture *f)
{
    float *all[] = {f->x, f->y, f->u, f->weights};
    for (size_t i = 0; i < 4; i++) nib_free(all[i]);
    for (int i = 0; i < PARTS; i++) {
        float *parts[] = {f->w[i], f->bias[i], f->a[i], f->b[i], f->dw[i], f->dbias[i], f->da[i], f->db[i]};
        for (size_t j = 0; j < 8; j++) nib_free(parts[j]);
    }
    nib_cpu_backend_free(f->ops);
}

static void forward(fixture *f)
{
    assert_int_equal(f->ops->linear_forward(f->ops, &f->linear, nib_test_matrix(f->x, T, K), f->dropout,
                                            nib_test_matrix(f->u, T, RANKS), nib_test_matrix(f->y, T, N)),
                     NIB_OK);
}

static double scalar(void *user)
{
    fixture *f = user;
    forward(f);
    return nib_test_dot(f->weights, f->y, T * N);
}

static void gradients_agree_with_differences(float p)
{
    fixture f;
    fixture_begin(&f, p);
    float *dx = nib_test_values(5, T * K), *before = nib_test_values(5, T * K);
    forward(&f);
    assert_int_equal(f.ops->linear_backward(f.ops, &f.linear, nib_test_matrix(f.x, T, K), f.dropout,
                                            nib_test_matrix(f.u, T, RANKS), nib_test_matrix(f.weights, T, N), true,
                                            nib_test_matrix(dx, T, K)),
                     NIB_OK);
    for (int64_t i = 0; i < T * K; i++) dx[i] -= before[i]; /* it was asked to accumulate */
    nib_test_gradient("x", scalar, &f, f.x, dx, T * K, 50);
    for (int i = 0; i < PARTS; i++) {
        nib_test_gradient("W", scalar, &f, f.w[i], f.dw[i], rows_of[i] * K, 51);
        nib_test_gradient("bias", scalar, &f, f.bias[i], f.dbias[i], rows_of[i], 52);
        nib_test_gradient("A", scalar, &f, f.a[i], f.da[i], RANK * K, 53);
        nib_test_gradient("B", scalar, &f, f.b[i], f.db[i], rows_of[i] * RANK, 54);
    }
    nib_free(dx);
    nib_free(before);
    fixture_end(&f);
}

static void gradients_without_dropout(void **state)
{
    (void)state;
    gradients_agree_with_differences(0.0f);
}

static void gradients_with_dropout(void **state)
{
    (void)state;
    gradients_agree_with_differences(0.3f);
}

/* A third of the elements is dropped and the rest divided by 1 - p, so the mean stays: u against the undropped one. */
static void dropout_keeps_the_mean(void **state)
{
    (void)state;
    fixture f;
    fixture_begin(&f, 0.3f);
    for (int64_t i = 0; i < T * K; i++) f.x[i] = 1.0f;
    for (int i = 0; i < PARTS; i++)
        for (int64_t j = 0; j < RANK * K; j++) f.a[i][j] = 1.0f / K;
    forward(&f);
    double mean = 0;
    for (int64_t i = 0; i < T * RANKS; i++) mean += f.u[i] / (T * RANKS);
    /* RANK equal columns a part: 37 * 3 * 128 draws, standard deviation sqrt(0.3 / 0.7 / 14208) = 0.0055 */
    assert_true(fabs(mean - 1.0) < 5 * 0.0055);
    fixture_end(&f);
}

/* y against double arithmetic, through a strided output whose neighbours must stay untouched. */
static void values_and_strides(void **state)
{
    (void)state;
    fixture f;
    fixture_begin(&f, 0.0f);
    enum { STRIDE = N + 5 };
    float *wide = nib_calloc(T * STRIDE, 4);
    for (int64_t i = 0; i < T * STRIDE; i++) wide[i] = NAN;
    nib_matrix y = {.data = wide, .rows = T, .columns = N, .stride = STRIDE, .dtype = NIB_DTYPE_F32};
    assert_int_equal(f.ops->linear_forward(f.ops, &f.linear, nib_test_matrix(f.x, T, K), f.dropout,
                                           nib_test_matrix(f.u, T, RANKS), y),
                     NIB_OK);
    for (int64_t t = 0; t < T; t++) {
        for (int64_t p = 0, first = 0; p < PARTS; first += rows_of[p++])
            for (int64_t n = 0; n < rows_of[p]; n++) {
                double want = f.bias[p][n];
                for (int64_t k = 0; k < K; k++) want += (double)f.w[p][n * K + k] * (double)f.x[t * K + k];
                for (int64_t r = 0; r < RANK; r++) {
                    double down = 0;
                    for (int64_t k = 0; k < K; k++) down += (double)f.a[p][r * K + k] * (double)f.x[t * K + k];
                    want += (double)f.linear.part[p].lora.scale * (double)f.b[p][n * RANK + r] * down;
                }
                /* sums of 128 products of size 1/3: fp32 rounding is far below 1e-4 */
                assert_true(fabs(want - (double)wide[t * STRIDE + first + n]) < 1e-4);
            }
        for (int64_t i = N; i < STRIDE; i++) assert_true(isnan(wide[t * STRIDE + i]));
    }
    nib_free(wide);
    fixture_end(&f);
}

/* Few rows decode NF4 in registers, many go through scratch: the same weights, the same result. */
static void few_rows_equal_many(void **state)
{
    (void)state;
    fixture f;
    fixture_begin(&f, 0.0f);
    uint8_t *codes[PARTS];
    float *absmax[PARTS];
    for (int i = 0; i < PARTS; i++) {
        int64_t n = rows_of[i] * K;
        codes[i] = nib_calloc((size_t)n / 2, 1);
        absmax[i] = nib_calloc((size_t)n / 64, 4);
        assert_int_equal(f.ops->nf4_quantize(f.ops, f.w[i], n, codes[i], absmax[i]), NIB_OK);
        f.linear.part[i].nf4 = (nib_nf4){.codes = codes[i], .absmax = absmax[i]};
        f.linear.part[i].dweight = f.linear.part[i].dbias = NULL;
    }
    forward(&f);
    float *few = nib_calloc(8 * N, 4), *u = nib_calloc(8 * RANKS, 4);
    for (int64_t m = 1; m <= 8; m++) {
        assert_int_equal(f.ops->linear_forward(f.ops, &f.linear, nib_test_matrix(f.x, m, K), f.dropout,
                                               nib_test_matrix(u, m, RANKS), nib_test_matrix(few, m, N)),
                         NIB_OK);
        /* two orders of summing 128 products: some units in size, 128 roundings of 2^-24 at most */
        for (int64_t i = 0; i < m * N; i++) assert_true(fabsf(few[i] - f.y[i]) < 2e-5f);
    }
    nib_free(few);
    nib_free(u);
    for (int i = 0; i < PARTS; i++) {
        nib_free(codes[i]);
        nib_free(absmax[i]);
    }
    fixture_end(&f);
}

/* bf16 inputs and outputs, fp32 sums: each output is off by its own rounding (2^-9) and that of the rounded operands
 * (2^-9 of each of about 128 products, adding up randomly). */
static void bf16_stays_within_its_rounding(void **state)
{
    (void)state;
    fixture f;
    fixture_begin(&f, 0.0f);
    nib_matrix wide = nib_test_matrix(f.x, T, K), x = wide, y = nib_test_matrix(f.y, T, N),
               u = nib_test_matrix(f.u, T, RANKS);
    x.dtype = y.dtype = u.dtype = NIB_DTYPE_BF16;
    x.data = nib_calloc(T * K, 2);
    y.data = nib_calloc(T * N, 2);
    u.data = nib_calloc(T * RANKS, 2);
    nib_linear linear = f.linear;
    for (int i = 0; i < PARTS; i++) {
        nib_matrix *small[] = {&linear.part[i].lora.a, &linear.part[i].lora.b};
        for (int j = 0; j < 2; j++) {
            nib_matrix narrow = *small[j];
            narrow.dtype = NIB_DTYPE_BF16;
            narrow.data = nib_calloc((size_t)(narrow.rows * narrow.columns), 2);
            assert_int_equal(f.ops->convert(f.ops, *small[j], narrow), NIB_OK);
            *small[j] = narrow;
        }
    }
    forward(&f);
    assert_int_equal(f.ops->convert(f.ops, wide, x), NIB_OK);
    assert_int_equal(f.ops->linear_forward(f.ops, &linear, x, f.dropout, u, y), NIB_OK);
    double error = 0, size = 0;
    for (int64_t i = 0; i < T * N; i++) {
        double difference = (double)nib_bf16_to_float(((nib_bf16 *)y.data)[i]) - (double)f.y[i];
        error += difference * difference;
        size += (double)f.y[i] * (double)f.y[i];
    }
    /* x, u, the weights and y are rounded by up to 2^-9 each, at random: twice that of the whole at most */
    assert_true(sqrt(error / size) < 5e-3);
    for (int i = 0; i < PARTS; i++) {
        nib_free(linear.part[i].lora.a.data);
        nib_free(linear.part[i].lora.b.data);
    }
    nib_free(x.data);
    nib_free(y.data);
    nib_free(u.data);
    fixture_end(&f);
}

static nib_matrix bf16_copy(nib_ops *ops, nib_matrix from)
{
    nib_matrix to = from;
    to.dtype = NIB_DTYPE_BF16;
    to.data = nib_calloc((size_t)(from.rows * from.columns), 2);
    assert_int_equal(ops->convert(ops, from, to), NIB_OK);
    return to;
}

/* Everything in bf16, scales powers of two, so that scale * B is exact. */
static nib_linear bf16_linear(fixture *f)
{
    nib_linear linear = f->linear;
    for (int i = 0; i < PARTS; i++) {
        nib_linear_part *part = &linear.part[i];
        part->lora.scale = 0.5f * (float)(1 << i);
        part->dweight = part->dbias = part->lora.da = part->lora.db = NULL;
        part->dense = bf16_copy(f->ops, part->dense);
        part->lora.a = bf16_copy(f->ops, part->lora.a);
        part->lora.b = bf16_copy(f->ops, part->lora.b);
    }
    return linear;
}

static void bf16_linear_free(nib_linear *linear)
{
    for (int i = 0; i < PARTS; i++) {
        nib_free(linear->part[i].dense.data);
        nib_free(linear->part[i].lora.a.data);
        nib_free(linear->part[i].lora.b.data);
    }
}

static double at(nib_matrix m, int64_t r, int64_t c)
{
    return (double)nib_bf16_to_float(((const nib_bf16 *)m.data)[r * m.stride + c]);
}

/* Nearest but for fp32's sums: half a unit in the last of bf16's 8 bits, and 2^-24 of the summed magnitudes a term. */
static void rounded_once(double got, double exact, double magnitudes, int64_t terms)
{
    int exponent;
    frexp(exact, &exponent); /* |exact| in [2^(exponent - 1), 2^exponent) */
    double bound = ldexp(1.0, exponent - 9) + (double)terms * magnitudes * 0x1p-24;
    if (fabs(got - exact) > bound) fail_msg("%.9g is more than one rounding (%.3g) off %.9g", got, bound, exact);
}

static void check_output(const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    for (int64_t t = 0; t < x.rows; t++)
        for (int64_t p = 0, first = 0; p < PARTS; first += rows_of[p++])
            for (int64_t n = 0; n < rows_of[p]; n++) {
                const nib_linear_part *part = &linear->part[p];
                double exact = part->bias[n], size = fabs(exact);
                for (int64_t k = 0; k < K; k++) {
                    exact += at(part->dense, n, k) * at(x, t, k);
                    size += fabs(at(part->dense, n, k) * at(x, t, k));
                }
                for (int64_t r = 0; r < RANK; r++) {
                    double term = part->lora.scale * at(part->lora.b, n, r) * at(u, t, p * RANK + r);
                    exact += term;
                    size += fabs(term);
                }
                rounded_once(at(y, t, first + n), exact, size, K + RANK + 1);
            }
}

/* Base, bias and adapter are one sum: what they add up to is rounded to bf16 once, also where they nearly cancel. */
static void bf16_output_is_rounded_once(void **state)
{
    (void)state;
    fixture f;
    fixture_begin(&f, 0.0f);
    nib_linear linear = bf16_linear(&f);
    nib_matrix x = bf16_copy(f.ops, nib_test_matrix(f.x, T, K)), y = bf16_copy(f.ops, nib_test_matrix(f.y, T, N)),
               u = bf16_copy(f.ops, nib_test_matrix(f.u, T, RANKS));
    assert_int_equal(f.ops->linear_forward(f.ops, &linear, x, f.dropout, u, y), NIB_OK);
    check_output(&linear, x, u, y);
    uint8_t *codes[PARTS]; /* few rows over NF4 go another way */
    float *absmax[PARTS];
    for (int i = 0; i < PARTS; i++) {
        nib_linear_part *part = &linear.part[i];
        codes[i] = nib_calloc((size_t)(rows_of[i] * K / 2), 1);
        absmax[i] = nib_calloc((size_t)(rows_of[i] * K / 64), 4);
        assert_int_equal(f.ops->nf4_quantize(f.ops, f.w[i], rows_of[i] * K, codes[i], absmax[i]), NIB_OK);
        part->nf4 = (nib_nf4){.codes = codes[i], .absmax = absmax[i]};
        assert_int_equal(f.ops->nf4_dequantize(f.ops, &part->nf4, part->dense), NIB_OK);
    }
    x.rows = u.rows = y.rows = 5;
    assert_int_equal(f.ops->linear_forward(f.ops, &linear, x, f.dropout, u, y), NIB_OK);
    check_output(&linear, x, u, y);
    for (int i = 0; i < PARTS; i++) {
        nib_free(codes[i]);
        nib_free(absmax[i]);
    }
    bf16_linear_free(&linear);
    nib_free(x.data);
    nib_free(y.data);
    nib_free(u.data);
    fixture_end(&f);
}

/* Likewise dx = dy W + du A. dy has one element a part and row, a power of two, so that du is exact. */
static void bf16_gradient_is_rounded_once(void **state)
{
    (void)state;
    fixture f;
    fixture_begin(&f, 0.0f);
    nib_linear linear = bf16_linear(&f);
    nib_matrix x = bf16_copy(f.ops, nib_test_matrix(f.x, T, K)), u = bf16_copy(f.ops, nib_test_matrix(f.u, T, RANKS)),
               dx = bf16_copy(f.ops, nib_test_matrix(f.x, T, K));
    memset(f.y, 0, T * N * sizeof *f.y);
    for (int64_t t = 0; t < T; t++)
        for (int64_t p = 0, first = 0; p < PARTS; first += rows_of[p++])
            f.y[t * N + first + t % rows_of[p]] = ldexpf(t % 2 == 0 ? 1.0f : -1.0f, (int)(t % 5 - p));
    nib_matrix dy = bf16_copy(f.ops, nib_test_matrix(f.y, T, N));
    assert_int_equal(f.ops->linear_backward(f.ops, &linear, x, f.dropout, u, dy, false, dx), NIB_OK);
    for (int64_t t = 0; t < T; t++)
        for (int64_t k = 0; k < K; k++) {
            double exact = 0, size = 0;
            for (int64_t p = 0, first = 0; p < PARTS; first += rows_of[p++]) {
                const nib_linear_part *part = &linear.part[p];
                int64_t n = t % rows_of[p];
                double g = at(dy, t, first + n), term = g * at(part->dense, n, k);
                for (int64_t r = 0; r < RANK; r++)
                    term += g * part->lora.scale * at(part->lora.b, n, r) * at(part->lora.a, r, k);
                exact += term;
                size += fabs(g) * (1 + RANK * part->lora.scale); /* |W|, |A|, |B| <= 1 */
            }
            rounded_once(at(dx, t, k), exact, size, PARTS * (1 + RANK));
        }
    bf16_linear_free(&linear);
    nib_free(x.data);
    nib_free(u.data);
    nib_free(dx.data);
    nib_free(dy.data);
    fixture_end(&f);
}

#ifdef _OPENMP
static void threads_change_no_bit(void **state)
{
    (void)state;
    float *first = NULL;
    for (int threads = 1; threads <= 4; threads++) {
        fixture f;
        omp_set_num_threads(threads);
        fixture_begin(&f, 0.0f);
        float *dx = nib_calloc(T * K, 4);
        forward(&f);
        assert_int_equal(f.ops->linear_backward(f.ops, &f.linear, nib_test_matrix(f.x, T, K), f.dropout,
                                                nib_test_matrix(f.u, T, RANKS), nib_test_matrix(f.weights, T, N), false,
                                                nib_test_matrix(dx, T, K)),
                         NIB_OK);
        if (first == NULL)
            first = dx;
        else
            assert_memory_equal(first, dx, T * K * 4);
        if (dx != first) nib_free(dx);
        fixture_end(&f);
    }
    nib_free(first);
}
#endif

static void wrong_shapes_are_refused(void **state)
{
    (void)state;
    fixture f;
    fixture_begin(&f, 0.0f);
    assert_int_equal(f.ops->linear_forward(f.ops, &f.linear, nib_test_matrix(f.x, T, K - 1), f.dropout,
                                           nib_test_matrix(f.u, T, RANKS), nib_test_matrix(f.y, T, N)),
                     NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "x [37, 127]"));
    assert_int_equal(f.ops->linear_forward(f.ops, &f.linear, nib_test_matrix(f.x, T, K), f.dropout,
                                           nib_test_matrix(f.u, T, 1), nib_test_matrix(f.y, T, N)),
                     NIB_ERROR_SHAPE);
    fixture_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_without_dropout),   cmocka_unit_test(gradients_with_dropout),
        cmocka_unit_test(dropout_keeps_the_mean),      cmocka_unit_test(values_and_strides),
        cmocka_unit_test(few_rows_equal_many),         cmocka_unit_test(bf16_stays_within_its_rounding),
        cmocka_unit_test(bf16_output_is_rounded_once), cmocka_unit_test(bf16_gradient_is_rounded_once),
#ifdef _OPENMP
        cmocka_unit_test(threads_change_no_bit),
#endif
        cmocka_unit_test(wrong_shapes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
