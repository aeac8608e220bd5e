/* Head and loss in one: values against double arithmetic over the target list, gradients against differences, for rows
 * with several labels, weights, soft-cap, more rows than a chunk, and a head kept in bf16. */
#include "numeric.h"

#include <string.h>

enum { T = 700, C = 48, V = 333, N = 900 };

typedef struct {
    nib_ops *ops;
    float *x, *head, *dx, *dhead;
    float nll[N], weight[N], softcap;
    int32_t row[N], label[N];
} fixture;

static nib_targets targets_of(const fixture *f) { return (nib_targets){N, f->row, f->label, f->weight}; }

static void begin(fixture *f, float softcap)
{
    memset(f, 0, sizeof *f);
    assert_int_equal(nib_cpu_backend_create(64 << 20, &f->ops), NIB_OK);
    f->x = nib_test_values(1, T * C);
    f->head = nib_test_values(2, V * C);
    f->dx = nib_test_values(3, T * C); /* is overwritten, not added to */
    f->dhead = nib_calloc(V * C, 4);
    f->softcap = softcap;
    for (int n = 0; n < N; n++) { /* ascending rows, some twice, some never */
        f->row[n] = (int32_t)((int64_t)n * T / N);
        f->label[n] = (int32_t)((n * 97) % V);
        f->weight[n] = 1.0f + nib_test_uniform(4, (uint64_t)n);
    }
}

static void end(fixture *f)
{
    float *all[] = {f->x, f->head, f->dx, f->dhead};
    for (size_t i = 0; i < 4; i++) nib_free(all[i]);
    nib_cpu_backend_free(f->ops);
}

static double scalar(void *user)
{
    fixture *f = user;
    double sum = 0;
    assert_int_equal(f->ops->linear_cross_entropy(f->ops, nib_test_matrix(f->x, T, C), nib_test_matrix(f->head, V, C),
                                                  f->softcap, targets_of(f), 0.25f, f->nll, (nib_matrix){0}, NULL),
                     NIB_OK);
    for (int n = 0; n < N; n++) sum += 0.25 * (double)f->weight[n] * (double)f->nll[n];
    return sum;
}

static double logit(const fixture *f, int64_t t, int64_t v)
{
    double z = 0;
    for (int64_t c = 0; c < C; c++) z += (double)f->x[t * C + c] * (double)f->head[v * C + c];
    return f->softcap > 0 ? (double)f->softcap * tanh(z / (double)f->softcap) : z;
}

static void check(float softcap)
{
    fixture f;
    begin(&f, softcap);
    assert_int_equal(f.ops->linear_cross_entropy(f.ops, nib_test_matrix(f.x, T, C), nib_test_matrix(f.head, V, C),
                                                 softcap, targets_of(&f), 0.25f, f.nll, nib_test_matrix(f.dx, T, C),
                                                 f.dhead),
                     NIB_OK);
    for (int n = 0; n < N; n += 13) {
        double total = 0;
        for (int64_t v = 0; v < V; v++) total += exp(logit(&f, f.row[n], v));
        /* up to some tens in size, of which fp32 keeps 6e-8, a few times over */
        assert_true(fabs(log(total) - logit(&f, f.row[n], f.label[n]) - (double)f.nll[n]) < 2e-5);
    }
    /* All logits never exist: not even T rows of them in the least type. */
    assert_true(f.ops->scratch->peak < (size_t)T * V * sizeof(nib_bf16));
    nib_test_gradient("x", scalar, &f, f.x, f.dx, T * C, 80);
    nib_test_gradient("head", scalar, &f, f.head, f.dhead, V * C, 81);
    end(&f);
}

static void plain(void **state)
{
    (void)state;
    check(0.0f);
}

static void soft_capped(void **state)
{
    (void)state;
    check(3.0f);
}

/* A row without a target gets a zero gradient, whatever was there. */
static void rows_without_a_target_are_zero(void **state)
{
    (void)state;
    fixture f;
    begin(&f, 0.0f);
    for (int n = 0; n < N; n++) f.row[n] = 100 + n / 300; /* only rows 100 to 102 */
    assert_int_equal(f.ops->linear_cross_entropy(f.ops, nib_test_matrix(f.x, T, C), nib_test_matrix(f.head, V, C), 0.0f,
                                                 targets_of(&f), 1.0f, f.nll, nib_test_matrix(f.dx, T, C), NULL),
                     NIB_OK);
    for (int64_t t = 0; t < T; t++) {
        double size = nib_test_dot(f.dx + t * C, f.dx + t * C, C);
        assert_true(t >= 100 && t <= 102 ? size > 0 : size == 0);
    }
    end(&f);
}

/* The head in bf16 under fp32 activations is the head's bf16 values in fp32: the same bits. */
static void bf16_head_is_widened_exactly(void **state)
{
    (void)state;
    fixture f;
    begin(&f, 0.0f);
    nib_matrix narrow = {.data = nib_calloc(V * C, 2), .rows = V, .columns = C, .stride = C, .dtype = NIB_DTYPE_BF16};
    float first[N];
    assert_int_equal(f.ops->convert(f.ops, nib_test_matrix(f.head, V, C), narrow), NIB_OK);
    assert_int_equal(f.ops->convert(f.ops, narrow, nib_test_matrix(f.head, V, C)), NIB_OK);
    scalar(&f);
    memcpy(first, f.nll, sizeof first);
    assert_int_equal(f.ops->linear_cross_entropy(f.ops, nib_test_matrix(f.x, T, C), narrow, 0.0f, targets_of(&f), 1.0f,
                                                 f.nll, (nib_matrix){0}, NULL),
                     NIB_OK);
    assert_memory_equal(first, f.nll, sizeof first);
    nib_free(narrow.data);
    end(&f);
}

/* Two logits, 8 and 0, the first the label: dx[0] = p - 1 = -1 / (1 + e^8) and dx[1] is its opposite. Each is rounded
 * to bf16 twice, as dz and as dx (2^-8 in all); softmax rounded before the label is taken off would leave 0. */
static void nearly_certain_labels_keep_their_gradient_in_bf16(void **state)
{
    (void)state;
    fixture f;
    begin(&f, 0.0f);
    nib_bf16 x[2] = {nib_bf16_from_float(8.0f), nib_bf16_from_float(0.0f)}, dx[2];
    nib_bf16 head[4] = {nib_bf16_from_float(1.0f), {0}, {0}, nib_bf16_from_float(1.0f)};
    int32_t row = 0, label = 0;
    float weight = 1.0f, nll;
    assert_int_equal(f.ops->linear_cross_entropy(f.ops, (nib_matrix){x, 1, 2, 2, NIB_DTYPE_BF16},
                                                 (nib_matrix){head, 2, 2, 2, NIB_DTYPE_BF16}, 0.0f,
                                                 (nib_targets){1, &row, &label, &weight}, 1.0f, &nll,
                                                 (nib_matrix){dx, 1, 2, 2, NIB_DTYPE_BF16}, NULL),
                     NIB_OK);
    double expected = 1.0 / (1.0 + exp(8.0));
    for (int i = 0; i < 2; i++)
        assert_true(fabs(nib_bf16_to_float(dx[i]) - (i == 0 ? -expected : expected)) <= expected / 256);
    end(&f);
}

/* Of some rows alone, what has a label among them and what has none: against differences too. */
static void selected_rows_have_their_gradient(void **state)
{
    (void)state;
    enum { ROWS = 3 };
    const int32_t row[ROWS] = {97, 5, V - 1}; /* 97 is a label, and so is V - 1 */
    fixture f;
    begin(&f, 0.0f);
    float *drows = nib_calloc(ROWS * C, sizeof *drows);
    scalar(&f);
    assert_int_equal(f.ops->head_rows_backward(f.ops, nib_test_matrix(f.x, T, C), nib_test_matrix(f.head, V, C),
                                               targets_of(&f), 0.25f, f.nll, ROWS, row, drows),
                     NIB_OK);
    for (int i = 0; i < ROWS; i++)
        nib_test_gradient("row", scalar, &f, f.head + row[i] * C, drows + i * C, C, 82 + (uint64_t)i);
    const int32_t outside = V;
    assert_int_equal(f.ops->head_rows_backward(f.ops, nib_test_matrix(f.x, T, C), nib_test_matrix(f.head, V, C),
                                               targets_of(&f), 0.25f, f.nll, 1, &outside, drows),
                     NIB_ERROR_SHAPE);
    nib_free(drows);
    end(&f);
}

static void bad_targets_are_refused(void **state)
{
    (void)state;
    fixture f;
    begin(&f, 0.0f);
    f.label[7] = V;
    assert_int_equal(f.ops->linear_cross_entropy(f.ops, nib_test_matrix(f.x, T, C), nib_test_matrix(f.head, V, C), 0.0f,
                                                 targets_of(&f), 1.0f, f.nll, (nib_matrix){0}, NULL),
                     NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "target 7"));
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain),
        cmocka_unit_test(soft_capped),
        cmocka_unit_test(rows_without_a_target_are_zero),
        cmocka_unit_test(bf16_head_is_widened_exactly),
        cmocka_unit_test(nearly_certain_labels_keep_their_gradient_in_bf16),
        cmocka_unit_test(selected_rows_have_their_gradient),
        cmocka_unit_test(bad_targets_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
