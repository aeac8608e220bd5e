/* RMSNorm, LayerNorm, rotary, gated activations, embedding, AdamW and the gradient norm: values against double
 * arithmetic, gradients against differences.
 *
 * Values are some units in size and fp32 keeps 6e-8 of them: a sum of 100 squares and the few operations behind it
 * leave about 1e-6, a sine or two products less. A wrong term is off by 1e-2. */
#include "numeric.h"

#include "cpu/vector.h"

#include <string.h>

enum { T = 23, C = 100 }; /* C is no multiple of a vector */

typedef struct {
    nib_ops *ops;
    float *x, *y, *weight, *weights, *spare;
    nib_matrix mx, my;
    int64_t groups; /* of rmsnorm */
} fixture;

static void begin(fixture *f, int64_t columns_in, int64_t columns_out)
{
    assert_int_equal(nib_cpu_backend_create(1 << 20, &f->ops), NIB_OK);
    f->x = nib_test_values(1, T * columns_in);
    f->y = nib_calloc((size_t)(T * columns_out), 4);
    f->weight = nib_test_values(2, columns_in);
    f->weights = nib_test_values(3, T * columns_out);
    f->spare = nib_calloc((size_t)(T * columns_in), 4);
    f->mx = nib_test_matrix(f->x, T, columns_in);
    f->my = nib_test_matrix(f->y, T, columns_out);
}

static void end(fixture *f)
{
    float *all[] = {f->x, f->y, f->weight, f->weights, f->spare};
    for (size_t i = 0; i < 5; i++) nib_free(all[i]);
    nib_cpu_backend_free(f->ops);
}

static double norm_scalar(void *user)
{
    fixture *f = user;
    assert_int_equal(f->ops->rmsnorm_forward(f->ops, f->mx, NULL, f->groups, f->weight, 1e-5f, f->my), NIB_OK);
    return nib_test_dot(f->weights, f->y, T * C);
}

/* The state: how many groups a row has. */
static void rmsnorm(void **state)
{
    fixture f = {.groups = *(const int64_t *)*state};
    const int64_t n = C / f.groups;
    begin(&f, C, C);
    float *dx = nib_test_values(4, T * C), *before = nib_test_values(4, T * C), *dweight = nib_calloc(n, 4);
    norm_scalar(&f);
    for (int64_t i = 0; i < T * C; i += n) {
        double squares = 0;
        for (int64_t c = 0; c < n; c++) squares += (double)f.x[i + c] * (double)f.x[i + c];
        for (int64_t c = 0; c < n; c++) {
            double want = (double)f.x[i + c] / sqrt(squares / (double)n + 1e-5) * (double)f.weight[c];
            assert_true(fabs(want - (double)f.y[i + c]) < 2e-6); /* a norm of some hundred columns */
        }
    }
    assert_int_equal(f.ops->rmsnorm_backward(f.ops, f.mx, f.groups, f.weight, 1e-5f, nib_test_matrix(f.weights, T, C),
                                             nib_test_matrix(dx, T, C), dweight),
                     NIB_OK);
    for (int64_t i = 0; i < T * C; i++) dx[i] -= before[i];
    nib_test_gradient("x", norm_scalar, &f, f.x, dx, T * C, 70);
    nib_test_gradient("weight", norm_scalar, &f, f.weight, dweight, n, 71);
    /* with a residual: x becomes x + delta, y the norm of that */
    float *x = nib_test_values(1, T * C), *delta = nib_test_values(5, T * C), *sum = nib_calloc(T * C, 4);
    nib_matrix mdelta = nib_test_matrix(delta, T, C), mx = nib_test_matrix(x, T, C), msum = nib_test_matrix(sum, T, C);
    for (int64_t i = 0; i < T * C; i++) sum[i] = x[i] + delta[i];
    assert_int_equal(f.ops->rmsnorm_forward(f.ops, mx, &mdelta, f.groups, f.weight, 1e-5f, f.my), NIB_OK);
    assert_memory_equal(x, sum, T * C * 4);
    memcpy(f.spare, f.y, T * C * 4);
    assert_int_equal(f.ops->rmsnorm_forward(f.ops, msum, NULL, f.groups, f.weight, 1e-5f, f.my), NIB_OK);
    assert_memory_equal(f.spare, f.y, T * C * 4);
    float *all[] = {dx, before, dweight, x, delta, sum};
    for (size_t i = 0; i < 6; i++) nib_free(all[i]);
    end(&f);
}

static double layernorm_scalar(void *user)
{
    fixture *f = user;
    assert_int_equal(f->ops->layernorm_forward(f->ops, f->mx, NULL, f->weight, f->spare, 1e-5f, f->my), NIB_OK);
    return nib_test_dot(f->weights, f->y, T * C);
}

static void layernorm_gradients_meet_differences(void **state)
{
    (void)state;
    fixture f;
    begin(&f, C, C);
    float *dx = nib_test_values(4, T * C), *before = nib_test_values(4, T * C);
    float *dweight = nib_calloc(C, 4), *dbias = nib_calloc(C, 4);
    for (int c = 0; c < C; c++) f.spare[c] = (float)sin(c);                         /* the bias */
    for (int64_t i = 0; i < T * C; i++) f.x[i] += 2.0f + (float)(i / C % 3) * 0.5f; /* a mean that has to go */
    assert_int_equal(f.ops->layernorm_backward(f.ops, f.mx, f.weight, 1e-5f, nib_test_matrix(f.weights, T, C),
                                               nib_test_matrix(dx, T, C), dweight, dbias),
                     NIB_OK);
    for (int64_t i = 0; i < T * C; i++) dx[i] -= before[i];
    nib_test_gradient("x", layernorm_scalar, &f, f.x, dx, T * C, 75);
    nib_test_gradient("weight", layernorm_scalar, &f, f.weight, dweight, C, 76);
    nib_test_gradient("bias", layernorm_scalar, &f, f.spare, dbias, C, 77);
    float *all[] = {dx, before, dweight, dbias};
    for (size_t i = 0; i < 4; i++) nib_free(all[i]);
    end(&f);
}

static void check_values(const float *found, const double *expected, int n)
{
    /* inputs were rounded to fp32 too, and a gradient subtracts means of what is as large */
    for (int i = 0; i < n; i++) assert_true(fabs((double)found[i] - expected[i]) < 5e-6);
}

/* torch.nn.functional.layer_norm and its backward, of float64. */
static void layernorm_meets_torch(void **state)
{
    (void)state;
    enum { ROWS = 2, N = 6 };
    static const double y[] = {1.86206715739,    -1.23095233987,  -0.0799513061164, 0.274675919462,
                               0.147361070193,   -1.00258440575,  1.12015287314,    -0.225798306666,
                               -0.0243352849279, -0.967369736656, 1.30331450178,    -1.23949804253};
    static const double dx[] = {0.0868763205514, 0.823804751394,  -0.858744340556, -0.297478395326,
                                0.863046379759,  -0.617504715822, 0.399975777755,  0.190619512911,
                                -0.897670135943, 0.795637332186,  -0.120857303678, -0.367705183231};
    static const double dweight[] = {0.858429042817,  -1.11416684319, 0.011406432663,
                                     -0.665526495779, 0.837934622143, 2.0226694298};
    static const double dbias[] = {0.841470984808, 1.05041743489, -1.71572676997,
                                   0.37757110052,  1.40147673187, -1.54401131744};
    float x[ROWS * N], delta[ROWS * N], dy[ROWS * N], weight[N], bias[N];
    float out[ROWS * N], gradient[ROWS * N] = {0}, weight_gradient[N] = {0}, bias_gradient[N] = {0};
    nib_ops *ops;
    for (int i = 0; i < ROWS * N; i++) {
        const int t = i / N, c = i % N;
        x[i] = (float)sin(7 * t + 3 * c + 1);
        delta[i] = (float)cos(5 * t + 2 * c);
        dy[i] = (float)sin(2 * c + t);
        weight[c] = (float)(1 + 0.1 * sin(c));
        bias[c] = (float)(0.1 * cos(c));
    }
    const nib_matrix mx = nib_test_matrix(x, ROWS, N), mdelta = nib_test_matrix(delta, ROWS, N);
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    assert_int_equal(ops->layernorm_forward(ops, mx, &mdelta, weight, bias, 1e-5f, nib_test_matrix(out, ROWS, N)),
                     NIB_OK);
    assert_int_equal(ops->layernorm_backward(ops, mx, weight, 1e-5f, nib_test_matrix(dy, ROWS, N),
                                             nib_test_matrix(gradient, ROWS, N), weight_gradient, bias_gradient),
                     NIB_OK);
    check_values(out, y, ROWS * N);
    check_values(gradient, dx, ROWS * N);
    check_values(weight_gradient, dweight, N);
    check_values(bias_gradient, dbias, N);
    nib_cpu_backend_free(ops);
}

/* rotate_every_two and apply_rotary_pos_emb of transformers' modeling_gptj.py, of float64: positions 0 and 5. */
static void interleaved_rotary_meets_gptj(void **state)
{
    (void)state;
    static const double expected[] = {0.841470984808,  0.909297426826, 0.14112000806,  -0.756802495308,
                                      -0.539948859385, 0.840276153667, 0.606718233269, 1.02095745086};
    const int32_t position[] = {0, 5};
    const float frequency[] = {1.0f, 0.01f};
    float table[8], x[8];
    nib_ops *ops;
    for (int i = 0; i < 8; i++) x[i] = (float)sin(1 + i);
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    assert_int_equal(ops->rotary_table(ops, position, 2, frequency, 2, 1.0f, table), NIB_OK);
    assert_int_equal(ops->rotary(ops, nib_test_matrix(x, 2, 4), 1, 4, table, 2, NIB_ROTARY_INTERLEAVED, false), NIB_OK);
    check_values(x, expected, 8);
    nib_cpu_backend_free(ops);
}

typedef struct {
    fixture f;
    nib_activation activation;
} glu_fixture;

static double glu_scalar(void *user)
{
    glu_fixture *g = user;
    assert_int_equal(g->f.ops->glu_forward(g->f.ops, g->activation, g->f.mx, g->f.my), NIB_OK);
    return nib_test_dot(g->f.weights, g->f.y, T * C);
}

static double silu(double x) { return x / (1 + exp(-x)); }
static double gelu(double x) { return 0.5 * x * erfc(-x / sqrt(2)); }
static double gelu_tanh(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x))); }

static void glu(void **state)
{
    (void)state;
    double (*const function[])(double) = {silu, gelu_tanh, gelu};
    for (int a = NIB_ACTIVATION_SILU; a <= NIB_ACTIVATION_GELU; a++) {
        glu_fixture g = {.activation = (nib_activation)a};
        fixture *f = &g.f;
        begin(f, 2 * C, C);
        for (int64_t i = 0; i < 12; i++) f->x[i] = (float)(i - 6) * 20.0f; /* the flat ends */
        glu_scalar(&g);
        for (int64_t t = 0; t < T; t++)
            for (int64_t c = 0; c < C; c++) {
                double want = function[a]((double)f->x[t * 2 * C + c]) * (double)f->x[t * 2 * C + C + c];
                assert_true(fabs(want - (double)f->y[t * C + c]) <= 1e-6 * (1 + fabs(want))); /* some ulp of exp */
            }
        memcpy(f->spare, f->x, T * 2 * C * 4);
        assert_int_equal(f->ops->glu_backward(f->ops, g.activation, nib_test_matrix(f->weights, T, C),
                                              nib_test_matrix(f->spare, T, 2 * C)),
                         NIB_OK);
        nib_test_gradient("gate_up", glu_scalar, &g, f->x, f->spare, T * 2 * C, 72);
        assert_int_equal(f->ops->glu_forward(f->ops, (nib_activation)3, f->mx, f->my), NIB_ERROR_SHAPE);
        end(f);
    }
}

typedef struct {
    fixture f;
    const float *table;
    nib_rotary_layout layout;
    int32_t *token; /* of an embedding */
} lookup_fixture;

enum { HEADS = 5, HD = 20, TURNED = 7 }; /* of a head, 6 dims stay as they are */

/* In place: what is turned is a copy. */
static double rotary_scalar(void *user)
{
    lookup_fixture *r = user;
    fixture *f = &r->f;
    memcpy(f->y, f->x, T * C * 4);
    assert_int_equal(f->ops->rotary(f->ops, f->my, HEADS, HD, r->table, TURNED, r->layout, false), NIB_OK);
    return nib_test_dot(f->weights, f->y, T * C);
}

/* With a scale of the table, as of YaRN, the gradient is turned back and scaled again: no inverse. */
static void rotary_gradients_meet_differences(void **state)
{
    (void)state;
    for (int layout = NIB_ROTARY_HALF_SPLIT; layout <= NIB_ROTARY_INTERLEAVED; layout++) {
        lookup_fixture r = {.layout = (nib_rotary_layout)layout};
        begin(&r.f, C, C);
        int32_t position[T];
        float frequency[TURNED], *table = nib_calloc(T * 2 * TURNED, 4), *dx = nib_calloc(T * C, 4);
        r.table = table;
        for (int t = 0; t < T; t++) position[t] = t * 37;
        for (int i = 0; i < TURNED; i++) frequency[i] = powf(10000.0f, -(float)i / TURNED);
        assert_int_equal(r.f.ops->rotary_table(r.f.ops, position, T, frequency, TURNED, 1.3f, table), NIB_OK);
        memcpy(dx, r.f.weights, T * C * 4);
        nib_matrix mdx = nib_test_matrix(dx, T, C);
        assert_int_equal(r.f.ops->rotary(r.f.ops, mdx, HEADS, HD, table, TURNED, r.layout, true), NIB_OK);
        nib_test_gradient("x", rotary_scalar, &r, r.f.x, dx, T * C, 78);
        nib_free(table);
        nib_free(dx);
        end(&r.f);
    }
}

static double embedding_scalar(void *user)
{
    lookup_fixture *e = user;
    fixture *f = &e->f;
    assert_int_equal(f->ops->embedding_forward(f->ops, e->token, f->mx, 3.0f, f->my), NIB_OK);
    return nib_test_dot(f->weights, f->y, T * C);
}

static void embedding_gradients_meet_differences(void **state)
{
    (void)state;
    lookup_fixture e = {0};
    int32_t token[T];
    begin(&e.f, C, C);
    e.token = token;
    for (int t = 0; t < T; t++) token[t] = t * 7 % (T - 1); /* x is the table: one row twice, one never */
    float *dtable = nib_calloc(T * C, 4);
    assert_int_equal(e.f.ops->embedding_backward(e.f.ops, token, nib_test_matrix(e.f.weights, T, C), 3.0f, dtable),
                     NIB_OK);
    nib_test_gradient("table", embedding_scalar, &e, e.f.x, dtable, T * C, 79);
    nib_free(dtable);
    end(&e.f);
}

static void rotate_and_back(nib_rotary_layout layout)
{
    enum { PAIRS = HD / 2 };
    fixture f;
    begin(&f, HEADS * HD, HEADS * HD);
    int32_t position[T];
    float frequency[PAIRS], *table = nib_calloc(T * 2 * PAIRS, 4), *x = nib_test_values(1, T * HEADS * HD);
    for (int t = 0; t < T; t++) position[t] = t * 37;
    for (int i = 0; i < PAIRS; i++) frequency[i] = powf(10000.0f, -(float)i / PAIRS);
    assert_int_equal(f.ops->rotary_table(f.ops, position, T, frequency, PAIRS, 1.0f, table), NIB_OK);
    assert_int_equal(f.ops->rotary(f.ops, f.mx, HEADS, HD, table, PAIRS, layout, false), NIB_OK);
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < HEADS; h++)
            for (int64_t i = 0; i < PAIRS; i++) {
                const bool halves = layout == NIB_ROTARY_HALF_SPLIT;
                const int64_t at = t * HEADS * HD + h * HD + (halves ? i : 2 * i), other = at + (halves ? PAIRS : 1);
                double angle = (double)((float)position[t] * frequency[i]);
                double a = (double)x[at], b = (double)x[other];
                assert_true(fabs(a * cos(angle) - b * sin(angle) - (double)f.x[at]) < 1e-6);
                assert_true(fabs(b * cos(angle) + a * sin(angle) - (double)f.x[other]) < 1e-6);
            }
    /* the inverse rotation is the transpose, so it undoes, but for four roundings */
    assert_int_equal(f.ops->rotary(f.ops, f.mx, HEADS, HD, table, PAIRS, layout, true), NIB_OK);
    for (int64_t i = 0; i < T * HEADS * HD; i++) assert_true(fabsf(f.x[i] - x[i]) < 1e-6f);
    nib_free(table);
    nib_free(x);
    end(&f);
}

static void rotary(void **state)
{
    (void)state;
    rotate_and_back(NIB_ROTARY_HALF_SPLIT);
    rotate_and_back(NIB_ROTARY_INTERLEAVED);
}

static void embedding(void **state)
{
    (void)state;
    enum { V = 11 };
    fixture f;
    begin(&f, C, C);
    float *table = nib_test_values(6, V * C), *dtable = nib_calloc(V * C, 4), *want = nib_calloc(V * C, 4);
    int32_t token[T];
    for (int t = 0; t < T; t++) token[t] = (t * 7) % (V - 1);
    assert_int_equal(f.ops->embedding_forward(f.ops, token, nib_test_matrix(table, V, C), 3.0f, f.my), NIB_OK);
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < C; c++) {
            assert_true(f.y[t * C + c] == 3.0f * table[token[t] * C + c]);
            want[token[t] * C + c] += 3.0f * f.weights[t * C + c];
        }
    assert_int_equal(f.ops->embedding_backward(f.ops, token, nib_test_matrix(f.weights, T, C), 3.0f, dtable), NIB_OK);
    assert_memory_equal(want, dtable, V * C * 4);
    token[3] = V;
    assert_int_equal(f.ops->embedding_forward(f.ops, token, nib_test_matrix(table, V, C), 1.0f, f.my), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "token 11 at 3"));
    nib_free(table);
    nib_free(dtable);
    nib_free(want);
    end(&f);
}

/* Five steps of AdamW in double arithmetic, written from the paper (algorithm 2 with decoupled decay). Every second one
 * comes behind a step that was missed, and so takes the other of the two factors. */
static void adamw(void **state)
{
    (void)state;
    enum { N = 1000 };
    nib_ops *ops;
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    float *p = nib_test_values(7, N), *m = nib_calloc(N, 4), *v = nib_calloc(N, 4);
    double wp[N], wm[N] = {0}, wv[N] = {0};
    for (int i = 0; i < N; i++) wp[i] = (double)p[i];
    for (int step = 1; step <= 5; step++) {
        float *g = nib_test_values(8 + (uint64_t)step, N);
        nib_clip half = {.norm = 2.0, .scale = 0.5f, .missed = step % 2};
        nib_adamw_factors factors[2] = {{.decay = NAN}, {.decay = NAN}};
        factors[half.missed] = nib_adamw_factors_of((nib_adamw){
            .learning_rate = 0.01, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0.1, .step = step});
        assert_int_equal(ops->adamw(ops, factors, &half, N, p, g, m, v), NIB_OK);
        for (int i = 0; i < N; i++) {
            double gradient = 0.5 * (double)g[i];
            wm[i] = 0.9 * wm[i] + 0.1 * gradient;
            wv[i] = 0.999 * wv[i] + 0.001 * gradient * gradient;
            double mean = wm[i] / (1 - pow(0.9, step)), square = wv[i] / (1 - pow(0.999, step));
            wp[i] = wp[i] * (1 - 0.01 * 0.1) - 0.01 * mean / (sqrt(square) + 1e-8);
            /* an update is at most about 0.01; fp32 gets it to some 1e-6 of that plus the parameter's own rounding */
            assert_true(fabs(wp[i] - (double)p[i]) < 5e-7);
        }
        nib_free(g);
    }
    float *arrays[] = {p, m};
    int64_t lengths[] = {N, N - 1};
    double want = sqrt(nib_test_dot(p, p, N) + nib_test_dot(m, m, N - 1));
    nib_clip clip = {0};
    assert_int_equal(ops->global_norm(ops, 2, arrays, lengths, 0.25 * want, &clip), NIB_OK);
    /* the norm is summed in double; the scale has 1e-6 in its denominator */
    assert_true(fabs(clip.norm - want) < 1e-12 * want && fabs((double)clip.scale - 0.25) < 1e-5);
    assert_int_equal(ops->global_norm(ops, 2, arrays, lengths, 2 * want, &clip), NIB_OK);
    assert_true(clip.scale == 1.0f);
    m[5] = NAN;
    assert_int_equal(ops->global_norm(ops, 2, arrays, lengths, 1.0, &clip), NIB_OK);
    assert_true(isnan(clip.norm) && clip.missed == 0);
    float before = p[0];
    const nib_adamw_factors factors[2] = {nib_adamw_factors_of((nib_adamw){.learning_rate = 1, .step = 1})};
    assert_int_equal(ops->adamw(ops, factors, &clip, N, p, v, m, v), NIB_OK);
    assert_true(p[0] == before); /* a step that is not finite changes nothing */
    m[5] = 0;
    for (int missed = 1; missed >= 0; missed--) { /* the next one knows of it, the one behind that does not */
        assert_int_equal(ops->global_norm(ops, 2, arrays, lengths, 1.0, &clip), NIB_OK);
        assert_true(isfinite(clip.norm) && clip.missed == missed);
    }
    nib_free(p);
    nib_free(m);
    nib_free(v);
    nib_cpu_backend_free(ops);
}

/* The vector exponential against libm's double, over its whole range. */
static void exponential(void **state)
{
    (void)state;
    float x[16], y[16];
    for (int block = 0; block < 20000; block++) {
        for (int i = 0; i < 16; i++) x[i] = -87.0f + 175.0f * (float)(block * 16 + i) / 320000.0f;
        nib_v16 result = nib_v16_exp(*(nib_v16 *)x);
        memcpy(y, &result, sizeof y);
        for (int i = 0; i < 16; i++) {
            double want = exp((double)x[i]);
            assert_true(fabs((double)y[i] - want) < 2.5e-7 * want); /* 2 ulp = 2.4e-7 */
        }
    }
    for (int i = 0; i < 16; i++) x[i] = i % 2 ? -INFINITY : -100.0f;
    nib_v16 result = nib_v16_exp(*(nib_v16 *)x);
    memcpy(y, &result, sizeof y);
    for (int i = 0; i < 16; i++) assert_true(y[i] == 0.0f);
}

int main(void)
{
    static int64_t whole = 1, quarters = 4;
    const struct CMUnitTest tests[] = {
        {"rmsnorm", rmsnorm, NULL, NULL, &whole},
        {"rmsnorm of four groups", rmsnorm, NULL, NULL, &quarters},
        cmocka_unit_test(layernorm_gradients_meet_differences),
        cmocka_unit_test(layernorm_meets_torch),
        cmocka_unit_test(interleaved_rotary_meets_gptj),
        cmocka_unit_test(glu),
        cmocka_unit_test(rotary),
        cmocka_unit_test(rotary_gradients_meet_differences),
        cmocka_unit_test(embedding),
        cmocka_unit_test(embedding_gradients_meet_differences),
        cmocka_unit_test(adamw),
        cmocka_unit_test(exponential),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
