/* Attention, forward, on tensor cores: out = softmax(mask(softcap(scale q k^T))) v, tile by tile with a running maximum
 * (Dao et al., "FlashAttention", 2022; "FlashAttention-2", 2023), over a prefix tree.
 *
 * Block: one head and QUERIES queries, 4 warps of QUERIES / 4 rows each, M = QUERIES / 64 products of 16 rows; heaviest
 * tiles first, the heads of a group side by side, so that they find keys and values in L2. Key tiles that the rule
 * empties are not loaded; those that it leaves whole are not masked.
 * Shared memory: (QUERIES + 4 KEYS) (HD + 8) bf16: queries, then two tiles of keys and two of values: the next are
 * copied while the last are multiplied. One barrier a tile. Registers: the sums of out are M HD / 2, the scores M KEYS
 * / 2 of a thread's. */
#include "cuda/attention.h"
#include "cuda/attention_softmax.cuh"
#include "cuda/backend.h"
#include "cuda/choice.h"
#include "cuda/launch.cuh"

#define THREADS 128

template <int HD> struct forward_tiles {
    static constexpr int M = HD <= 128 ? 2 : 1, QUERIES = 64 * M, KEYS = HD <= 96 ? 64 : 32;
    static constexpr int SHARED_BYTES = (QUERIES + 4 * KEYS) * TILE_STRIDE(HD) * 2;
};

struct forward_operands {
    nib_attention_shape shape;
    nib_tree tree;
    nib_matrix q, k, v, out;
    float *lse;                             /* [NH, T], or NULL */
    const nib_attention_extremes *extremes; /* of tiles of KEYS */
};

template <int HD, bool CAPPED>
__global__ void __launch_bounds__(THREADS, 2) attention_forward_kernel(forward_operands p)
{
    constexpr int M = forward_tiles<HD>::M, QUERIES = forward_tiles<HD>::QUERIES, KEYS = forward_tiles<HD>::KEYS;
    constexpr int TILE = KEYS * TILE_STRIDE(HD);
    __nv_bfloat16 *queries = dynamic_shared<__nv_bfloat16>(), *keys = queries + QUERIES * TILE_STRIDE(HD);
    __nv_bfloat16 *values = keys + 2 * TILE;
    const int T = (int)p.tree.T, window = (int)p.shape.window, head = blockIdx.x;
    const int kv = head / (int)(p.shape.heads / p.shape.kv_heads), first_query = (gridDim.y - 1 - blockIdx.y) * QUERIES;
    const int last_query = min(first_query + QUERIES, T), warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4;
    const int my_query = first_query + warp * 16 * M; /* the warp's first */
    const __nv_bfloat16 *k = attention_row(p.k, 0, kv, HD), *v = attention_row(p.v, 0, kv, HD);
    const int last_tile = (last_query + KEYS - 1) / KEYS;
    const nib_attention_extremes of_queries = join_extremes(p.extremes, first_query / KEYS, last_tile);
    auto kind_of = [&](int tile) {
        return tile_kind_of(first_query, last_query, of_queries, tile * KEYS, KEYS, load_extremes(p.extremes + tile),
                            window);
    };
    auto copy_keys = [&](int tile, int stage) {
        copy_tile<HD, KEYS, THREADS>(keys + stage * TILE, k, p.k.stride, tile * KEYS, T);
        copy_tile<HD, KEYS, THREADS>(values + stage * TILE, v, p.v.stride, tile * KEYS, T);
        cp_async_commit();
    };

    const score_scale<CAPPED> scale(p.shape);
    float sum[M][HD / 8][4], largest[M][2], total[M][2] = {};
    clear(sum);
#pragma unroll
    for (int m = 0; m < M; m++) largest[m][0] = largest[m][1] = -INFINITY;

    tile_walk walk(0, last_tile);
    walked_tile tile = walk.next(kind_of); /* there is one: a query sees itself */
    copy_tile<HD, QUERIES, THREADS>(queries, attention_row(p.q, 0, head, HD), p.q.stride, first_query, T);
    copy_keys(tile.index, 0);
    for (int stage = 0; tile.index >= 0; stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads(); /* this tile has come, and the last one's buffer is free */
        walked_tile following = walk.next(kind_of);
        if (following.index >= 0) copy_keys(following.index, stage ^ 1);
        if (tile.index * KEYS < my_query + 16 * M) { /* else above the warp's diagonal */
            float score[M][KEYS / 8][4];
            clear(score);
            multiply_rows<HD, KEYS, M>(score, queries + warp * 16 * M * TILE_STRIDE(HD), 16, keys + stage * TILE);
#pragma unroll
            for (int m = 0; m < M; m++) scale.cap(score[m]);
            if (tile.masked) mask_scores<M, KEYS>(score, p.tree, window, my_query, tile.index * KEYS);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int r = 0; r < 2; r++)
                    rescale_row(sum[m], r, softmax_weights(score[m], r, scale.factor, &largest[m][r], &total[m][r]));
            multiply_columns<HD, KEYS, HD, M>(sum, score, values + stage * TILE);
        }
        tile = following;
    }

#pragma unroll
    for (int m = 0; m < M; m++) {
        float inverse[2], lse;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            inverse[r] = softmax_close(largest[m][r], total[m][r], scale.factor, &lse);
            int query = my_query + 16 * m + g + 8 * r;
            if (p.lse != NULL && query < T && threadIdx.x % 4 == 0) p.lse[(int64_t)head * T + query] = lse;
        }
        store_rows<HD, HD>(sum[m], inverse, queries + (warp * M + m) * 16 * TILE_STRIDE(HD),
                           attention_row(p.out, 0, head, HD), p.out.stride, my_query + 16 * m, T);
    }
}

template <int HD> static nib_status launch_forward(nib_ops *ops, forward_operands p)
{
    typedef forward_tiles<HD> tiles;
    size_t mark = ops->scratch->used, shared = tiles::SHARED_BYTES;
    nib_attention_extremes *extremes;
    nib_status status = NIB_OK;
    if (shared > nib_cuda_device_of(ops)->shared)
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "attention_forward: heads of %d need %zu bytes of shared memory, the device has %zu", HD,
                        shared, nib_cuda_device_of(ops)->shared);
    dim3 grid((unsigned)p.shape.heads, (unsigned)((p.tree.T + tiles::QUERIES - 1) / tiles::QUERIES));
    NIB_TRY_GOTO(nib_attention_describe_tiles(ops, p.tree, tiles::KEYS, &extremes), done);
    p.extremes = extremes;
    if (p.shape.softcap > 0.0f)
        status =
            nib_cuda_launch(attention_forward_kernel<HD, true>, grid, dim3(THREADS), shared, nib_cuda_stream(ops), p);
    else
        status =
            nib_cuda_launch(attention_forward_kernel<HD, false>, grid, dim3(THREADS), shared, nib_cuda_stream(ops), p);
done:
    nib_arena_reset(ops->scratch, mark);
    return status;
}

nib_status nib_cuda_attention_forward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                      nib_matrix k, nib_matrix v, nib_matrix out, float *lse)
{
    forward_operands p = {shape, tree, q, k, v, out, lse, NULL};
    NIB_TRY(nib_attention_check_shape("attention_forward", shape, q, k, v));
    NIB_TRY(nib_attention_check_shape("attention_forward", shape, out, k, v));
    NIB_TRY(nib_attention_check_alignment("attention_forward", "q", q));
    NIB_TRY(nib_attention_check_alignment("attention_forward", "k", k));
    NIB_TRY(nib_attention_check_alignment("attention_forward", "v", v));
    NIB_TRY(nib_attention_check_alignment("attention_forward", "out", out));
    if (tree.T == 0) return NIB_OK;
    if (nib_cuda_is_plain(ops, NIB_CUDA_ATTENTION_FORWARD))
        return nib_cuda_attention_forward_plain(ops, shape, tree, q, k, v, out, lse);
    p.shape = nib_attention_clip_window(shape, tree.T);
    if (nib_cuda_attention_hopper_holds(ops, shape) && !nib_cuda_is_plain(ops, NIB_CUDA_ATTENTION_FORWARD_HOPPER))
        return nib_cuda_attention_forward_hopper(ops, p.shape, tree, q, k, v, out, lse);
    switch (shape.head_dim) {
    case 16:
        return launch_forward<16>(ops, p);
    case 64:
        return launch_forward<64>(ops, p);
    case 80:
        return launch_forward<80>(ops, p);
    case 96:
        return launch_forward<96>(ops, p);
    case 128:
        return launch_forward<128>(ops, p);
    case 256:
        return launch_forward<256>(ops, p);
    default:
        return nib_cuda_attention_forward_plain(ops, shape, tree, q, k, v, out, lse);
    }
}
