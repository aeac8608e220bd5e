/* Attention over prefix trees against a dense masked softmax in double arithmetic that applies packing.md's rule token
 * by token, gradients against differences, at shapes that do not fill tiles. */
#include "numeric.h"

#include "cpu/backend_internal.h"

#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

typedef struct {
    nib_ops *ops;
    nib_attention_shape shape;
    nib_tree tree;
    int32_t *position, *end;
    int64_t T, queries, keys;
    float *q, *k, *v, *out, *lse, *weights;
} fixture;

/* Documents of random length; each is a chain with some branches: a node's subtree ends where `end` says. A stack of
 * open branches is popped at random, so trees of several levels occur. */
static void random_tree(uint64_t seed, int64_t T, int32_t *position, int32_t *end)
{
    enum { DEPTH = 4 };
    uint64_t draw = 0;
    for (int64_t start = 0; start < T;) {
        int64_t stop = start + 1 + (int64_t)(fabsf(nib_test_uniform(seed, draw++)) * 90.0f);
        if (stop > T) stop = T;
        /* [start, split) is the trunk; behind it two branches share it */
        int64_t cut[DEPTH][2] = {{start, stop}};
        int depth = 1;
        for (int64_t t = start; t < stop; t++) position[t] = (int32_t)(t - start), end[t] = (int32_t)stop;
        for (int64_t length = stop - start; length > 8 && depth < DEPTH; depth++) {
            int64_t from = cut[depth - 1][0], to = cut[depth - 1][1];
            int64_t first = from + (to - from) / 3, second = from + 2 * (to - from) / 3;
            for (int64_t t = first; t < second; t++) end[t] = (int32_t)second;
            for (int64_t t = second; t < to; t++) position[t] = (int32_t)(position[first] + t - second);
            cut[depth][0] = first;
            cut[depth][1] = second;
            length = second - first;
        }
        start = stop;
    }
}

static void fixture_begin(fixture *f, nib_attention_shape shape, int64_t T, uint64_t seed)
{
    *f = (fixture){
        .shape = shape, .T = T, .queries = shape.heads * shape.head_dim, .keys = shape.kv_heads * shape.head_dim};
    assert_int_equal(nib_cpu_backend_create(64 << 20, &f->ops), NIB_OK);
    f->position = nib_calloc((size_t)T, 4);
    f->end = nib_calloc((size_t)T, 4);
    random_tree(seed, T, f->position, f->end);
    f->tree = (nib_tree){.T = T, .position = f->position, .end = f->end};
    f->q = nib_test_values(seed + 1, T * f->queries);
    f->k = nib_test_values(seed + 2, T * f->keys);
    f->v = nib_test_values(seed + 3, T * f->keys);
    f->weights = nib_test_values(seed + 4, T * f->queries);
    f->out = nib_calloc((size_t)(T * f->queries), 4);
    f->lse = nib_calloc((size_t)(T * shape.heads), 4);
}

static void fixture_end(fixture *f)
{
    void *all[] = {f->position, f->end, f->q, f->k, f->v, f->weights, f->out, f->lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) nib_free(all[i]);
    nib_cpu_backend_free(f->ops);
}

static void forward(fixture *f)
{
    assert_int_equal(f->ops->attention_forward(f->ops, f->shape, f->tree, nib_test_matrix(f->q, f->T, f->queries),
                                               nib_test_matrix(f->k, f->T, f->keys),
                                               nib_test_matrix(f->v, f->T, f->keys),
                                               nib_test_matrix(f->out, f->T, f->queries), f->lse),
                     NIB_OK);
}

static double scalar(void *user)
{
    fixture *f = user;
    forward(f);
    return nib_test_dot(f->weights, f->out, f->T * f->queries);
}

static bool visible(const fixture *f, int64_t query, int64_t key)
{
    return key <= query && query < f->end[key] &&
           (f->shape.window <= 0 || f->position[query] - f->position[key] < f->shape.window);
}

static double score(const fixture *f, int64_t query, int64_t head, int64_t key)
{
    int64_t HD = f->shape.head_dim, kv = head / (f->shape.heads / f->shape.kv_heads);
    double s = 0;
    for (int64_t c = 0; c < HD; c++)
        s += (double)f->q[query * f->queries + head * HD + c] * (double)f->k[key * f->keys + kv * HD + c];
    s *= (double)f->shape.scale;
    return f->shape.softcap > 0 ? (double)f->shape.softcap * tanh(s / (double)f->shape.softcap) : s;
}

static void check_values(const fixture *f)
{
    int64_t HD = f->shape.head_dim, group = f->shape.heads / f->shape.kv_heads;
    double *want = nib_calloc((size_t)HD, sizeof *want);
    for (int64_t h = 0; h < f->shape.heads; h++)
        for (int64_t t = 0; t < f->T; t++) {
            double total = 0;
            memset(want, 0, (size_t)HD * sizeof *want);
            for (int64_t key = 0; key <= t; key++) {
                if (!visible(f, t, key)) continue;
                double weight = exp(score(f, t, h, key));
                total += weight;
                for (int64_t c = 0; c < HD; c++) want[c] += weight * (double)f->v[key * f->keys + h / group * HD + c];
            }
            for (int64_t c = 0; c < HD; c++) /* averages of values below 1: fp32 leaves some 1e-6 */
                assert_true(fabs(want[c] / total - (double)f->out[t * f->queries + h * HD + c]) < 5e-6);
            assert_true(fabs(log(total) - (double)f->lse[h * f->T + t]) < 1e-5); /* some units in size */
        }
    nib_free(want);
}

static void check_gradients(fixture *f)
{
    float *dq = nib_calloc((size_t)(f->T * f->queries), 4), *dk = nib_calloc((size_t)(f->T * f->keys), 4);
    float *dv = nib_calloc((size_t)(f->T * f->keys), 4);
    forward(f);
    assert_int_equal(
        f->ops->attention_backward(f->ops, f->shape, f->tree, nib_test_matrix(f->q, f->T, f->queries),
                                   nib_test_matrix(f->k, f->T, f->keys), nib_test_matrix(f->v, f->T, f->keys),
                                   nib_test_matrix(f->out, f->T, f->queries), f->lse,
                                   nib_test_matrix(f->weights, f->T, f->queries), nib_test_matrix(dq, f->T, f->queries),
                                   nib_test_matrix(dk, f->T, f->keys), nib_test_matrix(dv, f->T, f->keys)),
        NIB_OK);
    nib_test_gradient("q", scalar, f, f->q, dq, f->T * f->queries, 60);
    nib_test_gradient("k", scalar, f, f->k, dk, f->T * f->keys, 61);
    nib_test_gradient("v", scalar, f, f->v, dv, f->T * f->keys, 62);
    nib_free(dq);
    nib_free(dk);
    nib_free(dv);
}

static const struct {
    nib_attention_shape shape;
    int64_t T;
} cases[] = {
    {{.heads = 1, .kv_heads = 1, .head_dim = 16, .scale = 0.25f}, 1},
    {{.heads = 2, .kv_heads = 2, .head_dim = 8, .scale = 0.35f}, 31},
    {{.heads = 9, .kv_heads = 3, .head_dim = 64, .scale = 0.125f}, 65},
    {{.heads = 6, .kv_heads = 2, .head_dim = 16, .scale = 1.0f}, 257},
    {{.heads = 4, .kv_heads = 1, .head_dim = 80, .scale = 0.11f, .window = 7}, 130},
    {{.heads = 2, .kv_heads = 1, .head_dim = 128, .scale = 0.09f, .softcap = 2.0f}, 97},
    {{.heads = 2, .kv_heads = 2, .head_dim = 256, .scale = 0.06f, .window = 33, .softcap = 5.0f}, 200},
};

/* With the kernels of each instruction set that this CPU has. */
static void every_shape_meets_the_dense_definition(void **state)
{
    (void)state;
    for (nib_cpu_level level = NIB_CPU_PORTABLE; level < NIB_CPU_LEVELS && nib_cpu_kernels_at(level) != NULL; level++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            fixture f;
            fixture_begin(&f, cases[i].shape, cases[i].T, 100 * (i + 1));
            nib_cpu_context_of(f.ops)->kernels = nib_cpu_kernels_at(level);
            forward(&f);
            check_values(&f);
            check_gradients(&f);
            fixture_end(&f);
        }
}

/* A copy in bf16; rows lie 8 elements apart, and the gap is not a number, so that reading it would show. */
static nib_matrix bf16_copy(const float *from, int64_t rows, int64_t columns)
{
    nib_matrix m = {.rows = rows, .columns = columns, .stride = columns + 8, .dtype = NIB_DTYPE_BF16};
    nib_bf16 *to = nib_calloc((size_t)(rows * m.stride), sizeof *to);
    for (int64_t i = 0; i < rows * m.stride; i++) to[i].bits = 0x7fc1;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) to[r * m.stride + c] = nib_bf16_from_float(from[r * columns + c]);
    m.data = to;
    return m;
}

static void round_to_bf16(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] = nib_bf16_to_float(nib_bf16_from_float(x[i]));
}

/* Against fp32 on the same rounded inputs, |m - want| within `bound` of |want|, and the gaps between rows untouched. */
static void check_bf16(nib_matrix m, const float *want, double bound)
{
    const nib_bf16 *x = m.data;
    double error = 0, norm = 0;
    for (int64_t r = 0; r < m.rows; r++) {
        for (int64_t c = 0; c < m.columns; c++) {
            double w = (double)want[r * m.columns + c], d = (double)nib_bf16_to_float(x[r * m.stride + c]) - w;
            error += d * d;
            norm += w * w;
        }
        for (int64_t c = m.columns; c < m.stride; c++) assert_int_equal(x[r * m.stride + c].bits, 0x7fc1);
    }
    assert_true(error <= bound * bound * norm);
}

/* bf16 rounds by 2^-9 at most: out once on its way out and once in the probabilities, so 2 * 2^-9 of its norm;
 * gradients also in dS and, through D, in out, so 4 * 2^-9. */
static void bf16_stays_within_its_rounding(void **state)
{
    (void)state;
    for (nib_cpu_level level = NIB_CPU_PORTABLE; level < NIB_CPU_LEVELS && nib_cpu_kernels_at(level) != NULL; level++)
        for (size_t i = 2; i < sizeof cases / sizeof *cases; i++) {
            fixture f;
            fixture_begin(&f, cases[i].shape, cases[i].T, 100 * (i + 1));
            nib_cpu_context_of(f.ops)->kernels = nib_cpu_kernels_at(level);
            round_to_bf16(f.q, f.T * f.queries);
            round_to_bf16(f.k, f.T * f.keys);
            round_to_bf16(f.v, f.T * f.keys);
            round_to_bf16(f.weights, f.T * f.queries);
            forward(&f);
            float *d[3] = {nib_calloc((size_t)(f.T * f.queries), 4), nib_calloc((size_t)(f.T * f.keys), 4),
                           nib_calloc((size_t)(f.T * f.keys), 4)};
            nib_matrix fp32[8] = {nib_test_matrix(f.q, f.T, f.queries),   nib_test_matrix(f.k, f.T, f.keys),
                                  nib_test_matrix(f.v, f.T, f.keys),      nib_test_matrix(f.weights, f.T, f.queries),
                                  nib_test_matrix(f.out, f.T, f.queries), nib_test_matrix(d[0], f.T, f.queries),
                                  nib_test_matrix(d[1], f.T, f.keys),     nib_test_matrix(d[2], f.T, f.keys)};
            assert_int_equal(f.ops->attention_backward(f.ops, f.shape, f.tree, fp32[0], fp32[1], fp32[2], fp32[4],
                                                       f.lse, fp32[3], fp32[5], fp32[6], fp32[7]),
                             NIB_OK);
            nib_matrix m[8];
            for (int j = 0; j < 8; j++) m[j] = bf16_copy(fp32[j].data, fp32[j].rows, fp32[j].columns);
            for (int j = 4; j < 8; j++) /* results are poison until they are written */
                for (int64_t r = 0; r < m[j].rows; r++)
                    for (int64_t c = 0; c < m[j].columns; c++)
                        ((nib_bf16 *)m[j].data)[r * m[j].stride + c].bits = 0x7fc1;
            assert_int_equal(f.ops->attention_forward(f.ops, f.shape, f.tree, m[0], m[1], m[2], m[4], f.lse), NIB_OK);
            assert_int_equal(f.ops->attention_backward(f.ops, f.shape, f.tree, m[0], m[1], m[2], m[4], f.lse, m[3],
                                                       m[5], m[6], m[7]),
                             NIB_OK);
            check_bf16(m[4], f.out, 2.0 / 512);
            for (int j = 0; j < 3; j++) check_bf16(m[5 + j], d[j], 4.0 / 512);
            for (int j = 0; j < 8; j++) nib_free(m[j].data);
            for (int j = 0; j < 3; j++) nib_free(d[j]);
            fixture_end(&f);
        }
}

/* What a query may not see must not matter, even if it is not a number. */
static void hidden_tokens_do_not_matter(void **state)
{
    (void)state;
    fixture f;
    fixture_begin(&f, cases[2].shape, 150, 7);
    forward(&f);
    int64_t query = 149, bytes = f.queries * 4;
    float *before = nib_calloc((size_t)f.queries, 4);
    memcpy(before, f.out + query * f.queries, (size_t)bytes);
    int64_t hidden = 0;
    for (int64_t key = 0; key < f.T; key++) {
        if (visible(&f, query, key)) continue;
        hidden++;
        for (int64_t c = 0; c < f.keys; c++) f.k[key * f.keys + c] = 1e3f, f.v[key * f.keys + c] = -1e30f;
    }
    assert_true(hidden > 0);
    forward(&f);
    assert_memory_equal(before, f.out + query * f.queries, (size_t)bytes);
    nib_free(before);
    fixture_end(&f);
}

/* A token of the cache sees the same keys as its packed twin: one range a branch of the tree. */
static void cached_equals_packed(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].shape.window > 0) continue; /* the cache counts keys, the tree positions */
        fixture f;
        fixture_begin(&f, cases[i].shape, cases[i].T, 100 * (i + 1));
        forward(&f);
        int64_t query = f.T - 1;
        int32_t begin[2] = {0, 0};
        nib_cache_range *range = nib_calloc((size_t)f.T, sizeof *range);
        for (int64_t key = 0; key <= query; key++)
            if (visible(&f, query, key)) range[begin[1]++] = (nib_cache_range){(int32_t)key, 1};
        float *out = nib_calloc((size_t)f.queries, 4);
        assert_int_equal(f.ops->attention_cached(f.ops, f.shape, nib_test_matrix(f.q + query * f.queries, 1, f.queries),
                                                 nib_test_matrix(f.k, f.T, f.keys), nib_test_matrix(f.v, f.T, f.keys),
                                                 begin, range, nib_test_matrix(out, 1, f.queries)),
                         NIB_OK);
        /* other tiles, so sums in another order: as above */
        for (int64_t c = 0; c < f.queries; c++) assert_true(fabsf(out[c] - f.out[query * f.queries + c]) < 5e-6f);
        range[0].first = (int32_t)f.T;
        assert_int_equal(f.ops->attention_cached(f.ops, f.shape, nib_test_matrix(f.q, 1, f.queries),
                                                 nib_test_matrix(f.k, f.T, f.keys), nib_test_matrix(f.v, f.T, f.keys),
                                                 begin, range, nib_test_matrix(out, 1, f.queries)),
                         NIB_ERROR_SHAPE);
        nib_free(range);
        nib_free(out);
        fixture_end(&f);
    }
}

/* Contexts that are cut into segments of 256 keys, and one that is shorter, in one batch; the same bits whatever
 * threads share the segments. */
static void long_cached_contexts_equal_packed_ones(void **state)
{
    (void)state;
    enum { T = 700, BATCH = 4 };
    static const int64_t query[BATCH] = {9, 511, 512, T - 1};
    const nib_attention_shape shape = {.heads = 6, .kv_heads = 2, .head_dim = 40, .scale = 0.2f};
    fixture f;
    fixture_begin(&f, shape, T, 7);
    for (int32_t t = 0; t < T; t++) f.position[t] = t, f.end[t] = T; /* one chain */
    forward(&f);
    const int64_t C = f.queries;
    float *q = nib_calloc((size_t)(BATCH * C), 4), *out = nib_calloc((size_t)(BATCH * C), 4);
    float *first = nib_calloc((size_t)(BATCH * C), 4);
    int32_t begin[BATCH + 1] = {0};
    nib_cache_range range[2 * BATCH];
    for (int i = 0; i < BATCH; i++) {
        memcpy(q + i * C, f.q + query[i] * C, (size_t)C * 4);
        range[2 * i] = (nib_cache_range){0, 7};
        range[2 * i + 1] = (nib_cache_range){7, (int32_t)query[i] - 6};
        begin[i + 1] = 2 * (i + 1);
    }
    for (int threads = 1; threads <= 3; threads++) {
#ifdef _OPENMP
        omp_set_num_threads(threads);
#endif
        assert_int_equal(f.ops->attention_cached(f.ops, f.shape, nib_test_matrix(q, BATCH, C),
                                                 nib_test_matrix(f.k, T, f.keys), nib_test_matrix(f.v, T, f.keys),
                                                 begin, range, nib_test_matrix(threads == 1 ? first : out, BATCH, C)),
                         NIB_OK);
        if (threads > 1) assert_memory_equal(out, first, (size_t)(BATCH * C) * 4);
    }
    for (int64_t i = 0; i < BATCH * C; i++) /* sums in another order: as above */
        assert_true(fabsf(first[i] - f.out[query[i / C] * C + i % C]) < 5e-6f);
    nib_free(q);
    nib_free(out);
    nib_free(first);
    fixture_end(&f);
}

#ifdef _OPENMP
static void threads_change_no_bit(void **state)
{
    (void)state;
    float *first[4] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        fixture f;
        omp_set_num_threads(threads);
        fixture_begin(&f, cases[3].shape, 300, 9);
        float *d[3];
        int64_t n[4] = {f.T * f.queries, f.T * f.keys, f.T * f.keys, f.T * f.queries};
        for (int i = 0; i < 3; i++) d[i] = nib_calloc((size_t)n[i], 4);
        forward(&f);
        assert_int_equal(
            f.ops->attention_backward(f.ops, f.shape, f.tree, nib_test_matrix(f.q, f.T, f.queries),
                                      nib_test_matrix(f.k, f.T, f.keys), nib_test_matrix(f.v, f.T, f.keys),
                                      nib_test_matrix(f.out, f.T, f.queries), f.lse,
                                      nib_test_matrix(f.weights, f.T, f.queries), nib_test_matrix(d[0], f.T, f.queries),
                                      nib_test_matrix(d[1], f.T, f.keys), nib_test_matrix(d[2], f.T, f.keys)),
            NIB_OK);
        float *all[4] = {d[0], d[1], d[2], f.out};
        for (int i = 0; i < 4; i++) {
            if (threads == 1) {
                first[i] = nib_calloc((size_t)n[i], 4);
                memcpy(first[i], all[i], (size_t)n[i] * 4);
            }
            assert_memory_equal(first[i], all[i], (size_t)n[i] * 4);
        }
        for (int i = 0; i < 3; i++) nib_free(d[i]);
        fixture_end(&f);
    }
    for (int i = 0; i < 4; i++) nib_free(first[i]);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape_meets_the_dense_definition),
        cmocka_unit_test(bf16_stays_within_its_rounding),
        cmocka_unit_test(hidden_tokens_do_not_matter),
        cmocka_unit_test(cached_equals_packed),
        cmocka_unit_test(long_cached_contexts_equal_packed_ones),
#ifdef _OPENMP
        cmocka_unit_test(threads_change_no_bit),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
