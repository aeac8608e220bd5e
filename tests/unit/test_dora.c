/* DoRA on the CPU: norms of rows in double arithmetic, gradients against differences (the norm a constant, as the paper
 * has it), dropout as PEFT writes it down, few rows against many, threads against one thread. */
#include "numeric.h"

#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { T = 21, K = 128, PARTS = 3, RANK = 4 };
static const int64_t rows_of[PARTS] = {96, 32, 48};
enum { N = 96 + 32 + 48, RANKS = PARTS * RANK, PLAIN = 1 /* the part without magnitudes */ };

typedef struct {
    nib_ops *ops;
    nib_linear linear;
    nib_dropout dropout;
    float *x, *y, *u, *weights; /* weights [T, N]: L = sum of weights * y */
    float *w[PARTS], *bias[PARTS], *a[PARTS], *b[PARTS], *magnitude[PARTS], *norm[PARTS], *gain[PARTS];
    float *da[PARTS], *db[PARTS], *dmagnitude[PARTS];
} fixture;

static void find_norms(fixture *f)
{
    for (int p = 0; p < PARTS; p++)
        if (p != PLAIN) assert_int_equal(f->ops->dora_norm(f->ops, &f->linear.part[p], K), NIB_OK);
}

static void fixture_begin(fixture *f, float p)
{
    memset(f, 0, sizeof *f);
    assert_int_equal(nib_cpu_backend_create(64 << 20, &f->ops), NIB_OK);
    static const uint64_t keys[PARTS] = {77, 78, 79};
    f->dropout = (nib_dropout){.p = p, .key = keys};
    f->x = nib_test_values(1, T * K);
    f->y = nib_test_values(2, T * N);
    f->u = nib_test_values(3, T * RANKS);
    f->weights = nib_test_values(4, T * N);
    f->linear = (nib_linear){.name = "test", .K = K, .parts = PARTS};
    for (int i = 0; i < PARTS; i++) {
        const int64_t n = rows_of[i];
        f->w[i] = nib_test_values(10 + (uint64_t)i, n * K);
        f->bias[i] = nib_test_values(20 + (uint64_t)i, n);
        f->a[i] = nib_test_values(30 + (uint64_t)i, RANK * K);
        f->b[i] = nib_test_values(40 + (uint64_t)i, n * RANK);
        f->magnitude[i] = nib_test_values(60 + (uint64_t)i, n);
        for (int64_t j = 0; j < n; j++) f->magnitude[i][j] = 8.0f + 4.0f * f->magnitude[i][j]; /* norms are about 8 */
        f->norm[i] = nib_calloc((size_t)n, 4);
        f->gain[i] = nib_calloc((size_t)n, 4);
        f->da[i] = nib_calloc((size_t)(RANK * K), 4);
        f->db[i] = nib_calloc((size_t)(n * RANK), 4);
        f->dmagnitude[i] = nib_calloc((size_t)n, 4);
        f->linear.part[i] = (nib_linear_part){.rows = n,
                                              .dense = nib_test_matrix(f->w[i], n, K),
                                              .bias = i == 0 ? NULL : f->bias[i],
                                              .lora = {.rank = RANK,
                                                       .scale = 0.5f * (float)(i + 1),
                                                       .a = nib_test_matrix(f->a[i], RANK, K),
                                                       .b = nib_test_matrix(f->b[i], n, RANK),
                                                       .da = f->da[i],
                                                       .db = f->db[i]}};
        if (i != PLAIN)
            f->linear.part[i].lora.dora = (nib_dora){f->magnitude[i], f->norm[i], f->gain[i], f->dmagnitude[i]};
    }
    find_norms(f);
}

static void fixture_end(fixture *f)
{
    float *all[] = {f->x, f->y, f->u, f->weights};
    for (size_t i = 0; i < 4; i++) nib_free(all[i]);
    for (int i = 0; i < PARTS; i++) {
        float *parts[] = {f->w[i],    f->bias[i], f->a[i],  f->b[i],  f->magnitude[i],
                          f->norm[i], f->gain[i], f->da[i], f->db[i], f->dmagnitude[i]};
        for (size_t j = 0; j < 10; j++) nib_free(parts[j]);
    }
    nib_cpu_backend_free(f->ops);
}

static void forward_rows(fixture *f, int64_t rows)
{
    assert_int_equal(f->ops->linear_forward(f->ops, &f->linear, nib_test_matrix(f->x, rows, K), f->dropout,
                                            nib_test_matrix(f->u, rows, RANKS), nib_test_matrix(f->y, rows, N)),
                     NIB_OK);
}

static void backward(fixture *f, bool accumulate, float *dx)
{
    assert_int_equal(f->ops->linear_backward(f->ops, &f->linear, nib_test_matrix(f->x, T, K), f->dropout,
                                             nib_test_matrix(f->u, T, RANKS), nib_test_matrix(f->weights, T, N),
                                             accumulate, nib_test_matrix(dx, T, K)),
                     NIB_OK);
}

/* Gains follow the magnitudes, norms stay. */
static double scalar(void *user)
{
    fixture *f = user;
    for (int p = 0; p < PARTS; p++)
        for (int64_t n = 0; n < rows_of[p]; n++) f->gain[p][n] = f->magnitude[p][n] / f->norm[p][n];
    forward_rows(f, T);
    return nib_test_dot(f->weights, f->y, T * N);
}

/* W of part p as the op sees it. */
static float *weight_of(fixture *f, int p)
{
    const nib_linear_part *part = &f->linear.part[p];
    float *w = nib_calloc((size_t)(part->rows * K), 4);
    assert_non_null(w);
    if (part->nf4.codes != NULL)
        assert_int_equal(f->ops->nf4_dequantize(f->ops, &part->nf4, nib_test_matrix(w, part->rows, K)), NIB_OK);
    else
        memcpy(w, f->w[p], (size_t)(part->rows * K) * 4);
    return w;
}

static void quantize(fixture *f)
{
    for (int p = 0; p < PARTS; p++) {
        const int64_t n = rows_of[p] * K;
        uint8_t *codes = nib_calloc((size_t)n / 2, 1);
        float *absmax = nib_calloc((size_t)n / 64, 4);
        assert_int_equal(f->ops->nf4_quantize(f->ops, f->w[p], n, codes, absmax), NIB_OK);
        f->linear.part[p].nf4 = (nib_nf4){.codes = codes, .absmax = absmax};
    }
    find_norms(f);
}

static void free_codes(fixture *f)
{
    for (int p = 0; p < PARTS; p++) {
        nib_free((void *)f->linear.part[p].nf4.codes);
        nib_free((void *)f->linear.part[p].nf4.absmax);
    }
}

/* Rows of 128 squares in fp32: each sum is rounded at most 2^-24 of itself a term; the sixteen lanes make that 1e-6. */
static void check_norms(fixture *f)
{
    for (int p = 0; p < PARTS; p++) {
        const nib_lora *lora = &f->linear.part[p].lora;
        float *w = weight_of(f, p);
        for (int64_t n = 0; n < rows_of[p] && p != PLAIN; n++) {
            double square = 0;
            for (int64_t k = 0; k < K; k++) {
                double v = (double)w[n * K + k];
                for (int64_t r = 0; r < RANK; r++)
                    v += (double)lora->scale * (double)f->b[p][n * RANK + r] * (double)f->a[p][r * K + k];
                square += v * v;
            }
            /* random roundings of 2^-24 in each of 128 squares nearly cancel */
            assert_true(fabs((double)f->norm[p][n] - sqrt(square)) < 1e-6 * sqrt(square));
            assert_true(f->gain[p][n] == f->magnitude[p][n] / f->norm[p][n]);
        }
        nib_free(w);
    }
}

static void norms_are_those_of_the_rows(void **state)
{
    (void)state;
    fixture f;
    fixture_begin(&f, 0.0f);
    check_norms(&f);
    quantize(&f);
    check_norms(&f);
    free_codes(&f);
    fixture_end(&f);
}

/* W = - scale B A but for a rest of 2^-12: expanding the square would lose the norm altogether. A zero row has none. */
static void norms_survive_cancellation(void **state)
{
    (void)state;
    fixture f;
    fixture_begin(&f, 0.0f);
    nib_lora *lora = &f.linear.part[0].lora;
    for (int64_t k = 0; k < K; k++) {
        for (int64_t r = 0; r < RANK; r++) f.a[0][r * K + k] = r == 0 ? 1.0f : 0.0f;
        f.w[0][k] = -lora->scale * f.b[0][0] + ldexpf(1.0f, -12);
        f.w[0][K + k] = 0.0f;
    }
    memset(f.b[0] + RANK, 0, RANK * 4);
    find_norms(&f);
    /* what is left, 2^-12, has lost 12 of its 24 bits */
    assert_true(fabs((double)f.norm[0][0] - sqrt((double)K) * 0x1p-12) < 1e-3 * sqrt((double)K) * 0x1p-12);
    assert_true(f.norm[0][1] == 0.0f && f.gain[0][1] == 0.0f);
    fixture_end(&f);
}

/* y = W x + bias + (g - 1) W d + g scale B A d with d = dropout(x), term by term. The masks are those of plain LoRA
 * whose A picks out inputs, so they are read off u. */
static void check_values(float p)
{
    fixture f;
    fixture_begin(&f, p);
    float *dropped[PARTS]; /* [T, K] */
    for (int i = 0; i < PARTS; i++) dropped[i] = nib_calloc(T * K, 4);
    float *a = nib_calloc(RANK * K, 4);
    for (int64_t k = 0; k < K; k += RANK) {
        memset(a, 0, RANK * K * 4);
        for (int64_t r = 0; r < RANK; r++) a[r * K + k + r] = 1.0f;
        for (int i = 0; i < PARTS; i++) f.linear.part[i].lora.a.data = a;
        forward_rows(&f, T);
        for (int64_t t = 0; t < T; t++)
            for (int i = 0; i < PARTS; i++)
                for (int64_t r = 0; r < RANK; r++) dropped[i][t * K + k + r] = f.u[t * RANKS + i * RANK + r];
    }
    for (int i = 0; i < PARTS; i++) f.linear.part[i].lora.a.data = f.a[i];
    forward_rows(&f, T);
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0, first = 0; i < PARTS; first += rows_of[i++])
            for (int64_t n = 0; n < rows_of[i]; n++) {
                const double gain = i == PLAIN ? 1.0 : (double)f.gain[i][n];
                double want = i == 0 ? 0.0 : (double)f.bias[i][n];
                for (int64_t k = 0; k < K; k++) {
                    const double d = (double)dropped[i][t * K + k];
                    want += (double)f.w[i][n * K + k] * ((double)f.x[t * K + k] + (gain - 1) * d);
                    for (int64_t r = 0; r < RANK; r++)
                        want += gain * (double)f.linear.part[i].lora.scale * (double)f.b[i][n * RANK + r] *
                                (double)f.a[i][r * K + k] * d;
                }
                /* sums of 128 products of size 1/3: fp32 rounding is far below 1e-4 */
                assert_true(fabs(want - (double)f.y[t * N + first + n]) < 1e-4);
            }
    for (int i = 0; i < PARTS; i++) nib_free(dropped[i]);
    nib_free(a);
    fixture_end(&f);
}

static void values_are_pefts(void **state)
{
    (void)state;
    check_values(0.0f);
    check_values(0.3f);
}

static void check_gradients(float p)
{
    fixture f;
    fixture_begin(&f, p);
    float *dx = nib_test_values(5, T * K), *before = nib_test_values(5, T * K);
    forward_rows(&f, T);
    backward(&f, true, dx);
    for (int64_t i = 0; i < T * K; i++) dx[i] -= before[i]; /* it was asked to accumulate */
    nib_test_gradient("x", scalar, &f, f.x, dx, T * K, 50);
    for (int i = 0; i < PARTS; i++) {
        nib_test_gradient("A", scalar, &f, f.a[i], f.da[i], RANK * K, 53);
        nib_test_gradient("B", scalar, &f, f.b[i], f.db[i], rows_of[i] * RANK, 54);
        if (i != PLAIN) nib_test_gradient("m", scalar, &f, f.magnitude[i], f.dmagnitude[i], rows_of[i], 55);
    }
    nib_free(dx);
    nib_free(before);
    fixture_end(&f);
}

static void gradients_agree_with_differences(void **state)
{
    (void)state;
    check_gradients(0.0f);
    check_gradients(0.3f);
}

/* Few rows decode NF4 in registers, many go through scratch: the same weights, the same result. */
static void few_rows_equal_many(void **state)
{
    (void)state;
    fixture f;
    fixture_begin(&f, 0.0f);
    quantize(&f);
    float *many = nib_calloc(T * N, 4);
    forward_rows(&f, T);
    memcpy(many, f.y, T * N * 4);
    for (int64_t m = 1; m <= 8; m++) {
        forward_rows(&f, m);
        /* two orders of summing 128 products, as in test_linear.c */
        for (int64_t i = 0; i < m * N; i++) assert_true(fabsf(f.y[i] - many[i]) < 2e-5f);
    }
    nib_free(many);
    free_codes(&f);
    fixture_end(&f);
}

#ifdef _OPENMP
static void threads_change_no_bit(void **state)
{
    (void)state;
    float *first[3] = {NULL, NULL, NULL};
    for (int threads = 1; threads <= 4; threads++) {
        fixture f;
        omp_set_num_threads(threads);
        fixture_begin(&f, 0.3f);
        float *dx = nib_calloc(T * K, 4);
        forward_rows(&f, T);
        backward(&f, false, dx);
        const float *found[3] = {dx, f.norm[0], f.dmagnitude[2]};
        const size_t bytes[3] = {T * K * 4, (size_t)rows_of[0] * 4, (size_t)rows_of[2] * 4};
        for (int i = 0; i < 3; i++) {
            if (threads == 1) {
                first[i] = nib_calloc(1, bytes[i]);
                memcpy(first[i], found[i], bytes[i]);
            }
            assert_memory_equal(first[i], found[i], bytes[i]);
        }
        nib_free(dx);
        fixture_end(&f);
    }
    for (int i = 0; i < 3; i++) nib_free(first[i]);
}
#endif

static void a_part_without_adapter_is_refused(void **state)
{
    (void)state;
    fixture f;
    fixture_begin(&f, 0.0f);
    assert_int_equal(f.ops->dora_norm(f.ops, &f.linear.part[0], K - 1), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "A [4, 128], B [96, 4], expected [R, 127], [96, R]"));
    fixture_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_are_those_of_the_rows),
        cmocka_unit_test(norms_survive_cancellation),
        cmocka_unit_test(values_are_pefts),
        cmocka_unit_test(gradients_agree_with_differences),
        cmocka_unit_test(few_rows_equal_many),
#ifdef _OPENMP
        cmocka_unit_test(threads_change_no_bit),
#endif
        cmocka_unit_test(a_part_without_adapter_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
