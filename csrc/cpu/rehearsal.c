/* Ops that take scratch run as they are, and leave after taking it (ops->rehearsal); the others are replaced. */
#include "cpu/rehearsal.h"
#include "base/memory.h"
#include "cpu/adamw.h"
#include "cpu/attention.h"
#include "cpu/backend.h"
#include "cpu/backend_internal.h"
#include "cpu/embedding.h"
#include "cpu/linear.h"
#include "cpu/linear_cross_entropy.h"

#include <string.h>
#include <sys/mman.h>

static nib_work *work_of(nib_ops *ops) { return &nib_cpu_context_of(ops)->work; }

static double bytes_of(nib_matrix m) { return (double)m.rows * (double)m.columns * (m.dtype == NIB_DTYPE_F32 ? 4 : 2); }

static nib_status count_bytes(nib_ops *ops, double bytes)
{
    work_of(ops)->elementwise_bytes += bytes;
    return NIB_OK;
}

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
    return count_bytes(ops, (double)bytes);
}

static nib_status synchronize(nib_ops *ops)
{
    (void)ops;
    return NIB_OK;
}

static nib_status convert(nib_ops *ops, nib_matrix from, nib_matrix to)
{
    return count_bytes(ops, bytes_of(from) + bytes_of(to));
}

static nib_status accumulate(nib_ops *ops, float *to, const float *from, int64_t n)
{
    (void)to;
    (void)from;
    return count_bytes(ops, 12.0 * (double)n);
}

static nib_status embedding_forward(nib_ops *ops, const int32_t *token, nib_matrix table, float scale, nib_matrix x)
{
    (void)token;
    (void)table;
    (void)scale;
    return count_bytes(ops, 2 * bytes_of(x));
}

static nib_status embedding_backward(nib_ops *ops, const int32_t *token, nib_matrix dx, float scale, float *dtable)
{
    (void)token;
    (void)scale;
    (void)dtable;
    return count_bytes(ops, 3 * bytes_of(dx));
}

static nib_status rmsnorm_forward(nib_ops *ops, nib_matrix x, const nib_matrix *delta, const float *weight,
                                  float epsilon, nib_matrix y)
{
    (void)weight;
    (void)epsilon;
    return count_bytes(ops, (delta == NULL ? 1 : 3) * bytes_of(x) + (y.data == NULL ? 0 : bytes_of(y)));
}

static nib_status rmsnorm_backward(nib_ops *ops, nib_matrix x, const float *weight, float epsilon, nib_matrix dy,
                                   nib_matrix dx, float *dweight)
{
    (void)weight;
    (void)epsilon;
    (void)dweight;
    return count_bytes(ops, bytes_of(x) + bytes_of(dy) + 2 * bytes_of(dx));
}

static nib_status rotary_table(nib_ops *ops, const int32_t *position, int64_t T, const float *frequency, int64_t pairs,
                               float scale, float *table)
{
    (void)position;
    (void)frequency;
    (void)scale;
    (void)table;
    return count_bytes(ops, 8.0 * (double)(T * pairs));
}

static nib_status rotary(nib_ops *ops, nib_matrix x, int64_t heads, int64_t head_dim, const float *table, int64_t pairs,
                         bool inverse)
{
    (void)heads;
    (void)head_dim;
    (void)table;
    (void)pairs;
    (void)inverse;
    return count_bytes(ops, 2 * bytes_of(x));
}

static nib_status glu_forward(nib_ops *ops, nib_activation activation, nib_matrix gate_up, nib_matrix h)
{
    (void)activation;
    return count_bytes(ops, bytes_of(gate_up) + bytes_of(h));
}

static nib_status glu_backward(nib_ops *ops, nib_activation activation, nib_matrix dh, nib_matrix gate_up)
{
    (void)activation;
    return count_bytes(ops, bytes_of(dh) + 2 * bytes_of(gate_up));
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
    return nib_cpu_attention_forward(ops, shape, tree, q, k, v, out, lse);
}

static nib_status attention_backward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k,
                                     nib_matrix v, nib_matrix out, const float *lse, nib_matrix dout, nib_matrix dq,
                                     nib_matrix dk, nib_matrix dv)
{
    work_of(ops)->attention_flops += 10 * visible_pairs(shape, tree) * (double)(shape.heads * shape.head_dim);
    return nib_cpu_attention_backward(ops, shape, tree, q, k, v, out, lse, dout, dq, dk, dv);
}

static double lora_weights(const nib_linear *linear)
{
    double weights = 0;
    for (int p = 0; p < linear->parts; p++)
        weights += (double)linear->part[p].lora.rank * (double)(linear->K + linear->part[p].rows);
    return weights;
}

static nib_status linear_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                 nib_matrix u, nib_matrix y)
{
    double tokens = (double)x.rows, weights = (double)nib_linear_outputs(linear) * (double)linear->K;
    work_of(ops)->base_flops += 2 * tokens * weights;
    work_of(ops)->lora_flops += 2 * tokens * lora_weights(linear);
    return nib_cpu_linear_forward(ops, linear, x, dropout, u, y);
}

static nib_status linear_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                  nib_matrix u, nib_matrix dy, bool accumulated, nib_matrix dx)
{
    double tokens = (double)x.rows, weights = (double)nib_linear_outputs(linear) * (double)linear->K;
    double products = (dx.data != NULL) + (linear->part[0].dweight != NULL);
    work_of(ops)->base_flops += 2 * products * tokens * weights;
    work_of(ops)->lora_flops += 4 * tokens * lora_weights(linear);
    return nib_cpu_linear_backward(ops, linear, x, dropout, u, dy, accumulated, dx);
}

static nib_status linear_cross_entropy(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap, nib_targets targets,
                                       float gradient_scale, float *nll, nib_matrix dx, float *dhead)
{
    double rows = 0, products = 1.0 + (dx.data != NULL) + (dhead != NULL);
    for (int64_t n = 0; n < targets.N; n++) rows += n == 0 || targets.row[n] != targets.row[n - 1];
    work_of(ops)->loss_flops += 2 * products * rows * (double)head.rows * (double)head.columns;
    return nib_cpu_linear_cross_entropy(ops, x, head, softcap, targets, gradient_scale, nll, dx, dhead);
}

static nib_status global_norm(nib_ops *ops, int count, float *const *array, const int64_t *length, double max_norm,
                              nib_clip *clip)
{
    for (int i = 0; i < count; i++) work_of(ops)->optimizer_bytes += 4.0 * (double)length[i];
    return nib_cpu_global_norm(ops, count, array, length, max_norm, clip);
}

static nib_status adamw(nib_ops *ops, nib_adamw options, const nib_clip *clip, int64_t n, float *parameter,
                        const float *gradient, float *first_moment, float *second_moment)
{
    (void)options;
    (void)clip;
    (void)parameter;
    (void)gradient;
    (void)first_moment;
    (void)second_moment;
    work_of(ops)->optimizer_bytes += 7 * 4.0 * (double)n; /* four arrays read, three written */
    return NIB_OK;
}

static const nib_ops table = {
    .name = "cpu",
    .close = nib_cpu_backend_free,
    .rehearsal = true,
    .allocate = reserve_addresses,
    .release = release_addresses,
    .upload = upload,
    .download = download,
    .fetch = download,
    .zero = zero,
    .synchronize = synchronize,
    .convert = convert,
    .accumulate = accumulate,
    .embedding_forward = embedding_forward,
    .embedding_backward = embedding_backward,
    .rmsnorm_forward = rmsnorm_forward,
    .rmsnorm_backward = rmsnorm_backward,
    .rotary_table = rotary_table,
    .rotary = rotary,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .linear_forward = linear_forward,
    .linear_backward = linear_backward,
    .glu_forward = glu_forward,
    .glu_backward = glu_backward,
    .linear_cross_entropy = linear_cross_entropy,
    .logits = nib_cpu_logits,
    .global_norm = global_norm,
    .adamw = adamw,
};

nib_status nib_cpu_rehearsal_create(nib_ops **ops)
{
    NIB_TRY(nib_cpu_backend_create(0, ops));
    nib_ops replaced = table;
    replaced.context = (*ops)->context;
    replaced.scratch = (*ops)->scratch; /* without a block: it counts */
    **ops = replaced;
    return NIB_OK;
}

nib_work *nib_cpu_rehearsal_work(nib_ops *ops) { return work_of(ops); }
