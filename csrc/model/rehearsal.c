/* Every op is counted here, then called in the backend's dry table, where it takes its scratch. */
#include "model/rehearsal.h"
#include "base/memory.h"

#include <string.h>
#include <sys/mman.h>

typedef struct {
    nib_ops *dry; /* the backend's, freed with the rehearsal */
    nib_work work;
} context;

static nib_ops *dry_of(nib_ops *ops) { return ((context *)ops->context)->dry; }
static nib_work *work_of(nib_ops *ops) { return &((context *)ops->context)->work; }

/* The op of the dry table, if it takes scratch there. */
#define DRY(op, ...) (dry_of(ops)->op == NULL ? NIB_OK : dry_of(ops)->op(dry_of(ops), __VA_ARGS__))

static double bytes_of(nib_matrix m) { return (double)m.rows * (double)m.columns * (m.dtype == NIB_DTYPE_F32 ? 4 : 2); }

static void count_bytes(nib_ops *ops, double bytes) { work_of(ops)->elementwise_bytes += bytes; }

static nib_status reserve_addresses(nib_ops *ops, const char *name, size_t bytes, void **block)
{
    (void)ops;
    *block = NULL;
    if (bytes == 0) return NIB_OK;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no address space for %s: %.2f GiB asked for", name,
                        (double)bytes / (1 << 30));
    *block = memory;
    return NIB_OK;
}

static void release_addresses(nib_ops *ops, void *block, size_t bytes)
{
    (void)ops;
    if (block != NULL) munmap(block, bytes);
}

static nib_status upload(nib_ops *ops, void *to, const void *host, size_t bytes)
{
    (void)ops;
    if (bytes > 0) memcpy(to, host, bytes);
    return NIB_OK;
}

static nib_status download(nib_ops *ops, void *host, const void *from, size_t bytes)
{
    (void)ops;
    (void)from;
    if (bytes > 0) memset(host, 0, bytes);
    return NIB_OK;
}

static nib_status zero(nib_ops *ops, void *block, size_t bytes)
{
    (void)block;
    count_bytes(ops, (double)bytes);
    return NIB_OK;
}

static nib_status synchronize(nib_ops *ops)
{
    (void)ops;
    return NIB_OK;
}

static nib_status convert(nib_ops *ops, nib_matrix from, nib_matrix to)
{
    count_bytes(ops, bytes_of(from) + bytes_of(to));
    return DRY(convert, from, to);
}

static nib_status tree_sum(nib_ops *ops, float *x, int count, const float *const *left, int64_t n, float *to)
{
    count_bytes(ops, 4.0 * (double)n * (count + (to == x ? 2 : 3)));
    return DRY(tree_sum, x, count, left, n, to);
}

static nib_status embedding_forward(nib_ops *ops, const int32_t *token, nib_matrix table, float scale, nib_matrix x)
{
    count_bytes(ops, 2 * bytes_of(x));
    return DRY(embedding_forward, token, table, scale, x);
}

static nib_status embedding_backward(nib_ops *ops, const int32_t *token, nib_matrix dx, float scale, float *dtable)
{
    count_bytes(ops, 3 * bytes_of(dx));
    return DRY(embedding_backward, token, dx, scale, dtable);
}

static nib_status rmsnorm_forward(nib_ops *ops, nib_matrix x, const nib_matrix *delta, int64_t groups,
                                  const float *weight, float epsilon, nib_matrix y)
{
    count_bytes(ops, (delta == NULL ? 1 : 3) * bytes_of(x) + (y.data == NULL ? 0 : bytes_of(y)));
    return DRY(rmsnorm_forward, x, delta, groups, weight, epsilon, y);
}

static nib_status rmsnorm_backward(nib_ops *ops, nib_matrix x, int64_t groups, const float *weight, float epsilon,
                                   nib_matrix dy, nib_matrix dx, float *dweight)
{
    count_bytes(ops, bytes_of(x) + bytes_of(dy) + 2 * bytes_of(dx));
    return DRY(rmsnorm_backward, x, groups, weight, epsilon, dy, dx, dweight);
}

static nib_status layernorm_forward(nib_ops *ops, nib_matrix x, const nib_matrix *delta, const float *weight,
                                    const float *bias, float epsilon, nib_matrix y)
{
    count_bytes(ops, (delta == NULL ? 1 : 3) * bytes_of(x) + (y.data == NULL ? 0 : bytes_of(y)));
    return DRY(layernorm_forward, x, delta, weight, bias, epsilon, y);
}

static nib_status layernorm_backward(nib_ops *ops, nib_matrix x, const float *weight, float epsilon, nib_matrix dy,
                                     nib_matrix dx, float *dweight, float *dbias)
{
    count_bytes(ops, bytes_of(x) + bytes_of(dy) + 2 * bytes_of(dx));
    return DRY(layernorm_backward, x, weight, epsilon, dy, dx, dweight, dbias);
}

static nib_status rotary_table(nib_ops *ops, const int32_t *position, int64_t T, const float *frequency, int64_t pairs,
                               float scale, float *table)
{
    count_bytes(ops, 8.0 * (double)(T * pairs));
    return DRY(rotary_table, position, T, frequency, pairs, scale, table);
}

static nib_status rotary(nib_ops *ops, nib_matrix x, int64_t heads, int64_t head_dim, const float *table, int64_t pairs,
                         nib_rotary_layout layout, bool inverse)
{
    count_bytes(ops, 2 * bytes_of(x));
    return DRY(rotary, x, heads, head_dim, table, pairs, layout, inverse);
}

static nib_status glu_forward(nib_ops *ops, nib_activation activation, nib_matrix gate_up, nib_matrix h)
{
    count_bytes(ops, bytes_of(gate_up) + bytes_of(h));
    return DRY(glu_forward, activation, gate_up, h);
}

static nib_status glu_backward(nib_ops *ops, nib_activation activation, nib_matrix dh, nib_matrix gate_up)
{
    count_bytes(ops, bytes_of(dh) + 2 * bytes_of(gate_up));
    return DRY(glu_backward, activation, dh, gate_up);
}

/* Queries and keys that see each other: a token sees its ancestors and itself, or as many of them as the window holds.
 */
static double visible_pairs(nib_attention_shape shape, nib_tree tree)
{
    double pairs = 0;
    for (int64_t t = 0; t < tree.T; t++) {
        int64_t seen = (int64_t)tree.position[t] + 1;
        pairs += (double)(shape.window > 0 && seen > shape.window ? shape.window : seen);
    }
    return pairs;
}

static nib_status attention_forward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k,
                                    nib_matrix v, nib_matrix out, float *lse)
{
    work_of(ops)->attention_flops += 4 * visible_pairs(shape, tree) * (double)(shape.heads * shape.head_dim);
    return DRY(attention_forward, shape, tree, q, k, v, out, lse);
}

static nib_status attention_backward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k,
                                     nib_matrix v, nib_matrix out, const float *lse, nib_matrix dout, nib_matrix dq,
                                     nib_matrix dk, nib_matrix dv)
{
    work_of(ops)->attention_flops += 10 * visible_pairs(shape, tree) * (double)(shape.heads * shape.head_dim);
    return DRY(attention_backward, shape, tree, q, k, v, out, lse, dout, dq, dk, dv);
}

static double lora_weights(const nib_linear *linear)
{
    double weights = 0;
    for (int p = 0; p < linear->parts; p++)
        weights += (double)linear->part[p].lora.rank * (double)(linear->K + linear->part[p].rows);
    return weights;
}

/* `flops` for each weight of the base; elements: of the activation that an fp8 product rounds. */
static void count_base(nib_ops *ops, const nib_linear *linear, double flops, bool fp8, double elements)
{
    nib_work *work = work_of(ops);
    *(fp8 ? &work->fp8_flops : &work->base_flops) += flops * (double)nib_linear_outputs(linear) * (double)linear->K;
    work->fp8_elements += fp8 ? elements : 0;
}

static nib_status linear_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                 nib_matrix u, nib_matrix y)
{
    double tokens = (double)x.rows;
    count_base(ops, linear, 2 * tokens, linear->fp8_forward, tokens * (double)linear->K);
    work_of(ops)->lora_flops += 2 * tokens * lora_weights(linear);
    return DRY(linear_forward, linear, x, dropout, u, y);
}

static nib_status linear_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                  nib_matrix u, nib_matrix dy, bool accumulated, nib_matrix dx)
{
    double tokens = (double)x.rows;
    double products = (dx.data != NULL) + (linear->part[0].dweight != NULL) + nib_linear_is_dora(linear);
    count_base(ops, linear, 2 * products * tokens, linear->fp8_backward && dx.data != NULL,
               tokens * (double)nib_linear_outputs(linear));
    work_of(ops)->lora_flops += 4 * tokens * lora_weights(linear);
    return DRY(linear_backward, linear, x, dropout, u, dy, accumulated, dx);
}

static nib_status dora_norm(nib_ops *ops, const nib_linear_part *part, int64_t K)
{
    work_of(ops)->lora_flops += 2 * (double)part->rows * (double)K * (double)(part->lora.rank + 1);
    return DRY(dora_norm, part, K);
}

static nib_status linear_cross_entropy(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap, nib_targets targets,
                                       float gradient_scale, float *nll, nib_matrix dx, float *dhead)
{
    double rows = 0, products = 1.0 + (dx.data != NULL) + (dhead != NULL);
    for (int64_t n = 0; n < targets.N; n++) rows += n == 0 || targets.row[n] != targets.row[n - 1];
    work_of(ops)->loss_flops += 2 * products * rows * (double)head.rows * (double)head.columns;
    return DRY(linear_cross_entropy, x, head, softcap, targets, gradient_scale, nll, dx, dhead);
}

static nib_status head_rows_backward(nib_ops *ops, nib_matrix x, nib_matrix head, nib_targets targets,
                                     float gradient_scale, const float *nll, int64_t n, const int32_t *row,
                                     float *drows)
{
    work_of(ops)->loss_flops += 4.0 * (double)targets.N * (double)n * (double)head.columns;
    return DRY(head_rows_backward, x, head, targets, gradient_scale, nll, n, row, drows);
}

static nib_status logits(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap, float *out)
{
    return DRY(logits, x, head, softcap, out);
}

static nib_status sample(nib_ops *ops, nib_sampling sampling, const float *from, int64_t rows, int64_t V,
                         const int64_t *position, int32_t *id)
{
    return DRY(sample, sampling, from, rows, V, position, id);
}

static nib_status global_norm(nib_ops *ops, int count, float *const *array, const int64_t *length, double max_norm,
                              nib_clip *clip)
{
    for (int i = 0; i < count; i++) work_of(ops)->optimizer_bytes += 4.0 * (double)length[i];
    return DRY(global_norm, count, array, length, max_norm, clip);
}

static nib_status adamw(nib_ops *ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n,
                        float *parameter, const float *gradient, float *first_moment, float *second_moment)
{
    work_of(ops)->optimizer_bytes += 7 * 4.0 * (double)n; /* four arrays read, three written */
    return DRY(adamw, factors, clip, n, parameter, gradient, first_moment, second_moment);
}

static nib_status adamw_8bit(nib_ops *ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n,
                             float *parameter, const float *gradient, nib_moments_8bit moments)
{
    work_of(ops)->optimizer_bytes += (3 * 4.0 + 4 * 1.0) * (double)n; /* parameter and codes read and written */
    return DRY(adamw_8bit, factors, clip, n, parameter, gradient, moments);
}

static void close_rehearsal(nib_ops *ops)
{
    if (ops == NULL) return;
    nib_ops *dry = dry_of(ops);
    if (dry != NULL) dry->close(dry);
    nib_free(ops->context);
    nib_free(ops);
}

static const nib_ops table = {
    .close = close_rehearsal,
    .rehearsal = true,
    .allocate = reserve_addresses,
    .release = release_addresses,
    .upload = upload,
    .download = download,
    .fetch = download,
    .zero = zero,
    .synchronize = synchronize,
    .convert = convert,
    .tree_sum = tree_sum,
    .embedding_forward = embedding_forward,
    .embedding_backward = embedding_backward,
    .rmsnorm_forward = rmsnorm_forward,
    .rmsnorm_backward = rmsnorm_backward,
    .layernorm_forward = layernorm_forward,
    .layernorm_backward = layernorm_backward,
    .rotary_table = rotary_table,
    .rotary = rotary,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .linear_forward = linear_forward,
    .linear_backward = linear_backward,
    .dora_norm = dora_norm,
    .glu_forward = glu_forward,
    .glu_backward = glu_backward,
    .linear_cross_entropy = linear_cross_entropy,
    .head_rows_backward = head_rows_backward,
    .logits = logits,
    .sample = sample,
    .global_norm = global_norm,
    .adamw = adamw,
    .adamw_8bit = adamw_8bit,
};

nib_status nib_rehearsal_create(nib_ops *backend, nib_ops **out)
{
    nib_ops *ops = nib_calloc(1, sizeof *ops);
    context *c = nib_calloc(1, sizeof *c);
    nib_status status;
    *out = NULL;
    if (ops == NULL || c == NULL) {
        nib_free(c);
        nib_free(ops);
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a rehearsal");
    }
    *ops = table;
    ops->name = backend->name;
    ops->device = backend->device;
    ops->bf16_only = backend->bf16_only;
    ops->fp8 = backend->fp8;
    ops->uses_room = backend->uses_room;
    ops->shape_step = backend->shape_step;
    ops->context = c;
    status = backend->rehearse(backend, &c->dry);
    if (status != NIB_OK) {
        close_rehearsal(ops);
        return status;
    }
    ops->scratch = c->dry->scratch; /* without a block: it counts */
    *out = ops;
    return NIB_OK;
}

nib_work *nib_rehearsal_work(nib_ops *ops) { return work_of(ops); }
