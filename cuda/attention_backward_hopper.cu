/* Attention, backward, on Hopper: the two kernels, formulas and seven products of attention_backward.cu, by wgmma; no
 * atomics, every sum has one owner and one order.
 *
 * Block: three warp groups. A warp of the first is the producer: it walks the tiles that the rule does not empty, and
 * has TMA fetch them two ahead. The others own 64 rows each. dK and dV: rows are keys of a key/value head, the walked
 * tiles queries of all heads of its group, scores transposed. dQ: rows are queries, the walked tiles keys.
 * Per tile: both products of rows are started together, then weights and slopes become, rounded, left operands in
 * registers of the products of columns. While one group computes those, the tensor cores have the other's products.
 * In dQ a tile's product of columns runs beside the next tile's products of rows too; for dK and dV the registers do
 * not reach that far.
 * Heads of 256 do not fit the registers: two blocks of the first kernel, each with half the columns of dK and dV.
 * Shared memory: the block's two tiles of 128 x PADDED, twice the walked two of OTHER x PADDED, bf16, and their
 * queries' sums: 66 KiB (heads of 64), 130 KiB (80 to 128), 193 KiB (256). Registers: 24 for the producer, 240 for the
 * others: sums PADDED (dK and dV; at most 128) or PADDED / 2 (dQ), OTHER for weights and slopes, half as many for
 * those rounded. */
#include "cuda/attention.h"
#include "cuda/attention_gradient.cuh"
#include "cuda/attention_hopper.cuh"
#include "cuda/backend.h"
#include "cuda/launch.cuh"

#define THREADS        384
#define CONSUMER_WARPS 8
#define OWN            (2 * GROUP_ROWS) /* rows of a block */

template <int HD> struct backward_hopper_tiles {
    static constexpr int OTHER = HD <= 128 ? 64 : 32;                                   /* rows of a walked tile */
    static constexpr int COLUMNS = PADDED(HD) <= 128 ? PADDED(HD) : 128;                /* of dK and dV, in a block */
    static constexpr int OWN_TILE = GROUP_ROWS * PADDED(HD), TILE = OTHER * PADDED(HD); /* elements */
    static constexpr int SUMS_BYTES = OTHER * sizeof(query_sums);
    static constexpr int SHARED_BYTES = (4 * OWN_TILE + 4 * TILE) * 2 + 2 * SUMS_BYTES + 5 * 8;
};

struct backward_hopper_operands {
    CUtensorMap q_own, dout_own, k_own, v_own, q, dout, k, v; /* boxes of 64 rows, and of OTHER */
    CUtensorMap dq, dk, dv;                                   /* of 64 rows */
    nib_attention_shape shape;
    nib_tree tree;
    const query_sums *sums; /* [NH, padded_T] */
    int padded_T;
    const nib_attention_extremes *extremes; /* of tiles of OTHER */
};

/* Where everything lies in shared memory: `first` are keys and `second` values, or queries and their dout. */
template <int HD> struct backward_hopper_buffers {
    typedef backward_hopper_tiles<HD> tiles;
    __nv_bfloat16 *own_first, *own_second; /* a tile for each group */
    __nv_bfloat16 *first, *second;         /* two stages */
    query_sums *sums;                      /* two stages */
    uint64_t *own_filled, *filled, *freed;

    __device__ backward_hopper_buffers()
        : own_first(dynamic_shared<__nv_bfloat16>()), own_second(own_first + 2 * tiles::OWN_TILE),
          first(own_second + 2 * tiles::OWN_TILE), second(first + 2 * tiles::TILE),
          sums(reinterpret_cast<query_sums *>(second + 2 * tiles::TILE)),
          own_filled(reinterpret_cast<uint64_t *>(sums + 2 * tiles::OTHER)), filled(own_filled + 1), freed(filled + 2)
    {
    }
    /* By one thread. */
    __device__ void make_barriers() const
    {
        mbarrier_init(own_filled, 1);
        for (int stage = 0; stage < 2; stage++) {
            mbarrier_init(filled + stage, 1);
            mbarrier_init(freed + stage, CONSUMER_WARPS);
        }
        fence_proxy_async();
    }
    /* By one thread: the block's rows. */
    __device__ void load_own(const CUtensorMap *a, const CUtensorMap *b, int head, int first_row) const
    {
        mbarrier_arrive_expect(own_filled, 4 * tiles::OWN_TILE * 2);
        for (int group = 0; group < 2; group++) {
            const int row = first_row + group * GROUP_ROWS;
            load_tile<HD, GROUP_ROWS>(own_first + group * tiles::OWN_TILE, a, own_filled, head, row);
            load_tile<HD, GROUP_ROWS>(own_second + group * tiles::OWN_TILE, b, own_filled, head, row);
        }
    }
    /* By one thread: a walked tile into stage use % 2, of which `more` bytes besides are expected. */
    __device__ void load_walked(const CUtensorMap *a, const CUtensorMap *b, int head, int first_row, int use,
                                int more) const
    {
        const int stage = use % 2;
        mbarrier_arrive_expect(filled + stage, 2 * tiles::TILE * 2 + more);
        load_tile<HD, tiles::OTHER>(first + stage * tiles::TILE, a, filled + stage, head, first_row);
        load_tile<HD, tiles::OTHER>(second + stage * tiles::TILE, b, filled + stage, head, first_row);
    }
};

/* Query tiles of a key/value head's keys, head after head of its group. */
template <int HD> struct query_tile_walk {
    static constexpr int OTHER = backward_hopper_tiles<HD>::OTHER;
    int T, window, first_key, last_head, head; /* head: of the tile that was returned last */
    nib_attention_extremes of_keys;
    const nib_attention_extremes *extremes;
    tile_walk of_head, walk;

    __device__ explicit query_tile_walk(const backward_hopper_operands &p)
        : T((int)p.tree.T), window((int)p.shape.window), first_key(blockIdx.y * OWN),
          last_head((int)((blockIdx.x + 1) * (p.shape.heads / p.shape.kv_heads)) - 1),
          head((int)(blockIdx.x * (p.shape.heads / p.shape.kv_heads))),
          of_keys(join_extremes(p.extremes, first_key / OTHER, (min(first_key + OWN, T) + OTHER - 1) / OTHER)),
          extremes(p.extremes), of_head(first_key / OTHER, (min(of_keys.end_most, T) + OTHER - 1) / OTHER),
          walk(of_head)
    {
    }
    __device__ tile_kind operator()(int tile) const
    {
        return tile_kind_of(tile * OTHER, min(tile * OTHER + OTHER, T), load_extremes(extremes + tile), first_key, OWN,
                            of_keys, window);
    }
    __device__ __forceinline__ walked_tile next()
    {
        walked_tile tile = walk.next(*this);
        if (tile.index < 0 && head < last_head) {
            head++;
            walk = of_head;
            tile = walk.next(*this);
        }
        return tile;
    }
};

/* Key tiles of a head's queries. */
template <int HD> struct key_tile_walk {
    static constexpr int OTHER = backward_hopper_tiles<HD>::OTHER;
    int first_query, last_query, last_tile, window;
    nib_attention_extremes of_queries;
    const nib_attention_extremes *extremes;
    tile_walk walk;

    __device__ explicit key_tile_walk(const backward_hopper_operands &p)
        : first_query((gridDim.y - 1 - blockIdx.y) * OWN), last_query(min(first_query + OWN, (int)p.tree.T)),
          last_tile((last_query + OTHER - 1) / OTHER), window((int)p.shape.window),
          of_queries(join_extremes(p.extremes, first_query / OTHER, last_tile)), extremes(p.extremes),
          walk(0, last_tile)
    {
    }
    __device__ tile_kind operator()(int tile) const
    {
        return tile_kind_of(first_query, last_query, of_queries, tile * OTHER, OTHER, load_extremes(extremes + tile),
                            window);
    }
    __device__ __forceinline__ walked_tile next() { return walk.next(*this); }
};

/* ---- dK and dV ---- */

/* One warp. */
template <int HD>
__device__ void produce_queries(const backward_hopper_operands &p, const backward_hopper_buffers<HD> &buffers)
{
    typedef backward_hopper_tiles<HD> tiles;
    const bool leader = elect_one();
    if (leader) buffers.load_own(&p.k_own, &p.v_own, blockIdx.x, blockIdx.y * OWN);
    query_tile_walk<HD> walk(p);
    walked_tile tile = walk.next();
    for (int use = 0; tile.index >= 0; use++, tile = walk.next()) {
        const int first_query = tile.index * tiles::OTHER;
        wait_freed(buffers.freed, use);
        if (!leader) continue;
        buffers.load_walked(&p.q, &p.dout, walk.head, first_query, use, tiles::SUMS_BYTES);
        bulk_load(buffers.sums + use % 2 * tiles::OTHER, p.sums + (int64_t)walk.head * p.padded_T + first_query,
                  tiles::SUMS_BYTES, buffers.filled + use % 2);
    }
}

/* Products of 64 keys (rows) and OTHER queries become weights and slopes. */
template <bool CAPPED, int N8>
__device__ __forceinline__ void apply_to_keys(float (&weight)[1][N8][4], float (&slope)[1][N8][4],
                                              const gradient_rule<CAPPED> &rule, const query_sums *sums, nib_tree tree,
                                              int window, int my_key, int first_query, bool masked)
{
    const int T = (int)tree.T, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    int end[2] = {}, position[2] = {}; /* of this lane's keys */
    if (masked)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int key = my_key + g + 8 * r;
            end[r] = key < T ? __ldg(tree.end + key) : 0;
            position[r] = __ldg(tree.position + min(key, T - 1));
        }
#pragma unroll
    for (int n = 0; n < N8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int column = 8 * n + 2 * t + i, query = first_query + column;
            const uint2 of_query = load8(sums + column);
            const int depth = masked && window > 0 ? __ldg(tree.position + min(query, T - 1)) - window : -1;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                bool hidden = my_key + g + 8 * r > query || query >= end[r] || position[r] <= depth;
                rule.apply(&weight[0][n][2 * r + i], &slope[0][n][2 * r + i], __uint_as_float(of_query.x),
                           __uint_as_float(of_query.y), masked && hidden);
            }
        }
}

/* A warp group's 64 keys through all query tiles. */
template <int HD, bool CAPPED>
__device__ void consume_queries(const backward_hopper_operands &p, const backward_hopper_buffers<HD> &buffers)
{
    typedef backward_hopper_tiles<HD> tiles;
    constexpr int OTHER = tiles::OTHER, COLUMNS = tiles::COLUMNS;
    const int group = threadIdx.x / NIB_WARP_GROUP - 1, group_key = blockIdx.y * OWN + group * GROUP_ROWS;
    const int my_key = group_key + threadIdx.x / 32 % 4 * 16, first_column = blockIdx.z * COLUMNS;
    __nv_bfloat16 *keys = buffers.own_first + group * tiles::OWN_TILE;
    __nv_bfloat16 *values = buffers.own_second + group * tiles::OWN_TILE;
    const gradient_rule<CAPPED> rule(p.shape);
    float sum_k[1][COLUMNS / 8][4], sum_v[1][COLUMNS / 8][4];
    clear(sum_k);
    clear(sum_v);

    query_tile_walk<HD> walk(p);
    walked_tile tile = walk.next();
    mbarrier_wait(buffers.own_filled, 0);
    for (int use = 0; tile.index >= 0; use++) {
        const __nv_bfloat16 *queries = buffers.first + use % 2 * tiles::TILE;
        const __nv_bfloat16 *douts = buffers.second + use % 2 * tiles::TILE;
        float weight[1][OTHER / 8][4], slope[1][OTHER / 8][4];
        uint32_t left_weight[OTHER / 16][4], left_slope[OTHER / 16][4];
        clear(weight); /* else the compiler carries registers round the loop, and copies them between products */
        clear(slope);
        wait_filled(buffers.filled, use);
        wgmma_fence();
        group_multiply_rows<HD, GROUP_ROWS>(weight[0], keys, queries);
        group_multiply_rows<HD, GROUP_ROWS>(slope[0], values, douts);
        wgmma_commit();
        const walked_tile following = walk.next();
        wgmma_wait<0>();
        wgmma_settle(weight[0]);
        wgmma_settle(slope[0]);
        apply_to_keys<CAPPED>(weight, slope, rule, buffers.sums + use % 2 * OTHER, p.tree, (int)p.shape.window, my_key,
                              tile.index * OTHER, tile.masked);
        round_left(left_weight, weight[0]);
        round_left(left_slope, slope[0]);
        wgmma_fence();
        group_multiply_columns<OTHER>(sum_v[0], left_weight, douts + first_column * OTHER);
        group_multiply_columns<OTHER>(sum_k[0], left_slope, queries + first_column * OTHER);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_settle(sum_v[0]);
        wgmma_settle(sum_k[0]);
        free_stage(buffers.freed, use);
        tile = following;
    }

    const float by_scale[2] = {p.shape.scale, p.shape.scale}, by_one[2] = {1.0f, 1.0f};
    named_barrier_sync(1 + group, NIB_WARP_GROUP); /* the group's last products with its keys and values are over */
    round_rows(keys, sum_k[0], by_scale);
    round_rows(values, sum_v[0], by_one);
    store_tile<COLUMNS>(&p.dk, keys, first_column, blockIdx.x, group_key, 1 + group);
    store_tile<COLUMNS>(&p.dv, values, first_column, blockIdx.x, group_key, 1 + group);
}

template <int HD, bool CAPPED>
__global__ void __launch_bounds__(THREADS, 1)
    attention_dkv_hopper_kernel(const __grid_constant__ backward_hopper_operands p)
{
#ifdef NIB_HOPPER
    const backward_hopper_buffers<HD> buffers;
    if (threadIdx.x == 0) buffers.make_barriers();
    __syncthreads();
    if (threadIdx.x < NIB_WARP_GROUP) {
        lower_registers<24>();
        if (threadIdx.x < 32) produce_queries<HD>(p, buffers);
    } else {
        raise_registers<240>();
        consume_queries<HD, CAPPED>(p, buffers);
    }
#endif
}

/* ---- dQ ---- */

/* One warp. */
template <int HD>
__device__ void produce_keys(const backward_hopper_operands &p, const backward_hopper_buffers<HD> &buffers)
{
    const int head = blockIdx.x, kv = head / (int)(p.shape.heads / p.shape.kv_heads);
    const bool leader = elect_one();
    key_tile_walk<HD> walk(p);
    if (leader) buffers.load_own(&p.q_own, &p.dout_own, head, walk.first_query);
    walked_tile tile = walk.next();
    for (int use = 0; tile.index >= 0; use++, tile = walk.next()) {
        wait_freed(buffers.freed, use);
        if (leader) buffers.load_walked(&p.k, &p.v, kv, tile.index * backward_hopper_tiles<HD>::OTHER, use, 0);
    }
}

/* What hides keys from a lane's two queries, and what their gradients need. */
struct lane_queries {
    float lse[2], delta[2];
    int depth[2]; /* keys no deeper than this are hidden by the window */
};

/* Products of 64 queries (rows) and OTHER keys become weights and slopes. */
template <bool CAPPED, int N8>
__device__ __forceinline__ void apply_to_queries(float (&weight)[1][N8][4], float (&slope)[1][N8][4],
                                                 const gradient_rule<CAPPED> &rule, const lane_queries &lane,
                                                 nib_tree tree, int window, int my_query, int first_key, bool masked)
{
    const int T = (int)tree.T, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < N8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int key = first_key + 8 * n + 2 * t + i;
            const int end = masked && key < T ? __ldg(tree.end + key) : 0;
            const int position = masked && window > 0 ? __ldg(tree.position + min(key, T - 1)) : 0;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int query = my_query + g + 8 * r;
                bool hidden = key > query || query >= end || position <= lane.depth[r];
                rule.apply(&weight[0][n][2 * r + i], &slope[0][n][2 * r + i], lane.lse[r], lane.delta[r],
                           masked && hidden);
            }
        }
}

/* A warp group's 64 queries through all key tiles. */
template <int HD, bool CAPPED>
__device__ void consume_keys(const backward_hopper_operands &p, const backward_hopper_buffers<HD> &buffers)
{
    typedef backward_hopper_tiles<HD> tiles;
    constexpr int OTHER = tiles::OTHER;
    const int T = (int)p.tree.T, window = (int)p.shape.window, head = blockIdx.x, g = threadIdx.x % 32 / 4;
    const int group = threadIdx.x / NIB_WARP_GROUP - 1;
    key_tile_walk<HD> walk(p);
    const int group_query = walk.first_query + group * GROUP_ROWS, my_query = group_query + threadIdx.x / 32 % 4 * 16;
    __nv_bfloat16 *queries = buffers.own_first + group * tiles::OWN_TILE;
    const __nv_bfloat16 *douts = buffers.own_second + group * tiles::OWN_TILE;
    const gradient_rule<CAPPED> rule(p.shape);
    lane_queries lane;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int query = my_query + g + 8 * r;
        const uint2 sums = load8(p.sums + (int64_t)head * p.padded_T + query);
        lane.lse[r] = __uint_as_float(sums.x);
        lane.delta[r] = __uint_as_float(sums.y);
        lane.depth[r] = window > 0 ? __ldg(p.tree.position + min(query, T - 1)) - window : -1;
    }
    float sum[1][PADDED(HD) / 8][4];
    clear(sum);

    walked_tile tile = walk.next();
    mbarrier_wait(buffers.own_filled, 0);
    for (int use = 0; tile.index >= 0; use++) {
        const __nv_bfloat16 *keys = buffers.first + use % 2 * tiles::TILE;
        float weight[1][OTHER / 8][4], slope[1][OTHER / 8][4];
        uint32_t left[OTHER / 16][4];
        clear(weight); /* else the compiler carries registers round the loop, and copies them between products */
        clear(slope);
        wait_filled(buffers.filled, use);
        wgmma_fence();
        group_multiply_rows<HD, GROUP_ROWS>(weight[0], queries, keys);
        group_multiply_rows<HD, GROUP_ROWS>(slope[0], douts, buffers.second + use % 2 * tiles::TILE);
        wgmma_commit();
        const walked_tile following = walk.next();
        wgmma_wait<1>();
        wgmma_settle(sum[0]);
        if (use > 0) free_stage(buffers.freed, use - 1);
        wgmma_wait<0>();
        wgmma_settle(weight[0]);
        wgmma_settle(slope[0]);
        apply_to_queries<CAPPED>(weight, slope, rule, lane, p.tree, window, my_query, tile.index * OTHER, tile.masked);
        round_left(left, slope[0]);
        wgmma_fence();
        group_multiply_columns<OTHER>(sum[0], left, keys);
        wgmma_commit();
        tile = following;
    }
    wgmma_wait<0>();
    wgmma_settle(sum[0]);
    const float by_scale[2] = {p.shape.scale, p.shape.scale};
    named_barrier_sync(1 + group, NIB_WARP_GROUP); /* the group's last products with its queries are over */
    round_rows(queries, sum[0], by_scale);
    store_tile<PADDED(HD)>(&p.dq, queries, 0, head, group_query, 1 + group);
}

template <int HD, bool CAPPED>
__global__ void __launch_bounds__(THREADS, 1)
    attention_dq_hopper_kernel(const __grid_constant__ backward_hopper_operands p)
{
#ifdef NIB_HOPPER
    const backward_hopper_buffers<HD> buffers;
    if (threadIdx.x == 0) buffers.make_barriers();
    __syncthreads();
    if (threadIdx.x < NIB_WARP_GROUP) {
        lower_registers<24>();
        if (threadIdx.x < 32) produce_keys<HD>(p, buffers);
    } else {
        raise_registers<240>();
        consume_keys<HD, CAPPED>(p, buffers);
    }
#endif
}

/* ---- launchers ---- */

struct backward_matrices {
    nib_matrix q, k, v, out, dout, dq, dk, dv;
};

template <int HD> static nib_status map_operands(const backward_matrices &m, backward_hopper_operands *p)
{
    constexpr int OTHER = backward_hopper_tiles<HD>::OTHER;
    NIB_TRY(nib_cuda_map_heads(m.q, HD, GROUP_ROWS, &p->q_own));
    NIB_TRY(nib_cuda_map_heads(m.dout, HD, GROUP_ROWS, &p->dout_own));
    NIB_TRY(nib_cuda_map_heads(m.k, HD, GROUP_ROWS, &p->k_own));
    NIB_TRY(nib_cuda_map_heads(m.v, HD, GROUP_ROWS, &p->v_own));
    NIB_TRY(nib_cuda_map_heads(m.q, HD, OTHER, &p->q));
    NIB_TRY(nib_cuda_map_heads(m.dout, HD, OTHER, &p->dout));
    NIB_TRY(nib_cuda_map_heads(m.k, HD, OTHER, &p->k));
    NIB_TRY(nib_cuda_map_heads(m.v, HD, OTHER, &p->v));
    NIB_TRY(nib_cuda_map_heads(m.dq, HD, GROUP_ROWS, &p->dq));
    NIB_TRY(nib_cuda_map_heads(m.dk, HD, GROUP_ROWS, &p->dk));
    return nib_cuda_map_heads(m.dv, HD, GROUP_ROWS, &p->dv);
}

template <int HD, bool CAPPED> static nib_status launch_kernels(nib_ops *ops, const backward_hopper_operands &p)
{
    typedef backward_hopper_tiles<HD> tiles;
    unsigned blocks = (unsigned)((p.tree.T + OWN - 1) / OWN);
    dim3 keys((unsigned)p.shape.kv_heads, blocks, PADDED(HD) / tiles::COLUMNS),
        queries((unsigned)p.shape.heads, blocks);
    NIB_TRY(nib_cuda_launch(attention_dkv_hopper_kernel<HD, CAPPED>, keys, dim3(THREADS), (size_t)tiles::SHARED_BYTES,
                            nib_cuda_stream(ops), p));
    return nib_cuda_launch(attention_dq_hopper_kernel<HD, CAPPED>, queries, dim3(THREADS), (size_t)tiles::SHARED_BYTES,
                           nib_cuda_stream(ops), p);
}

template <int HD>
static nib_status launch_backward(nib_ops *ops, backward_hopper_operands p, const backward_matrices &m,
                                  const float *lse)
{
    size_t mark = ops->scratch->used;
    nib_attention_extremes *extremes;
    query_sums *sums;
    nib_status status = NIB_OK;
    p.padded_T = (int)((p.tree.T + OWN - 1) / OWN * OWN);
    NIB_TRY_GOTO(nib_attention_describe_tiles(ops, p.tree, backward_hopper_tiles<HD>::OTHER, &extremes), done);
    NIB_TRY_GOTO(nib_attention_sum_queries(ops, p.shape, p.tree.T, m.out, m.dout, lse, p.padded_T, &sums), done);
    p.extremes = extremes;
    p.sums = sums;
    if (ops->rehearsal) goto done; /* nothing lies there that a map could describe */
    NIB_TRY_GOTO(map_operands<HD>(m, &p), done);
    status = p.shape.softcap > 0.0f ? launch_kernels<HD, true>(ops, p) : launch_kernels<HD, false>(ops, p);
done:
    nib_arena_reset(ops->scratch, mark);
    return status;
}

nib_status nib_cuda_attention_backward_hopper(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                              nib_matrix k, nib_matrix v, nib_matrix out, const float *lse,
                                              nib_matrix dout, nib_matrix dq, nib_matrix dk, nib_matrix dv)
{
    backward_hopper_operands p = {};
    backward_matrices m = {q, k, v, out, dout, dq, dk, dv};
    if (!nib_cuda_attention_hopper_holds(ops, shape))
        return NIB_FAIL(NIB_ERROR_SHAPE, "attention_backward for sm_90: heads of %lld on sm_%d",
                        (long long)shape.head_dim, nib_cuda_device_of(ops)->architecture);
    p.shape = shape;
    p.tree = tree;
    switch (shape.head_dim) {
    case 64:
        return launch_backward<64>(ops, p, m, lse);
    case 80:
        return launch_backward<80>(ops, p, m, lse);
    case 96:
        return launch_backward<96>(ops, p, m, lse);
    case 128:
        return launch_backward<128>(ops, p, m, lse);
    default:
        return launch_backward<256>(ops, p, m, lse);
    }
}
