/* Attention, backward, on tensor cores: two kernels without atomics, so that every sum has one owner and one order.
 * Seven products where five would do if dQ were added up from many blocks (Dao, "FlashAttention-2", 2023):
 *
 *   s = softcap(scale q k^T);  p = exp(s - lse);  dp = dout v^T;  ds = p (dp - delta) (1 - (s / softcap)^2)
 *   dv = p^T dout;  dk = scale ds^T q;  dq = scale ds k;   delta = rowsum(dout out)
 *
 * dK and dV: a block has OWN keys of a key/value head, a warp 16 of them, scores transposed (rows are keys); it goes
 * through the query heads of the group, and in each through the query tiles from its first key to its largest `end`.
 * dQ: a block has OWN queries of a head and goes through key tiles as forward does.
 * Heads of 256 do not fit the registers: two blocks of the first kernel, each with half the columns of dK and dV.
 * Shared memory: (2 OWN + 4 OTHER) (HD + 8) bf16: the block's two tiles, and two of each of the walked ones; a query's
 * lse and delta lie in the padding behind its row. Registers: sums COLUMNS, or HD / 2, of a thread's; OTHER for p and
 * ds. */
#include "cuda/attention.h"
#include "cuda/attention_gradient.cuh"
#include "cuda/backend.h"
#include "cuda/choice.h"
#include "cuda/launch.cuh"

#define THREADS 128
#define OWN     64 /* rows of a block: 16 a warp */

template <int HD> struct backward_tiles {
    static constexpr int OTHER = HD <= 96 ? 64 : HD <= 128 ? 32 : 16; /* rows of a walked tile */
    static constexpr int COLUMNS = HD <= 128 ? HD : 128;              /* of dK and dV, in a block */
    static constexpr int SHARED_BYTES = (2 * OWN + 4 * OTHER) * TILE_STRIDE(HD) * 2;
};

struct backward_operands {
    nib_attention_shape shape;
    nib_tree tree;
    nib_matrix q, k, v, dout, dq, dk, dv;
    const query_sums *sums; /* [NH, padded_T] */
    int padded_T;
    const nib_attention_extremes *extremes; /* of tiles of OTHER */
};

/* Eight lanes a row of a head. */
__global__ void __launch_bounds__(THREADS)
    attention_query_sums_kernel(nib_matrix out, nib_matrix dout, const float *lse, int heads, int head_dim, int T,
                                int padded_T, query_sums *sums)
{
    int64_t row = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / 8;
    int t = (int)(row / heads), head = (int)(row % heads);
    float delta = 0.0f;
    if (t < T)
        for (int c = threadIdx.x % 8 * 8; c < head_dim; c += 64) {
            uint4 a = load16(attention_row(out, t, head, head_dim) + c);
            uint4 b = load16(attention_row(dout, t, head, head_dim) + c);
            const uint32_t x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float2 f = unpack_bf16(x[i]), g = unpack_bf16(y[i]);
                delta += f.x * g.x + f.y * g.y;
            }
        }
#pragma unroll
    for (int offset = 4; offset > 0; offset /= 2) delta += __shfl_xor_sync(0xffffffffu, delta, offset);
    if (t >= padded_T || threadIdx.x % 8 != 0) return;
    float scaled = t < T ? lse[(int64_t)head * T + t] * NIB_LOG2_E : INFINITY;
    store16(sums + (int64_t)head * padded_T + t, make_uint4(__float_as_uint(scaled), __float_as_uint(delta), 0, 0));
}

nib_status nib_attention_sum_queries(nib_ops *ops, nib_attention_shape shape, int64_t T, nib_matrix out,
                                     nib_matrix dout, const float *lse, int padded_T, query_sums **sums)
{
    int64_t rows = shape.heads * padded_T;
    dim3 grid((unsigned)((rows * 8 + THREADS - 1) / THREADS));
    NIB_TRY(nib_arena_take(ops->scratch, rows, sizeof **sums, sums));
    return nib_cuda_launch(attention_query_sums_kernel, grid, dim3(THREADS), 0, nib_cuda_stream(ops), out, dout, lse,
                           (int)shape.heads, (int)shape.head_dim, (int)T, padded_T, *sums);
}

template <int HD, bool CAPPED> __global__ void __launch_bounds__(THREADS, 2) attention_dkv_kernel(backward_operands p)
{
    constexpr int OTHER = backward_tiles<HD>::OTHER, COLUMNS = backward_tiles<HD>::COLUMNS;
    constexpr int OWN_TILE = OWN * TILE_STRIDE(HD), TILE = OTHER * TILE_STRIDE(HD);
    __nv_bfloat16 *keys = dynamic_shared<__nv_bfloat16>(), *values = keys + OWN_TILE;
    __nv_bfloat16 *queries = values + OWN_TILE, *douts = queries + 2 * TILE;
    const int T = (int)p.tree.T, window = (int)p.shape.window, kv = blockIdx.x, first_key = blockIdx.y * OWN;
    const int first_column = blockIdx.z * COLUMNS, group = (int)(p.shape.heads / p.shape.kv_heads);
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, my_key = first_key + 16 * warp;
    const nib_attention_extremes of_keys =
        join_extremes(p.extremes, first_key / OTHER, (min(first_key + OWN, T) + OTHER - 1) / OTHER);
    const tile_walk of_head(first_key / OTHER, (min(of_keys.end_most, T) + OTHER - 1) / OTHER);
    const gradient_rule<CAPPED> rule(p.shape);
    auto kind_of = [&](int tile) {
        return tile_kind_of(tile * OTHER, min(tile * OTHER + OTHER, T), load_extremes(p.extremes + tile), first_key,
                            OWN, of_keys, window);
    };
    int head = kv * group; /* of the tile that was fetched last */
    tile_walk walk = of_head;
    auto next_tile = [&]() {
        walked_tile tile = walk.next(kind_of);
        if (tile.index < 0 && ++head < (kv + 1) * group) {
            walk = of_head;
            tile = walk.next(kind_of);
        }
        return tile;
    };
    auto copy_queries = [&](int tile, int stage) {
        const query_sums *sums = p.sums + (int64_t)head * p.padded_T + tile * OTHER;
        copy_tile<HD, OTHER, THREADS>(queries + stage * TILE, attention_row(p.q, 0, head, HD), p.q.stride, tile * OTHER,
                                      T);
        copy_tile<HD, OTHER, THREADS>(douts + stage * TILE, attention_row(p.dout, 0, head, HD), p.dout.stride,
                                      tile * OTHER, T);
        if (threadIdx.x < OTHER)
            cp_async_16(queries + stage * TILE + threadIdx.x * TILE_STRIDE(HD) + HD, sums + threadIdx.x, true);
        cp_async_commit();
    };

    int end[2], position[2]; /* of this lane's keys */
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int key = min(my_key + g + 8 * r, T - 1);
        end[r] = my_key + g + 8 * r < T ? __ldg(p.tree.end + key) : 0;
        position[r] = __ldg(p.tree.position + key);
    }
    float sum_k[1][COLUMNS / 8][4], sum_v[1][COLUMNS / 8][4];
    clear(sum_k);
    clear(sum_v);

    walked_tile tile = next_tile();
    copy_tile<HD, OWN, THREADS>(keys, attention_row(p.k, 0, kv, HD), p.k.stride, first_key, T);
    copy_tile<HD, OWN, THREADS>(values, attention_row(p.v, 0, kv, HD), p.v.stride, first_key, T);
    copy_queries(tile.index, 0);
    for (int stage = 0; tile.index >= 0; stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads(); /* this tile has come, and the last one's buffer is free */
        walked_tile following = next_tile();
        if (following.index >= 0) copy_queries(following.index, stage ^ 1);
        const int first_query = tile.index * OTHER;
        if (my_key < first_query + OTHER) { /* else the warp's keys lie behind all queries */
            const __nv_bfloat16 *q = queries + stage * TILE, *dout = douts + stage * TILE;
            float weight[1][OTHER / 8][4], slope[1][OTHER / 8][4];
            clear(weight);
            clear(slope);
            multiply_rows<HD, OTHER, 1>(weight, keys + warp * 16 * TILE_STRIDE(HD), 0, q);
            multiply_rows<HD, OTHER, 1>(slope, values + warp * 16 * TILE_STRIDE(HD), 0, dout);
#pragma unroll
            for (int n = 0; n < OTHER / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int column = 8 * n + 2 * t + i, query = first_query + column;
                    uint2 sums = load8(q + column * TILE_STRIDE(HD) + HD);
                    int depth = tile.masked && window > 0 ? __ldg(p.tree.position + min(query, T - 1)) - window : -1;
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        bool hidden = my_key + g + 8 * r > query || query >= end[r] || position[r] <= depth;
                        rule.apply(&weight[0][n][2 * r + i], &slope[0][n][2 * r + i], __uint_as_float(sums.x),
                                   __uint_as_float(sums.y), tile.masked && hidden);
                    }
                }
            multiply_columns<HD, OTHER, COLUMNS, 1>(sum_v, weight, dout + first_column);
            multiply_columns<HD, OTHER, COLUMNS, 1>(sum_k, slope, q + first_column);
        }
        tile = following;
    }

    const float by_scale[2] = {p.shape.scale, p.shape.scale}, by_one[2] = {1.0f, 1.0f};
    store_rows<HD, COLUMNS>(sum_k[0], by_scale, keys + warp * 16 * TILE_STRIDE(HD),
                            attention_row(p.dk, 0, kv, HD) + first_column, p.dk.stride, my_key, T);
    store_rows<HD, COLUMNS>(sum_v[0], by_one, values + warp * 16 * TILE_STRIDE(HD),
                            attention_row(p.dv, 0, kv, HD) + first_column, p.dv.stride, my_key, T);
}

template <int HD, bool CAPPED> __global__ void __launch_bounds__(THREADS, 2) attention_dq_kernel(backward_operands p)
{
    constexpr int OTHER = backward_tiles<HD>::OTHER, OWN_TILE = OWN * TILE_STRIDE(HD), TILE = OTHER * TILE_STRIDE(HD);
    __nv_bfloat16 *queries = dynamic_shared<__nv_bfloat16>(), *douts = queries + OWN_TILE;
    __nv_bfloat16 *keys = douts + OWN_TILE, *values = keys + 2 * TILE;
    const int T = (int)p.tree.T, window = (int)p.shape.window, head = blockIdx.x;
    const int kv = head / (int)(p.shape.heads / p.shape.kv_heads), first_query = (gridDim.y - 1 - blockIdx.y) * OWN;
    const int last_query = min(first_query + OWN, T), last_tile = (last_query + OTHER - 1) / OTHER;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4,
              my_query = first_query + 16 * warp;
    const nib_attention_extremes of_queries = join_extremes(p.extremes, first_query / OTHER, last_tile);
    const gradient_rule<CAPPED> rule(p.shape);
    auto kind_of = [&](int tile) {
        return tile_kind_of(first_query, last_query, of_queries, tile * OTHER, OTHER, load_extremes(p.extremes + tile),
                            window);
    };
    auto copy_keys = [&](int tile, int stage) {
        copy_tile<HD, OTHER, THREADS>(keys + stage * TILE, attention_row(p.k, 0, kv, HD), p.k.stride, tile * OTHER, T);
        copy_tile<HD, OTHER, THREADS>(values + stage * TILE, attention_row(p.v, 0, kv, HD), p.v.stride, tile * OTHER,
                                      T);
        cp_async_commit();
    };

    float lse[2], delta[2]; /* of this lane's queries */
    int depth[2];           /* keys no deeper than this are hidden by the window */
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int query = my_query + g + 8 * r;
        uint2 sums = load8(p.sums + (int64_t)head * p.padded_T + query);
        lse[r] = __uint_as_float(sums.x);
        delta[r] = __uint_as_float(sums.y);
        depth[r] = window > 0 ? __ldg(p.tree.position + min(query, T - 1)) - window : -1;
    }
    float sum[1][HD / 8][4];
    clear(sum);

    tile_walk walk(0, last_tile);
    walked_tile tile = walk.next(kind_of);
    copy_tile<HD, OWN, THREADS>(queries, attention_row(p.q, 0, head, HD), p.q.stride, first_query, T);
    copy_tile<HD, OWN, THREADS>(douts, attention_row(p.dout, 0, head, HD), p.dout.stride, first_query, T);
    copy_keys(tile.index, 0);
    for (int stage = 0; tile.index >= 0; stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads(); /* this tile has come, and the last one's buffer is free */
        walked_tile following = walk.next(kind_of);
        if (following.index >= 0) copy_keys(following.index, stage ^ 1);
        const int first_key = tile.index * OTHER;
        if (first_key < my_query + 16) { /* else above the warp's diagonal */
            const __nv_bfloat16 *k = keys + stage * TILE, *v = values + stage * TILE;
            float weight[1][OTHER / 8][4], slope[1][OTHER / 8][4];
            clear(weight);
            clear(slope);
            multiply_rows<HD, OTHER, 1>(weight, queries + warp * 16 * TILE_STRIDE(HD), 0, k);
            multiply_rows<HD, OTHER, 1>(slope, douts + warp * 16 * TILE_STRIDE(HD), 0, v);
#pragma unroll
            for (int n = 0; n < OTHER / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int key = first_key + 8 * n + 2 * t + i;
                    int end = tile.masked && key < T ? __ldg(p.tree.end + key) : 0;
                    int position = tile.masked && window > 0 ? __ldg(p.tree.position + min(key, T - 1)) : 0;
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        int query = my_query + g + 8 * r;
                        bool hidden = key > query || query >= end || position <= depth[r];
                        rule.apply(&weight[0][n][2 * r + i], &slope[0][n][2 * r + i], lse[r], delta[r],
                                   tile.masked && hidden);
                    }
                }
            multiply_columns<HD, OTHER, HD, 1>(sum, slope, k);
        }
        tile = following;
    }
    const float by_scale[2] = {p.shape.scale, p.shape.scale};
    store_rows<HD, HD>(sum[0], by_scale, queries + warp * 16 * TILE_STRIDE(HD), attention_row(p.dq, 0, head, HD),
                       p.dq.stride, my_query, T);
}

template <int HD, bool CAPPED> static nib_status launch_kernels(nib_ops *ops, const backward_operands &p)
{
    constexpr size_t SHARED = backward_tiles<HD>::SHARED_BYTES;
    unsigned tiles = (unsigned)((p.tree.T + OWN - 1) / OWN);
    dim3 keys((unsigned)p.shape.kv_heads, tiles, HD / backward_tiles<HD>::COLUMNS);
    dim3 queries((unsigned)p.shape.heads, tiles);
    NIB_TRY(nib_cuda_launch(attention_dkv_kernel<HD, CAPPED>, keys, dim3(THREADS), SHARED, nib_cuda_stream(ops), p));
    return nib_cuda_launch(attention_dq_kernel<HD, CAPPED>, queries, dim3(THREADS), SHARED, nib_cuda_stream(ops), p);
}

template <int HD> static nib_status launch_backward(nib_ops *ops, backward_operands p, nib_matrix out, const float *lse)
{
    size_t mark = ops->scratch->used;
    nib_attention_extremes *extremes;
    query_sums *sums;
    nib_status status = NIB_OK;
    if (backward_tiles<HD>::SHARED_BYTES > nib_cuda_device_of(ops)->shared)
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "attention_backward: heads of %d need %d bytes of shared memory, the device has %zu", HD,
                        backward_tiles<HD>::SHARED_BYTES, nib_cuda_device_of(ops)->shared);
    p.padded_T = (int)((p.tree.T + OWN - 1) / OWN * OWN);
    NIB_TRY_GOTO(nib_attention_describe_tiles(ops, p.tree, backward_tiles<HD>::OTHER, &extremes), done);
    NIB_TRY_GOTO(nib_attention_sum_queries(ops, p.shape, p.tree.T, out, p.dout, lse, p.padded_T, &sums), done);
    p.extremes = extremes;
    p.sums = sums;
    status = p.shape.softcap > 0.0f ? launch_kernels<HD, true>(ops, p) : launch_kernels<HD, false>(ops, p);
done:
    nib_arena_reset(ops->scratch, mark);
    return status;
}

nib_status nib_cuda_attention_backward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                       nib_matrix k, nib_matrix v, nib_matrix out, const float *lse, nib_matrix dout,
                                       nib_matrix dq, nib_matrix dk, nib_matrix dv)
{
    const nib_matrix operands[] = {q, k, v, out, dout, dq, dk, dv};
    const char *const names[] = {"q", "k", "v", "out", "dout", "dq", "dk", "dv"};
    NIB_TRY(nib_attention_check_shape("attention_backward", shape, q, k, v));
    NIB_TRY(nib_attention_check_shape("attention_backward", shape, dq, dk, dv));
    NIB_TRY(nib_attention_check_shape("attention_backward", shape, out, k, v));
    NIB_TRY(nib_attention_check_shape("attention_backward", shape, dout, k, v));
    for (int i = 0; i < 8; i++) NIB_TRY(nib_attention_check_alignment("attention_backward", names[i], operands[i]));
    if (tree.T == 0) return NIB_OK;
    if (nib_cuda_is_plain(ops, NIB_CUDA_ATTENTION_BACKWARD))
        return nib_cuda_attention_backward_plain(ops, shape, tree, q, k, v, out, lse, dout, dq, dk, dv);
    shape = nib_attention_clip_window(shape, tree.T);
    if (nib_cuda_attention_hopper_holds(ops, shape) && !nib_cuda_is_plain(ops, NIB_CUDA_ATTENTION_BACKWARD_HOPPER))
        return nib_cuda_attention_backward_hopper(ops, shape, tree, q, k, v, out, lse, dout, dq, dk, dv);
    backward_operands p = {shape, tree, q, k, v, dout, dq, dk, dv, NULL, 0, NULL};
    switch (shape.head_dim) {
    case 16:
        return launch_backward<16>(ops, p, out, lse);
    case 64:
        return launch_backward<64>(ops, p, out, lse);
    case 80:
        return launch_backward<80>(ops, p, out, lse);
    case 96:
        return launch_backward<96>(ops, p, out, lse);
    case 128:
        return launch_backward<128>(ops, p, out, lse);
    case 256:
        return launch_backward<256>(ops, p, out, lse);
    default:
        return nib_cuda_attention_backward_plain(ops, shape, tree, q, k, v, out, lse, dout, dq, dk, dv);
    }
}
