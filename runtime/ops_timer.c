#include "ops_timer.h"
#include "base/memory.h"
#include "bench.h"

/* The ops that are timed: name, parameters, arguments. All take ops first. */
#define TIMED_OPS(X)                                                                                                   \
    X(upload, (nib_ops * ops, void *to, const void *host, size_t bytes), (to, host, bytes))                            \
    X(download, (nib_ops * ops, void *host, const void *from, size_t bytes), (host, from, bytes))                      \
    X(fetch, (nib_ops * ops, void *host, const void *from, size_t bytes), (host, from, bytes))                         \
    X(zero, (nib_ops * ops, void *block, size_t bytes), (block, bytes))                                                \
    X(convert, (nib_ops * ops, nib_matrix from, nib_matrix to), (from, to))                                            \
    X(tree_sum, (nib_ops * ops, float *x, int count, const float *const *left, int64_t n, float *to),                  \
      (x, count, left, n, to))                                                                                         \
    X(embedding_forward, (nib_ops * ops, const int32_t *token, nib_matrix table, float scale, nib_matrix x),           \
      (token, table, scale, x))                                                                                        \
    X(embedding_backward, (nib_ops * ops, const int32_t *token, nib_matrix dx, float scale, float *dtable),            \
      (token, dx, scale, dtable))                                                                                      \
    X(rmsnorm_forward,                                                                                                 \
      (nib_ops * ops, nib_matrix x, const nib_matrix *delta, int64_t groups, const float *weight, float epsilon,       \
       nib_matrix y),                                                                                                  \
      (x, delta, groups, weight, epsilon, y))                                                                          \
    X(rmsnorm_backward,                                                                                                \
      (nib_ops * ops, nib_matrix x, int64_t groups, const float *weight, float epsilon, nib_matrix dy, nib_matrix dx,  \
       float *dweight),                                                                                                \
      (x, groups, weight, epsilon, dy, dx, dweight))                                                                   \
    X(layernorm_forward,                                                                                               \
      (nib_ops * ops, nib_matrix x, const nib_matrix *delta, const float *weight, const float *bias, float epsilon,    \
       nib_matrix y),                                                                                                  \
      (x, delta, weight, bias, epsilon, y))                                                                            \
    X(layernorm_backward,                                                                                              \
      (nib_ops * ops, nib_matrix x, const float *weight, float epsilon, nib_matrix dy, nib_matrix dx, float *dweight,  \
       float *dbias),                                                                                                  \
      (x, weight, epsilon, dy, dx, dweight, dbias))                                                                    \
    X(rotary_table,                                                                                                    \
      (nib_ops * ops, const int32_t *position, int64_t T, const float *frequency, int64_t pairs, float scale,          \
       float *table),                                                                                                  \
      (position, T, frequency, pairs, scale, table))                                                                   \
    X(rotary,                                                                                                          \
      (nib_ops * ops, nib_matrix x, int64_t heads, int64_t head_dim, const float *table, int64_t pairs,                \
       nib_rotary_layout layout, bool inverse),                                                                        \
      (x, heads, head_dim, table, pairs, layout, inverse))                                                             \
    X(attention_forward,                                                                                               \
      (nib_ops * ops, nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k, nib_matrix v,              \
       nib_matrix out, float *lse),                                                                                    \
      (shape, tree, q, k, v, out, lse))                                                                                \
    X(attention_backward,                                                                                              \
      (nib_ops * ops, nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k, nib_matrix v,              \
       nib_matrix out, const float *lse, nib_matrix dout, nib_matrix dq, nib_matrix dk, nib_matrix dv),                \
      (shape, tree, q, k, v, out, lse, dout, dq, dk, dv))                                                              \
    X(linear_forward,                                                                                                  \
      (nib_ops * ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u, nib_matrix y),        \
      (linear, x, dropout, u, y))                                                                                      \
    X(linear_backward,                                                                                                 \
      (nib_ops * ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u, nib_matrix dy,        \
       bool accumulate, nib_matrix dx),                                                                                \
      (linear, x, dropout, u, dy, accumulate, dx))                                                                     \
    X(dora_norm, (nib_ops * ops, const nib_linear_part *part, int64_t K), (part, K))                                   \
    X(glu_forward, (nib_ops * ops, nib_activation activation, nib_matrix gate_up, nib_matrix h),                       \
      (activation, gate_up, h))                                                                                        \
    X(glu_backward, (nib_ops * ops, nib_activation activation, nib_matrix dh, nib_matrix gate_up),                     \
      (activation, dh, gate_up))                                                                                       \
    X(linear_cross_entropy,                                                                                            \
      (nib_ops * ops, nib_matrix x, nib_matrix head, float softcap, nib_targets targets, float gradient_scale,         \
       float *nll, nib_matrix dx, float *dhead),                                                                       \
      (x, head, softcap, targets, gradient_scale, nll, dx, dhead))                                                     \
    X(head_rows_backward,                                                                                              \
      (nib_ops * ops, nib_matrix x, nib_matrix head, nib_targets targets, float gradient_scale, const float *nll,      \
       int64_t n, const int32_t *row, float *drows),                                                                   \
      (x, head, targets, gradient_scale, nll, n, row, drows))                                                          \
    X(nf4_dequantize, (nib_ops * ops, const nib_nf4 *weight, nib_matrix out), (weight, out))                           \
    X(global_norm,                                                                                                     \
      (nib_ops * ops, int count, float *const *array, const int64_t *length, double max_norm, nib_clip *clip),         \
      (count, array, length, max_norm, clip))                                                                          \
    X(adamw,                                                                                                           \
      (nib_ops * ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n, float *parameter,             \
       const float *gradient, float *first_moment, float *second_moment),                                              \
      (factors, clip, n, parameter, gradient, first_moment, second_moment))                                            \
    X(adamw_8bit,                                                                                                      \
      (nib_ops * ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n, float *parameter,             \
       const float *gradient, nib_moments_8bit moments),                                                               \
      (factors, clip, n, parameter, gradient, moments))

enum {
#define INDEX(op, parameters, arguments) INDEX_##op,
    TIMED_OPS(INDEX)
#undef INDEX
        TIMED_COUNT
};

typedef struct {
    nib_ops *inner;
    nib_op_time time[TIMED_COUNT];
} context;

static context *context_of(nib_ops *ops) { return ops->context; }

static nib_status timed(nib_ops *ops, int index, double before, nib_status status)
{
    context *c = context_of(ops);
    if (status == NIB_OK) status = c->inner->synchronize(c->inner);
    c->time[index].calls++;
    c->time[index].seconds += nib_bench_seconds() - before;
    return status;
}

/* clang-format off */
#define UNWRAP(...) __VA_ARGS__
#define DEFINE(op, parameters, arguments)                                                                              \
    static nib_status timed_##op parameters                                                                            \
    {                                                                                                                  \
        nib_ops *inner = context_of(ops)->inner;                                                                       \
        const double before = nib_bench_seconds();                                                                     \
        return timed(ops, INDEX_##op, before, inner->op(inner, UNWRAP arguments));                                     \
    }
TIMED_OPS(DEFINE)
#undef DEFINE
/* clang-format on */

/* Not timed, but they need the inner backend. */
static nib_status allocate(nib_ops *ops, const char *name, size_t bytes, void **block)
{
    return context_of(ops)->inner->allocate(context_of(ops)->inner, name, bytes, block);
}
static void release(nib_ops *ops, void *block, size_t bytes)
{
    context_of(ops)->inner->release(context_of(ops)->inner, block, bytes);
}
static nib_status synchronize(nib_ops *ops) { return context_of(ops)->inner->synchronize(context_of(ops)->inner); }
static nib_status nf4_quantize(nib_ops *ops, const float *weight, int64_t n, uint8_t *codes, float *absmax)
{
    return context_of(ops)->inner->nf4_quantize(context_of(ops)->inner, weight, n, codes, absmax);
}
static nib_status nf4_quantize_absmax(nib_ops *ops, const float *absmax, int64_t blocks, const float *nested_map,
                                      uint8_t *absmax_codes, float *nested_absmax, float *nested_offset)
{
    return context_of(ops)->inner->nf4_quantize_absmax(context_of(ops)->inner, absmax, blocks, nested_map, absmax_codes,
                                                       nested_absmax, nested_offset);
}

nib_status nib_ops_timer_create(nib_ops *inner, nib_ops **timer)
{
    nib_ops *ops = nib_calloc(1, sizeof *ops);
    context *c = nib_calloc(1, sizeof *c);
    if (ops == NULL || c == NULL) {
        nib_free(ops);
        nib_free(c);
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to time the ops");
    }
    c->inner = inner;
    *ops = (nib_ops){.name = inner->name,
                     .device = inner->device,
                     .context = c,
                     .bf16_only = inner->bf16_only,
                     .fp8 = inner->fp8,
                     .uses_room = inner->uses_room,
                     .shape_step = inner->shape_step,
                     .scratch = inner->scratch,
                     .allocate = allocate,
                     .release = release,
                     .synchronize = synchronize,
                     .nf4_quantize = nf4_quantize,
                     .nf4_quantize_absmax = nf4_quantize_absmax,
#define SET(each, parameters, arguments) .each = timed_##each,
                     TIMED_OPS(SET)
#undef SET
    };
#define NAME(each, parameters, arguments) c->time[INDEX_##each].op = #each;
    TIMED_OPS(NAME)
#undef NAME
    *timer = ops;
    return NIB_OK;
}

void nib_ops_timer_free(nib_ops *timer)
{
    if (timer == NULL) return;
    nib_free(timer->context);
    nib_free(timer);
}

int nib_ops_timer_times(nib_ops *timer, const nib_op_time **times)
{
    *times = context_of(timer)->time;
    return TIMED_COUNT;
}

void nib_ops_timer_reset(nib_ops *timer)
{
    for (int i = 0; i < TIMED_COUNT; i++) {
        context_of(timer)->time[i].calls = 0;
        context_of(timer)->time[i].seconds = 0.0;
    }
}
