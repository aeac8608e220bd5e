/* Attention, forward, on Hopper: the tiles and the running maximum of attention_forward.cu, with copies and products
 * that run beside the softmax (Shah et al., "FlashAttention-3", 2024).
 *
 * Block: one head and 128 queries, three warp groups, heaviest tiles first. A warp of the first group is the producer:
 * it walks the key tiles that the rule does not empty and has TMA fetch them, two tiles of keys and two of values
 * ahead. The others own 64 queries each: q k^T of a tile and then weights times values of the tile before are started
 * together, and the softmax of the one runs beside the other. The two take turns at starting products (named barriers
 * 1 and 2), so that the one's softmax runs beside the other's products. Of tiles before the first and behind the last
 * that its own queries see, a group only passes the turn on.
 * Shared memory: queries 128 x PADDED, twice keys and values KEYS x PADDED, bf16: 80 KiB (heads of 64), 160 KiB (80 to
 * 128), 192 KiB (256), and the barriers. Registers: 24 for the producer, 240 for the others: sums PADDED / 2, scores
 * KEYS / 2, weights KEYS / 4.
 * What copies and products need of each other: a stage is filled when TMA has counted its bytes in, and free when all
 * eight consumer warps have waited for their products with it. */
#include "cuda/attention.h"
#include "cuda/attention_hopper.cuh"
#include "cuda/attention_softmax.cuh"
#include "cuda/backend.h"
#include "cuda/launch.cuh"

#define THREADS        384
#define CONSUMER_WARPS 8

template <int HD> struct forward_hopper_tiles {
    static constexpr int QUERIES = 2 * GROUP_ROWS, KEYS = HD <= 128 ? 128 : 64;
    static constexpr int QUERY_TILE = GROUP_ROWS * PADDED(HD), KEY_TILE = KEYS * PADDED(HD); /* elements */
    static constexpr int SHARED_BYTES = (2 * QUERY_TILE + 4 * KEY_TILE) * 2 + 9 * 8;
};

struct forward_hopper_operands {
    CUtensorMap q, k, v, out; /* boxes of 64 rows; of KEYS rows for k and v */
    nib_attention_shape shape;
    nib_tree tree;
    float *lse;                             /* [NH, T], or NULL */
    const nib_attention_extremes *extremes; /* of tiles of KEYS */
};

/* The block's part of the work, and where it lies in shared memory. */
template <int HD> struct forward_hopper_block {
    typedef forward_hopper_tiles<HD> tiles;
    int T, window, head, kv, first_query, last_query, last_tile;
    nib_attention_extremes of_queries;
    const nib_attention_extremes *extremes;
    __nv_bfloat16 *queries, *keys, *values; /* queries: a tile for each group */
    uint64_t *queries_filled, *keys_filled, *values_filled, *keys_freed, *values_freed;

    __device__ explicit forward_hopper_block(const forward_hopper_operands &p)
        : T((int)p.tree.T), window((int)p.shape.window), head(blockIdx.x),
          kv(head / (int)(p.shape.heads / p.shape.kv_heads)),
          first_query((gridDim.y - 1 - blockIdx.y) * tiles::QUERIES), last_query(min(first_query + tiles::QUERIES, T)),
          last_tile((last_query + tiles::KEYS - 1) / tiles::KEYS),
          of_queries(join_extremes(p.extremes, first_query / tiles::KEYS, last_tile)), extremes(p.extremes),
          queries(dynamic_shared<__nv_bfloat16>()), keys(queries + 2 * tiles::QUERY_TILE),
          values(keys + 2 * tiles::KEY_TILE),
          queries_filled(reinterpret_cast<uint64_t *>(values + 2 * tiles::KEY_TILE)), keys_filled(queries_filled + 1),
          values_filled(keys_filled + 2), keys_freed(values_filled + 2), values_freed(keys_freed + 2)
    {
    }
    /* For tile_walk: what the block's queries see of a tile of keys. */
    __device__ tile_kind operator()(int tile) const
    {
        return tile_kind_of(first_query, last_query, of_queries, tile * tiles::KEYS, tiles::KEYS,
                            load_extremes(extremes + tile), window);
    }
    /* The same of a group's 64 queries, of which there may be none; and behind its last tile. */
    __device__ tile_kind group_kind(int group, int tile) const
    {
        const int first = first_query + group * GROUP_ROWS;
        return tile_kind_of(first, min(first + GROUP_ROWS, T), of_queries, tile * tiles::KEYS, tiles::KEYS,
                            load_extremes(extremes + tile), window);
    }
    __device__ int group_end(int group) const
    {
        return (min(first_query + (group + 1) * GROUP_ROWS, T) + tiles::KEYS - 1) / tiles::KEYS;
    }
    /* By one thread. */
    __device__ void make_barriers() const
    {
        mbarrier_init(queries_filled, 1);
        for (int stage = 0; stage < 2; stage++) {
            mbarrier_init(keys_filled + stage, 1);
            mbarrier_init(values_filled + stage, 1);
            mbarrier_init(keys_freed + stage, CONSUMER_WARPS);
            mbarrier_init(values_freed + stage, CONSUMER_WARPS);
        }
        fence_proxy_async();
    }
};

/* One warp. */
template <int HD> __device__ void produce(const forward_hopper_operands &p, const forward_hopper_block<HD> &block)
{
    typedef forward_hopper_tiles<HD> tiles;
    const bool leader = elect_one();
    if (leader) {
        mbarrier_arrive_expect(block.queries_filled, 2 * tiles::QUERY_TILE * 2);
        for (int group = 0; group < 2; group++)
            load_tile<HD, GROUP_ROWS>(block.queries + group * tiles::QUERY_TILE, &p.q, block.queries_filled, block.head,
                                      block.first_query + group * GROUP_ROWS);
    }
    tile_walk walk(0, block.last_tile);
    walked_tile tile = walk.next(block);
    for (int use = 0; tile.index >= 0; use++, tile = walk.next(block)) {
        const int stage = use % 2, first_key = tile.index * tiles::KEYS;
        wait_freed(block.keys_freed, use);
        if (leader) {
            mbarrier_arrive_expect(block.keys_filled + stage, tiles::KEY_TILE * 2);
            load_tile<HD, tiles::KEYS>(block.keys + stage * tiles::KEY_TILE, &p.k, block.keys_filled + stage, block.kv,
                                       first_key);
        }
        wait_freed(block.values_freed, use);
        if (leader) {
            mbarrier_arrive_expect(block.values_filled + stage, tiles::KEY_TILE * 2);
            load_tile<HD, tiles::KEYS>(block.values + stage * tiles::KEY_TILE, &p.v, block.values_filled + stage,
                                       block.kv, first_key);
        }
    }
}

/* Group 0 or 1 starts products when it is its turn. */
__device__ __forceinline__ void wait_turn(int group) { named_barrier_sync(1 + group, 2 * NIB_WARP_GROUP); }
__device__ __forceinline__ void pass_turn(int group) { named_barrier_arrive(2 - group, 2 * NIB_WARP_GROUP); }

/* A group's rows of out, by way of its tile of queries, and their log-sum-exp. */
template <int HD, int N8>
__device__ __forceinline__ void write_rows(const forward_hopper_operands &p, const forward_hopper_block<HD> &block,
                                           int group, const float (&sum)[1][N8][4], const float (&largest)[2],
                                           const float (&total)[2], float factor)
{
    const int group_query = block.first_query + group * GROUP_ROWS;
    __nv_bfloat16 *queries = block.queries + group * forward_hopper_tiles<HD>::QUERY_TILE;
    float inverse[2], lse;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        inverse[r] = softmax_close(largest[r], total[r], factor, &lse);
        const int query = group_query + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + 8 * r;
        if (p.lse != NULL && query < block.T && threadIdx.x % 4 == 0)
            p.lse[(int64_t)block.head * block.T + query] = lse;
    }
    named_barrier_sync(3 + group, NIB_WARP_GROUP); /* the group's last product with its queries is over */
    round_rows(queries, sum[0], inverse);
    store_tile<PADDED(HD)>(&p.out, queries, 0, block.head, group_query, 3 + group);
}

/* A warp group's 64 queries through all tiles. */
template <int HD, bool CAPPED>
__device__ void consume(const forward_hopper_operands &p, const forward_hopper_block<HD> &block)
{
    typedef forward_hopper_tiles<HD> tiles;
    constexpr int KEYS = tiles::KEYS;
    const int group = threadIdx.x / NIB_WARP_GROUP - 1;
    const int group_query = block.first_query + group * GROUP_ROWS, my_query = group_query + threadIdx.x / 32 % 4 * 16;
    __nv_bfloat16 *queries = block.queries + group * tiles::QUERY_TILE;
    const score_scale<CAPPED> scale(p.shape);
    float score[1][KEYS / 8][4], sum[1][PADDED(HD) / 8][4], largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    float rescale[2];
    uint32_t weights[KEYS / 16][4];
    clear(sum);
    auto weigh = [&](walked_tile tile) {
        scale.cap(score[0]);
        if (tile.masked) mask_scores<1, KEYS>(score, p.tree, block.window, my_query, tile.index * KEYS);
#pragma unroll
        for (int r = 0; r < 2; r++) rescale[r] = softmax_weights(score[0], r, scale.factor, &largest[r], &total[r]);
    };

    tile_walk walk(0, block.last_tile);
    walked_tile tile = walk.next(block), following;
    const int own_end = block.group_end(group);
    int use = 0;
    auto end_turn = [&] {
        following = walk.next(block);
        if (group == 0 || following.index >= 0) pass_turn(group); /* nobody waits for the last turn's end */
    };
    auto skip = [&] { /* a tile that is the other group's alone */
                      wait_filled(block.keys_filled, use);
                      wait_turn(group);
                      end_turn();
                      free_stage(block.keys_freed, use);
                      wait_filled(block.values_filled, use);
                      free_stage(block.values_freed, use++);
                      tile = following;
    };
    mbarrier_wait(block.queries_filled, 0);
    if (group == 1) pass_turn(group);
    while (tile.index >= 0 && block.group_kind(group, tile.index) == TILE_EMPTY) skip();
    if (tile.index < 0) return; /* no query of the group is below T: one would see itself */
    wait_filled(block.keys_filled, use);
    wait_turn(group);
    wgmma_fence();
    group_multiply_rows<HD, GROUP_ROWS>(score[0], queries, block.keys + use % 2 * tiles::KEY_TILE);
    wgmma_commit();
    end_turn();
    wgmma_wait<0>();
    wgmma_settle(score[0]);
    free_stage(block.keys_freed, use);
    weigh(tile);
    round_left(weights, score[0]);

    for (tile = following, use++; tile.index >= 0 && tile.index < own_end; tile = following, use++) {
        wait_filled(block.keys_filled, use);
        wait_filled(block.values_filled, use - 1);
        wait_turn(group);
        wgmma_fence();
        group_multiply_rows<HD, GROUP_ROWS>(score[0], queries, block.keys + use % 2 * tiles::KEY_TILE);
        wgmma_commit();
        wgmma_fence();
        group_multiply_columns<KEYS>(sum[0], weights, block.values + (use - 1) % 2 * tiles::KEY_TILE);
        wgmma_commit();
        end_turn();
        wgmma_wait<1>();
        wgmma_settle(score[0]);
        free_stage(block.keys_freed, use);
        weigh(tile);
        wgmma_wait<0>();
        wgmma_settle(sum[0]);
        free_stage(block.values_freed, use - 1);
#pragma unroll
        for (int r = 0; r < 2; r++) rescale_row(sum[0], r, rescale[r]);
        round_left(weights, score[0]);
    }
    wait_filled(block.values_filled, use - 1);
    wgmma_fence();
    group_multiply_columns<KEYS>(sum[0], weights, block.values + (use - 1) % 2 * tiles::KEY_TILE);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_settle(sum[0]);
    free_stage(block.values_freed, use - 1);
    while (tile.index >= 0) skip();
    write_rows<HD>(p, block, group, sum, largest, total, scale.factor);
}

template <int HD, bool CAPPED>
__global__ void __launch_bounds__(THREADS, 1)
    attention_forward_hopper_kernel(const __grid_constant__ forward_hopper_operands p)
{
#ifdef NIB_HOPPER
    const forward_hopper_block<HD> block(p);
    if (threadIdx.x == 0) block.make_barriers();
    __syncthreads();
    if (threadIdx.x < NIB_WARP_GROUP) {
        lower_registers<24>();
        if (threadIdx.x < 32) produce<HD>(p, block);
    } else {
        raise_registers<240>();
        consume<HD, CAPPED>(p, block);
    }
#endif
}

template <int HD>
static nib_status launch_forward(nib_ops *ops, forward_hopper_operands p, nib_matrix q, nib_matrix k, nib_matrix v,
                                 nib_matrix out)
{
    typedef forward_hopper_tiles<HD> tiles;
    size_t mark = ops->scratch->used, shared = tiles::SHARED_BYTES;
    nib_attention_extremes *extremes;
    nib_status status = NIB_OK;
    dim3 grid((unsigned)p.shape.heads, (unsigned)((p.tree.T + tiles::QUERIES - 1) / tiles::QUERIES));
    NIB_TRY_GOTO(nib_attention_describe_tiles(ops, p.tree, tiles::KEYS, &extremes), done);
    p.extremes = extremes;
    if (ops->rehearsal) goto done; /* nothing lies there that a map could describe */
    NIB_TRY_GOTO(nib_cuda_map_heads(q, HD, GROUP_ROWS, &p.q), done);
    NIB_TRY_GOTO(nib_cuda_map_heads(k, HD, tiles::KEYS, &p.k), done);
    NIB_TRY_GOTO(nib_cuda_map_heads(v, HD, tiles::KEYS, &p.v), done);
    NIB_TRY_GOTO(nib_cuda_map_heads(out, HD, GROUP_ROWS, &p.out), done);
    if (p.shape.softcap > 0.0f)
        status = nib_cuda_launch(attention_forward_hopper_kernel<HD, true>, grid, dim3(THREADS), shared,
                                 nib_cuda_stream(ops), p);
    else
        status = nib_cuda_launch(attention_forward_hopper_kernel<HD, false>, grid, dim3(THREADS), shared,
                                 nib_cuda_stream(ops), p);
done:
    nib_arena_reset(ops->scratch, mark);
    return status;
}

nib_status nib_cuda_attention_forward_hopper(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                             nib_matrix k, nib_matrix v, nib_matrix out, float *lse)
{
    forward_hopper_operands p = {};
    if (!nib_cuda_attention_hopper_holds(ops, shape))
        return NIB_FAIL(NIB_ERROR_SHAPE, "attention_forward for sm_90: heads of %lld on sm_%d",
                        (long long)shape.head_dim, nib_cuda_device_of(ops)->architecture);
    p.shape = shape;
    p.tree = tree;
    p.lse = lse;
    switch (shape.head_dim) {
    case 64:
        return launch_forward<64>(ops, p, q, k, v, out);
    case 80:
        return launch_forward<80>(ops, p, q, k, v, out);
    case 96:
        return launch_forward<96>(ops, p, q, k, v, out);
    case 128:
        return launch_forward<128>(ops, p, q, k, v, out);
    default:
        return launch_forward<256>(ops, p, q, k, v, out);
    }
}

bool nib_cuda_attention_hopper_holds(nib_ops *ops, nib_attention_shape shape)
{
    return nib_cuda_device_of(ops)->architecture == 90 &&
           (shape.head_dim == 64 || shape.head_dim == 80 || shape.head_dim == 96 || shape.head_dim == 128 ||
            shape.head_dim == 256);
}
