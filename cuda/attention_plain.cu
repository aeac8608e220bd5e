/* Attention without tensor cores or asynchronous copies: what the tiled kernels are held against, and what runs where
 * they cannot.
 *
 *   s = scale q.k, soft-capped;  w = exp(s - lse);  out = sum over visible keys of w v
 *   ds = w (dout.v - dout.out) scale (1 - (capped s / softcap)^2);  dq = sum ds k,  dk = sum ds q,  dv = sum w dout
 *
 * A warp has one query of one head, or one key of one key/value head, and goes through the other side 32 at a time: a
 * lane has the dot products of its own row, then column c of the sums is lane c % 32's. fp32 throughout.
 * Block: 4 warps that share nothing. Shared memory: a warp 2 HD + 64 floats. */
#include "cuda/attention.h"
#include "cuda/attention_rule.cuh"
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

#define WARPS    4
#define ALL      0xffffffffu
#define PER_LANE (NIB_ATTENTION_LARGEST_HEAD_DIM / 32) /* columns of a row */

/* The warp's part of shared memory. */
struct workspace {
    float *row, *other_row; /* [HD] */
    float *weight, *slope;  /* [32] of the rows in work */
};

__device__ static workspace workspace_of_warp(int head_dim)
{
    float *row = dynamic_shared<float>() + threadIdx.x / 32 * (2 * head_dim + 64);
    return {row, row + head_dim, row + 2 * head_dim, row + 2 * head_dim + 32};
}

static size_t shared_bytes(nib_attention_shape shape) { return WARPS * (2 * (size_t)shape.head_dim + 64) * 4; }
static dim3 grid_of(int64_t tasks) { return dim3((unsigned)((tasks + WARPS - 1) / WARPS)); }

__device__ static int64_t task_of_warp() { return (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; }

/* Widens a row into shared memory; a barrier of the warp must follow. */
__device__ static void widen(const __nv_bfloat16 *row, int head_dim, float *out)
{
    for (int c = threadIdx.x % 32; c < head_dim; c += 32) out[c] = to_float(row[c]);
}

__device__ static float dot(const float *a, const __nv_bfloat16 *b, int head_dim)
{
    float sum = 0.0f;
    for (int c = 0; c < head_dim; c++) sum += a[c] * to_float(b[c]);
    return sum;
}

__device__ static float capped(nib_attention_shape shape, float product)
{
    float s = shape.scale * product;
    return shape.softcap > 0.0f ? shape.softcap * tanhf(s / shape.softcap) : s;
}

/* d(capped score) / d(product). */
__device__ static float capped_slope(nib_attention_shape shape, float score)
{
    float t = shape.softcap > 0.0f ? score / shape.softcap : 0.0f;
    return shape.scale * (1.0f - t * t);
}

/* sum[c] += weight[i] * row(first + i)[c] for the rows i of `seen`; weights must be visible to the warp. */
__device__ static void add_rows(const float *weight, unsigned seen, const __nv_bfloat16 *first, int64_t stride,
                                int head_dim, float (&sum)[PER_LANE])
{
    for (; seen != 0; seen &= seen - 1) {
        int i = __ffs(seen) - 1;
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) {
            int c = threadIdx.x % 32 + 32 * j;
            if (c < head_dim) sum[j] += weight[i] * to_float(first[i * stride + c]);
        }
    }
}

__device__ static void store_row(const float (&sum)[PER_LANE], float factor, int head_dim, __nv_bfloat16 *row)
{
#pragma unroll
    for (int j = 0; j < PER_LANE; j++) {
        int c = threadIdx.x % 32 + 32 * j;
        if (c < head_dim) row[c] = to_bf16(factor * sum[j]);
    }
}

/* The softmax of one query as it is added up. */
struct running_softmax {
    float largest = -INFINITY, total = 0.0f, sum[PER_LANE] = {};

    /* 32 more keys from row `key` of k and v on: lane i's counts if bit i of `seen`, which is not 0, is set. */
    __device__ void add(nib_attention_shape shape, const workspace &space, unsigned seen, const __nv_bfloat16 *key,
                        int64_t key_stride, const __nv_bfloat16 *value, int64_t value_stride)
    {
        int lane = threadIdx.x % 32, head_dim = (int)shape.head_dim;
        float score = -INFINITY;
        if (seen >> lane & 1) score = capped(shape, dot(space.row, key + lane * key_stride, head_dim));
        float now = fmaxf(largest, warp_max(score)), rescale = expf(largest - now), weight = expf(score - now);
        largest = now;
        total = total * rescale + warp_sum(weight);
        space.weight[lane] = weight;
        __syncwarp();
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) sum[j] *= rescale;
        add_rows(space.weight, seen, value, value_stride, head_dim, sum);
        __syncwarp();
    }
};

__global__ void __launch_bounds__(32 * WARPS)
    attention_forward_plain_kernel(nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k, nib_matrix v,
                                   nib_matrix out, float *lse)
{
    int64_t task = task_of_warp();
    int t = (int)(task / shape.heads), head = (int)(task % shape.heads), head_dim = (int)shape.head_dim;
    int kv = head / (int)(shape.heads / shape.kv_heads);
    workspace space = workspace_of_warp(head_dim);
    running_softmax softmax;
    if (t >= tree.T) return;
    widen(attention_row(q, t, head, head_dim), head_dim, space.row);
    __syncwarp();
    for (int first = 0; first <= t; first += 32) {
        int key = first + threadIdx.x % 32;
        unsigned seen = __ballot_sync(ALL, key <= t && attention_visible(tree, (int)shape.window, t, key));
        if (seen != 0)
            softmax.add(shape, space, seen, attention_row(k, first, kv, head_dim), k.stride,
                        attention_row(v, first, kv, head_dim), v.stride);
    }
    store_row(softmax.sum, 1.0f / softmax.total, head_dim, attention_row(out, t, head, head_dim));
    if (lse != NULL && threadIdx.x % 32 == 0) lse[head * tree.T + t] = softmax.largest + logf(softmax.total);
}

__global__ void __launch_bounds__(32 * WARPS)
    attention_dq_plain_kernel(nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k, nib_matrix v,
                              nib_matrix out, const float *lse, nib_matrix dout, nib_matrix dq)
{
    int64_t task = task_of_warp();
    int t = (int)(task / shape.heads), head = (int)(task % shape.heads), head_dim = (int)shape.head_dim;
    int kv = head / (int)(shape.heads / shape.kv_heads), lane = threadIdx.x % 32;
    workspace space = workspace_of_warp(head_dim);
    float sum[PER_LANE] = {};
    if (t >= tree.T) return;
    widen(attention_row(q, t, head, head_dim), head_dim, space.row);
    widen(attention_row(dout, t, head, head_dim), head_dim, space.other_row);
    __syncwarp();
    float out_product = dot(space.other_row, attention_row(out, t, head, head_dim), head_dim);
    for (int first = 0; first <= t; first += 32) {
        int key = first + lane;
        bool visible = key <= t && attention_visible(tree, (int)shape.window, t, key);
        unsigned seen = __ballot_sync(ALL, visible);
        if (seen == 0) continue;
        float slope = 0.0f;
        if (visible) {
            float score = capped(shape, dot(space.row, attention_row(k, key, kv, head_dim), head_dim));
            float product = dot(space.other_row, attention_row(v, key, kv, head_dim), head_dim);
            slope = expf(score - lse[head * tree.T + t]) * (product - out_product) * capped_slope(shape, score);
        }
        space.slope[lane] = slope;
        __syncwarp();
        add_rows(space.slope, seen, attention_row(k, first, kv, head_dim), k.stride, head_dim, sum);
        __syncwarp();
    }
    store_row(sum, 1.0f, head_dim, attention_row(dq, t, head, head_dim));
}

__global__ void __launch_bounds__(32 * WARPS)
    attention_dkv_plain_kernel(nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k, nib_matrix v,
                               nib_matrix out, const float *lse, nib_matrix dout, nib_matrix dk, nib_matrix dv)
{
    int64_t task = task_of_warp();
    int key = (int)(task / shape.kv_heads), kv = (int)(task % shape.kv_heads), head_dim = (int)shape.head_dim;
    int group = (int)(shape.heads / shape.kv_heads), lane = threadIdx.x % 32;
    workspace space = workspace_of_warp(head_dim);
    float sum_k[PER_LANE] = {}, sum_v[PER_LANE] = {};
    if (key >= tree.T) return;
    widen(attention_row(k, key, kv, head_dim), head_dim, space.row);
    widen(attention_row(v, key, kv, head_dim), head_dim, space.other_row);
    __syncwarp();
    for (int head = kv * group; head < (kv + 1) * group; head++)
        for (int first = key; first < tree.end[key]; first += 32) {
            int t = first + lane;
            bool visible = t < tree.end[key] && attention_visible(tree, (int)shape.window, t, key);
            unsigned seen = __ballot_sync(ALL, visible);
            if (seen == 0) continue;
            float weight = 0.0f, slope = 0.0f;
            if (visible) {
                const __nv_bfloat16 *gradient = attention_row(dout, t, head, head_dim);
                const __nv_bfloat16 *result = attention_row(out, t, head, head_dim);
                float score = capped(shape, dot(space.row, attention_row(q, t, head, head_dim), head_dim));
                float product = dot(space.other_row, gradient, head_dim), out_product = 0.0f;
                for (int c = 0; c < head_dim; c++) out_product += to_float(gradient[c]) * to_float(result[c]);
                weight = expf(score - lse[head * tree.T + t]);
                slope = weight * (product - out_product) * capped_slope(shape, score);
            }
            space.weight[lane] = weight;
            space.slope[lane] = slope;
            __syncwarp();
            add_rows(space.weight, seen, attention_row(dout, first, head, head_dim), dout.stride, head_dim, sum_v);
            add_rows(space.slope, seen, attention_row(q, first, head, head_dim), q.stride, head_dim, sum_k);
            __syncwarp();
        }
    store_row(sum_k, 1.0f, head_dim, attention_row(dk, key, kv, head_dim));
    store_row(sum_v, 1.0f, head_dim, attention_row(dv, key, kv, head_dim));
}

__global__ void __launch_bounds__(32 * WARPS)
    attention_cached_plain_kernel(nib_attention_shape shape, nib_matrix q, nib_matrix k, nib_matrix v,
                                  nib_attention_runs runs, nib_matrix out)
{
    int64_t task = task_of_warp();
    int query = (int)(task / shape.heads), head = (int)(task % shape.heads), head_dim = (int)shape.head_dim;
    int kv = head / (int)(shape.heads / shape.kv_heads);
    workspace space = workspace_of_warp(head_dim);
    running_softmax softmax;
    if (query >= q.rows) return;
    widen(attention_row(q, query, head, head_dim), head_dim, space.row);
    __syncwarp();
    for (int r = runs.begin[query]; r < runs.begin[query + 1]; r++)
        for (int done = 0; done < runs.run[r].count; done += 32) {
            int left = runs.run[r].count - done, first = runs.run[r].first + done;
            softmax.add(shape, space, left < 32 ? (1u << left) - 1 : ALL, attention_row(k, first, kv, head_dim),
                        k.stride, attention_row(v, first, kv, head_dim), v.stride);
        }
    store_row(softmax.sum, 1.0f / softmax.total, head_dim, attention_row(out, query, head, head_dim));
}

nib_status nib_cuda_attention_forward_plain(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                            nib_matrix k, nib_matrix v, nib_matrix out, float *lse)
{
    NIB_TRY(nib_attention_check_shape("attention_forward", shape, q, k, v));
    NIB_TRY(nib_attention_check_shape("attention_forward", shape, out, k, v));
    if (tree.T == 0) return NIB_OK;
    shape = nib_attention_clip_window(shape, tree.T);
    return nib_cuda_launch(attention_forward_plain_kernel, grid_of(tree.T * shape.heads), dim3(32 * WARPS),
                           shared_bytes(shape), nib_cuda_stream(ops), shape, tree, q, k, v, out, lse);
}

nib_status nib_cuda_attention_backward_plain(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                             nib_matrix k, nib_matrix v, nib_matrix out, const float *lse,
                                             nib_matrix dout, nib_matrix dq, nib_matrix dk, nib_matrix dv)
{
    NIB_TRY(nib_attention_check_shape("attention_backward", shape, q, k, v));
    NIB_TRY(nib_attention_check_shape("attention_backward", shape, dq, dk, dv));
    NIB_TRY(nib_attention_check_shape("attention_backward", shape, out, k, v));
    NIB_TRY(nib_attention_check_shape("attention_backward", shape, dout, k, v));
    if (tree.T == 0) return NIB_OK;
    shape = nib_attention_clip_window(shape, tree.T);
    NIB_TRY(nib_cuda_launch(attention_dq_plain_kernel, grid_of(tree.T * shape.heads), dim3(32 * WARPS),
                            shared_bytes(shape), nib_cuda_stream(ops), shape, tree, q, k, v, out, lse, dout, dq));
    return nib_cuda_launch(attention_dkv_plain_kernel, grid_of(tree.T * shape.kv_heads), dim3(32 * WARPS),
                           shared_bytes(shape), nib_cuda_stream(ops), shape, tree, q, k, v, out, lse, dout, dk, dv);
}

nib_status nib_cuda_attention_cached_plain(nib_ops *ops, nib_attention_shape shape, nib_matrix q, nib_matrix k,
                                           nib_matrix v, const int32_t *range_begin, const nib_cache_range *range,
                                           nib_matrix out)
{
    nib_attention_runs runs;
    size_t mark = ops->scratch->used;
    nib_status status;
    NIB_TRY(nib_attention_check_shape("attention_cached", shape, q, k, v));
    NIB_TRY(nib_attention_check_shape("attention_cached", shape, out, k, v));
    if (q.rows == 0) return NIB_OK;
    NIB_TRY_GOTO(nib_attention_upload_runs(ops, shape.window, k.rows, q.rows, range_begin, range, INT32_MAX, &runs),
                 done);
    status = nib_cuda_launch(attention_cached_plain_kernel, grid_of(q.rows * shape.heads), dim3(32 * WARPS),
                             shared_bytes(shape), nib_cuda_stream(ops), shape, q, k, v, runs, out);
done:
    nib_arena_reset(ops->scratch, mark);
    return status;
}
