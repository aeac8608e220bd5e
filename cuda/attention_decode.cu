/* Attention of generated tokens over the key/value cache, split over the context ("Flash-Decoding", Dao et al., 2023):
 * a block takes one run of at most RUN rows of the cache for the heads of one key/value head, so that a row is read
 * once for its whole group and a long context fills the device; a second kernel joins the runs of a query, in their
 * order.
 *
 * Block: 4 warps, a warp RUN / 4 keys and up to 16 heads of the group as the 16 rows of mma.m16n8k16; larger groups
 * take more blocks. All of the run's rows are asked for at once, keys before values. Shared memory: (16 + 2 RUN) (HD +
 * 8) bf16: queries, keys, values; the warps' sums lie over keys and values at the end. Scratch: HD + 2 floats for each
 * run and head. */
#include "cuda/attention.h"
#include "cuda/attention_tiles.cuh"
#include "cuda/backend.h"
#include "cuda/choice.h"
#include "cuda/launch.cuh"

#define WARPS   4
#define THREADS (32 * WARPS)
#define ROWS    16 /* heads of a block */

template <int HD> struct decode_tiles {
    static constexpr int KEYS = HD <= 128 ? 32 : 16, RUN = WARPS * KEYS; /* of a warp, of a block */
    static constexpr int SHARED_BYTES = (ROWS + 2 * RUN) * TILE_STRIDE(HD) * 2;
    static_assert(WARPS * ROWS * TILE_STRIDE(HD) * 4 <= 2 * RUN * TILE_STRIDE(HD) * 2, "the warps' sums fit");
};

/* Of one run and head: sum of weights times values, the maximum of the scores (powers of 2), the sum of weights. */
struct decode_parts {
    float *sum;             /* [runs, NH, HD] */
    float *largest, *total; /* [runs, NH] */
};

struct decode_operands {
    nib_attention_shape shape;
    nib_matrix q, k, v, out;
    nib_attention_runs runs;
    decode_parts part;
};

/* The warps' shares of the run, in their order, to the run's part. */
template <int HD>
__device__ __forceinline__ void join_warps(const decode_operands &p, const float *sums, const float *largest,
                                           const float *total, int run, int first_head, int heads)
{
    for (int i = threadIdx.x; i < heads * HD; i += THREADS) {
        int row = i / HD, column = i % HD;
        float most = -INFINITY, sum = 0.0f, all = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) most = fmaxf(most, largest[w * ROWS + row]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float rescale = exp2_approx(largest[w * ROWS + row] - most);
            sum += rescale * sums[(w * ROWS + row) * TILE_STRIDE(HD) + column];
            all += rescale * total[w * ROWS + row];
        }
        int64_t at = (int64_t)run * p.shape.heads + first_head + row;
        p.part.sum[at * HD + column] = sum;
        if (column == 0) {
            p.part.largest[at] = most;
            p.part.total[at] = all;
        }
    }
}

template <int HD> __global__ void __launch_bounds__(THREADS, 2) attention_decode_kernel(decode_operands p)
{
    constexpr int KEYS = decode_tiles<HD>::KEYS, RUN = decode_tiles<HD>::RUN;
    __nv_bfloat16 *queries = dynamic_shared<__nv_bfloat16>(), *keys = queries + ROWS * TILE_STRIDE(HD);
    __nv_bfloat16 *values = keys + RUN * TILE_STRIDE(HD);
    const nib_attention_run run = p.runs.run[blockIdx.x];
    const int group = (int)(p.shape.heads / p.shape.kv_heads), kv = blockIdx.y, warp = threadIdx.x / 32;
    const int first_head = kv * group + blockIdx.z * ROWS, heads = min(ROWS, group - (int)blockIdx.z * ROWS);
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const bool capped = p.shape.softcap > 0.0f;
    const float scale = p.shape.scale, outside = (capped ? p.shape.softcap : scale) * NIB_LOG2_E;

    /* Heads lie side by side in a query's row: rows HD apart. */
    copy_tile<HD, ROWS, THREADS>(queries, attention_row(p.q, run.query, first_head, HD), HD, 0, heads);
    copy_tile<HD, RUN, THREADS>(keys, attention_row(p.k, run.first, kv, HD), p.k.stride, 0, run.count);
    cp_async_commit();
    copy_tile<HD, RUN, THREADS>(values, attention_row(p.v, run.first, kv, HD), p.v.stride, 0, run.count);
    cp_async_commit();

    float score[1][KEYS / 8][4], sum[1][HD / 8][4], largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    clear(score);
    clear(sum);
    cp_async_wait<1>();
    __syncthreads();
    multiply_rows<HD, KEYS, 1>(score, queries, 0, keys + warp * KEYS * TILE_STRIDE(HD));
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = warp * KEYS + 8 * n + 2 * t + i % 2;
            float x = score[0][n][i];
            x = outside * (capped ? tanh_approx(x * scale / p.shape.softcap) : x);
            score[0][n][i] = key < run.count ? x : -INFINITY;
            largest[i / 2] = fmaxf(largest[i / 2], score[0][n][i]);
        }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xffffffffu, largest[r], 1));
        largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xffffffffu, largest[r], 2));
        float base = largest[r] == -INFINITY ? 0.0f : largest[r]; /* no key is this warp's: every weight is 0 */
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                score[0][n][2 * r + i] = exp2_approx(score[0][n][2 * r + i] - base);
                total[r] += score[0][n][2 * r + i];
            }
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
    }
    cp_async_wait<0>();
    __syncthreads();
    multiply_columns<HD, KEYS, HD, 1>(sum, score, values + warp * KEYS * TILE_STRIDE(HD));
    __syncthreads(); /* keys and values are done with: the warps' sums take their place, the queries' the rest */

    float *sums = reinterpret_cast<float *>(keys), *all_largest = reinterpret_cast<float *>(queries);
    float *all_total = all_largest + WARPS * ROWS;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = warp * ROWS + g + 8 * r;
#pragma unroll
        for (int n = 0; n < HD / 8; n++)
            store8(sums + row * TILE_STRIDE(HD) + 8 * n + 2 * t,
                   make_uint2(__float_as_uint(sum[0][n][2 * r]), __float_as_uint(sum[0][n][2 * r + 1])));
        if (t == 0) {
            all_largest[row] = largest[r];
            all_total[row] = total[r];
        }
    }
    __syncthreads();
    join_warps<HD>(p, sums, all_largest, all_total, blockIdx.x, first_head, heads);
}

/* A warp has one head of one query, and joins its runs. */
__global__ void __launch_bounds__(THREADS) attention_join_runs_kernel(decode_operands p, int head_dim)
{
    int64_t task = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    int query = (int)(task / p.shape.heads), head = (int)(task % p.shape.heads);
    if (query >= p.q.rows) return;
    int first = p.runs.begin[query], last = p.runs.begin[query + 1];
    float most = -INFINITY, all = 0.0f;
    for (int r = first; r < last; r++) most = fmaxf(most, p.part.largest[r * p.shape.heads + head]);
    for (int r = first; r < last; r++)
        all += exp2_approx(p.part.largest[r * p.shape.heads + head] - most) * p.part.total[r * p.shape.heads + head];
    for (int c = threadIdx.x % 32; c < head_dim; c += 32) {
        float sum = 0.0f;
        for (int r = first; r < last; r++)
            sum += exp2_approx(p.part.largest[r * p.shape.heads + head] - most) *
                   p.part.sum[(r * p.shape.heads + head) * head_dim + c];
        attention_row(p.out, query, head, head_dim)[c] = to_bf16(sum / all);
    }
}

template <int HD>
static nib_status launch_decode(nib_ops *ops, decode_operands p, const int32_t *range_begin,
                                const nib_cache_range *range)
{
    size_t mark = ops->scratch->used;
    unsigned blocks = (unsigned)((p.q.rows * p.shape.heads + WARPS - 1) / WARPS);
    nib_status status = NIB_OK;
    if (decode_tiles<HD>::SHARED_BYTES > nib_cuda_device_of(ops)->shared)
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "attention_cached: heads of %d need %d bytes of shared memory, the device has %zu", HD,
                        decode_tiles<HD>::SHARED_BYTES, nib_cuda_device_of(ops)->shared);
    NIB_TRY_GOTO(nib_attention_upload_runs(ops, p.shape.window, p.k.rows, p.q.rows, range_begin, range,
                                           decode_tiles<HD>::RUN, &p.runs),
                 done);
    NIB_TRY_GOTO(nib_arena_take(ops->scratch, p.runs.runs * p.shape.heads, HD * sizeof(float), &p.part.sum), done);
    NIB_TRY_GOTO(nib_arena_take(ops->scratch, p.runs.runs * p.shape.heads, sizeof(float), &p.part.largest), done);
    NIB_TRY_GOTO(nib_arena_take(ops->scratch, p.runs.runs * p.shape.heads, sizeof(float), &p.part.total), done);
    if (p.runs.runs > 0) {
        unsigned chunks = (unsigned)((p.shape.heads / p.shape.kv_heads + ROWS - 1) / ROWS);
        dim3 grid((unsigned)p.runs.runs, (unsigned)p.shape.kv_heads, chunks);
        NIB_TRY_GOTO(nib_cuda_launch(attention_decode_kernel<HD>, grid, dim3(THREADS), decode_tiles<HD>::SHARED_BYTES,
                                     nib_cuda_stream(ops), p),
                     done);
    }
    status = nib_cuda_launch(attention_join_runs_kernel, dim3(blocks), dim3(THREADS), 0, nib_cuda_stream(ops), p, HD);
done:
    nib_arena_reset(ops->scratch, mark);
    return status;
}

nib_status nib_cuda_attention_cached(nib_ops *ops, nib_attention_shape shape, nib_matrix q, nib_matrix k, nib_matrix v,
                                     const int32_t *range_begin, const nib_cache_range *range, nib_matrix out)
{
    decode_operands p = {shape, q, k, v, out, {}, {}};
    NIB_TRY(nib_attention_check_shape("attention_cached", shape, q, k, v));
    NIB_TRY(nib_attention_check_shape("attention_cached", shape, out, k, v));
    NIB_TRY(nib_attention_check_alignment("attention_cached", "q", q));
    NIB_TRY(nib_attention_check_alignment("attention_cached", "k", k));
    NIB_TRY(nib_attention_check_alignment("attention_cached", "v", v));
    if (q.rows == 0) return NIB_OK;
    if (nib_cuda_is_plain(ops, NIB_CUDA_ATTENTION_CACHED))
        return nib_cuda_attention_cached_plain(ops, shape, q, k, v, range_begin, range, out);
    switch (shape.head_dim) {
    case 16:
        return launch_decode<16>(ops, p, range_begin, range);
    case 64:
        return launch_decode<64>(ops, p, range_begin, range);
    case 80:
        return launch_decode<80>(ops, p, range_begin, range);
    case 96:
        return launch_decode<96>(ops, p, range_begin, range);
    case 128:
        return launch_decode<128>(ops, p, range_begin, range);
    case 256:
        return launch_decode<256>(ops, p, range_begin, range);
    default:
        return nib_cuda_attention_cached_plain(ops, shape, q, k, v, range_begin, range, out);
    }
}
