/* Every query head has its own dK and dV, summed over the group afterwards in order, so that a task is one head of one
 * segment and owns every sum that it adds to: the same bits at any number of threads. */
#include "cpu/attention.h"
#include "cpu/backend_internal.h"
#include "cpu/vector.h"

/* [NH, T, HD] summed over the query heads of each group into [T, NKV*HD]. */
static void sum_groups(const nib_attention_shape *shape, int64_t T, const float *of_heads, nib_matrix sum)
{
    int64_t HD = shape->head_dim, group = shape->heads / shape->kv_heads;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < shape->kv_heads; h++) {
            float total[NIB_ATTENTION_HEAD_DIM];
            memcpy(total, of_heads + (h * group * T + t) * HD, (size_t)HD * sizeof *total);
            for (int64_t g = 1; g < group; g++) {
                const float *one = of_heads + ((h * group + g) * T + t) * HD;
                for (int64_t c = 0; c < HD; c++) total[c] += one[c];
            }
            nib_store_row(total, sum.dtype, HD, nib_matrix_at(nib_matrix_columns(sum, h * HD, HD), t, 0));
        }
}

nib_status nib_cpu_attention_backward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                      nib_matrix k, nib_matrix v, nib_matrix out, const float *lse, nib_matrix dout,
                                      nib_matrix dq, nib_matrix dk, nib_matrix dv)
{
    const nib_cpu_kernels *kernels = nib_cpu_context_of(ops)->kernels;
    nib_attention_job job = {
        .shape = shape, .tree = tree, .q = q, .k = k, .v = v, .out = out, .dout = dout, .dq = dq, .lse = lse};
    int64_t elements = shape.heads * tree.T * shape.head_dim;
    size_t mark = ops->scratch->used;
    float *workspace = NULL;
    nib_status status = NIB_OK;
    NIB_TRY(nib_attention_check("attention_backward", shape, q, k, v));
    NIB_TRY(nib_attention_check("attention_backward", shape, dq, dk, dv));
    NIB_TRY(nib_attention_check("attention_backward", shape, out, dk, dv));
    NIB_TRY(nib_attention_check("attention_backward", shape, dout, dk, dv));
    NIB_TRY_GOTO(nib_attention_cut(ops->scratch, tree, &job), done);
    NIB_TRY_GOTO(nib_arena_take(ops->scratch, elements, sizeof *job.dk, &job.dk), done);
    NIB_TRY_GOTO(nib_arena_take(ops->scratch, elements, sizeof *job.dv, &job.dv), done);
    int64_t floats =
        NIB_ATTENTION_BACKWARD_FLOATS(shape.head_dim) + job.longest * NIB_ATTENTION_QUERY_FLOATS(shape.head_dim);
    NIB_TRY_GOTO(nib_arena_take(ops->scratch, nib_cpu_threads() * floats, sizeof *workspace, &workspace), done);
    if (ops->rehearsal) goto done;
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < job.segments * shape.heads; i++)
        kernels->attention_backward(&job, i / shape.heads, i % shape.heads, workspace + nib_cpu_thread() * floats);
    sum_groups(&shape, tree.T, job.dk, dk);
    sum_groups(&shape, tree.T, job.dv, dv);
done:
    nib_arena_reset(ops->scratch, mark);
    return status;
}
