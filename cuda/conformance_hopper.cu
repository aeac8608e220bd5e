/* One warp group does what attention does, with the same helpers, on one tile of each operand:
 *
 *   a [64, 128], b [64, 128] by TMA;  s = a b^T;  o = s b;  o rounded, by TMA into a matrix
 *
 * and writes down what it has after each step: shared memory as TMA filled it, the sums of both products, the matrix.
 * Values are -1, 0 and 1, so that every sum is exact whatever its order: all is compared bit by bit. The tiles are the
 * second of two heads of 96 columns and reach beyond the last row, so that zeros are filled in and stores are cut. */
#include "cuda/conformance_hopper.h"

#include "cuda/attention_hopper.cuh"
#include "cuda/backend.h"
#include "cuda/launch.cuh"

extern "C" {
#include "base/memory.h"
}

#define HD       96
#define ROWS     64
#define T        150 /* rows of the matrices; tiles begin at row FIRST */
#define FIRST    100
#define TILE     (ROWS * PADDED(HD))
#define BARRIERS 2

struct conformance_operands {
    CUtensorMap a, b, out;
    uint16_t *image; /* [TILE] of b */
    float *s;        /* [ROWS, ROWS] */
    float *o;        /* [ROWS, PADDED(HD)] */
};

/* The group's sums [64, 8 N8] to memory. */
template <int N8> __device__ __forceinline__ void write_sums(const float (&sum)[N8][4], float *out)
{
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = 2 * (threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < N8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[(row + i / 2 * 8) * 8 * N8 + 8 * n + column + i % 2] = sum[n][i];
}

__global__ void __launch_bounds__(NIB_WARP_GROUP, 1)
    conformance_hopper_kernel(const __grid_constant__ conformance_operands p)
{
#ifdef NIB_HOPPER
    __nv_bfloat16 *a = dynamic_shared<__nv_bfloat16>(), *b = a + TILE;
    uint64_t *filled = reinterpret_cast<uint64_t *>(b + TILE);
    float s[1][ROWS / 8][4], o[1][PADDED(HD) / 8][4];
    uint32_t left[ROWS / 16][4];
    if (threadIdx.x < 32 && elect_one()) {
        for (int i = 0; i < BARRIERS; i++) mbarrier_init(filled + i, 1);
        fence_proxy_async();
        mbarrier_arrive_expect(filled, TILE * 2);
        load_tile<HD, ROWS>(a, &p.a, filled, 1, FIRST);
        mbarrier_arrive_expect(filled + 1, TILE * 2);
        load_tile<HD, ROWS>(b, &p.b, filled + 1, 1, FIRST);
    }
    __syncthreads();
    for (int i = 0; i < BARRIERS; i++) mbarrier_wait(filled + i, 0);
    for (int i = threadIdx.x; i < TILE; i += NIB_WARP_GROUP) p.image[i] = __bfloat16_as_ushort(b[i]);

    clear(s);
    wgmma_fence();
    group_multiply_rows<HD, ROWS>(s[0], a, b);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_settle(s[0]);
    write_sums(s[0], p.s);

    round_left(left, s[0]);
    clear(o);
    wgmma_fence();
    group_multiply_columns<ROWS>(o[0], left, b);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_settle(o[0]);
    write_sums(o[0], p.o);

    const float by_one[2] = {1.0f, 1.0f};
    __syncthreads();
    round_rows(a, o[0], by_one);
    store_tile<PADDED(HD)>(&p.out, a, 0, 1, FIRST, 1);
#endif
}

/* ---- the same by plain loops ---- */

struct conformance_host {
    uint16_t a[T * 2 * HD], b[T * 2 * HD], out[T * 2 * HD], image[TILE];
    float s[ROWS * ROWS], o[ROWS * PADDED(HD)];
};

static float element(const uint16_t *matrix, int row, int column)
{
    if (FIRST + row >= T || column >= HD) return 0.0f;
    return nib_bf16_to_float({matrix[(FIRST + row) * 2 * HD + HD + column]});
}

static void fill_host(conformance_host *h)
{
    for (int i = 0; i < T * 2 * HD; i++) {
        uint32_t word[4];
        nib_philox(96, 0, (uint64_t)i, word);
        h->a[i] = nib_bf16_from_float((float)(word[0] % 3) - 1.0f).bits;
        h->b[i] = nib_bf16_from_float((float)(word[1] % 3) - 1.0f).bits;
        h->out[i] = 0x4711;
    }
}

static void recompute(conformance_host *h)
{
    for (int row = 0; row < ROWS; row++) {
        for (int c = 0; c < PADDED(HD); c++) {
            const int chunk = c % PANEL / 8 ^ row % 8;
            h->image[c / PANEL * ROWS * PANEL + row * PANEL + chunk * 8 + c % 8] =
                nib_bf16_from_float(element(h->b, row, c)).bits;
        }
        for (int other = 0; other < ROWS; other++) {
            float sum = 0.0f;
            for (int c = 0; c < HD; c++) sum += element(h->a, row, c) * element(h->b, other, c);
            h->s[row * ROWS + other] = sum;
        }
        for (int c = 0; c < PADDED(HD); c++) {
            float sum = 0.0f;
            for (int k = 0; k < ROWS; k++) sum += h->s[row * ROWS + k] * element(h->b, k, c);
            h->o[row * PADDED(HD) + c] = sum;
            if (FIRST + row < T && c < HD) h->out[(FIRST + row) * 2 * HD + HD + c] = nib_bf16_from_float(sum).bits;
        }
    }
}

const char *nib_cuda_conformance_hopper_name(int i)
{
    static const char *const names[NIB_CUDA_CONFORMANCE_HOPPER] = {"tma_load", "wgmma_bf16_ss", "wgmma_bf16_rs",
                                                                   "tma_store"};
    return names[i];
}

template <class Value>
static void compare(const char *instruction, const Value *found, const Value *want, int64_t n,
                    nib_cuda_conformance *result)
{
    *result = {instruction, n, 0};
    for (int64_t i = 0; i < n; i++) result->wrong += !(found[i] == want[i]);
}

static nib_status run(nib_ops *ops, conformance_host *found)
{
    conformance_operands p = {};
    nib_matrix a = {NULL, T, 2 * HD, 2 * HD, NIB_DTYPE_BF16}, b = a, out = a;
    const size_t bytes = sizeof found->a;
    NIB_TRY(nib_arena_take(ops->scratch, T * 2 * HD, 2, &a.data));
    NIB_TRY(nib_arena_take(ops->scratch, T * 2 * HD, 2, &b.data));
    NIB_TRY(nib_arena_take(ops->scratch, T * 2 * HD, 2, &out.data));
    NIB_TRY(nib_arena_take(ops->scratch, TILE, 2, &p.image));
    NIB_TRY(nib_arena_take(ops->scratch, ROWS * ROWS, sizeof *p.s, &p.s));
    NIB_TRY(nib_arena_take(ops->scratch, TILE, sizeof *p.o, &p.o));
    NIB_TRY(ops->upload(ops, a.data, found->a, bytes));
    NIB_TRY(ops->upload(ops, b.data, found->b, bytes));
    NIB_TRY(ops->upload(ops, out.data, found->out, bytes));
    NIB_TRY(nib_cuda_map_heads(a, HD, ROWS, &p.a));
    NIB_TRY(nib_cuda_map_heads(b, HD, ROWS, &p.b));
    NIB_TRY(nib_cuda_map_heads(out, HD, ROWS, &p.out));
    NIB_TRY(nib_cuda_launch(conformance_hopper_kernel, dim3(1), dim3(NIB_WARP_GROUP),
                            (size_t)(2 * TILE * 2 + BARRIERS * 8), nib_cuda_stream(ops), p));
    NIB_TRY(ops->download(ops, found->out, out.data, bytes));
    NIB_TRY(ops->download(ops, found->image, p.image, sizeof found->image));
    NIB_TRY(ops->download(ops, found->s, p.s, sizeof found->s));
    return ops->download(ops, found->o, p.o, sizeof found->o);
}

nib_status nib_cuda_conformance_hopper(nib_ops *ops, nib_cuda_conformance result[NIB_CUDA_CONFORMANCE_HOPPER])
{
    nib_status status = NIB_OK;
    const size_t mark = ops->scratch->used;
    const int architecture = nib_cuda_device_of(ops)->architecture;
    if (architecture != 90)
        return NIB_FAIL(NIB_ERROR_DEVICE, "Hopper's instructions are not those of sm_%d", architecture);
    conformance_host *host = (conformance_host *)nib_calloc(2, sizeof *host), *want = host, *found = host + 1;
    if (host == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %zu bytes", 2 * sizeof *host);
    fill_host(want);
    *found = *want;
    recompute(want);
    NIB_TRY_GOTO(run(ops, found), done);
    compare(nib_cuda_conformance_hopper_name(0), found->image, want->image, TILE, &result[0]);
    compare(nib_cuda_conformance_hopper_name(1), found->s, want->s, ROWS * ROWS, &result[1]);
    compare(nib_cuda_conformance_hopper_name(2), found->o, want->o, TILE, &result[2]);
    compare(nib_cuda_conformance_hopper_name(3), found->out, want->out, T * 2 * HD, &result[3]);
done:
    nib_arena_reset(ops->scratch, mark);
    nib_free(host);
    return status;
}
