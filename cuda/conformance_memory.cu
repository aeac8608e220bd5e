/* Conformance of copies and wide accesses, and of the barriers that make them visible. */
#include "cuda/conformance.cuh"

namespace
{

enum { THREADS = 128, WORDS = 4 * THREADS, VALID = 300 };

/* Two groups in flight; the first has zeros from word VALID on. Each is read by other threads than those that copied
 * it, when the first has landed and when both have. */
__global__ void cp_async_kernel(const uint32_t *in, uint32_t *out)
{
    uint32_t *shared = dynamic_shared<uint32_t>();
    const int i = 4 * (int)threadIdx.x, across = (i + WORDS / 2) % WORDS;
    cp_async_16(shared + i, in + i, i < VALID);
    cp_async_commit();
    cp_async_16(shared + WORDS + i, in + WORDS + i, true);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    for (int k = 0; k < 4; k++) out[across + k] = shared[across + k];
    cp_async_wait<0>();
    __syncthreads();
    for (int k = 0; k < 4; k++) out[WORDS + across + k] = shared[WORDS + across + k];
}

void cp_async_expected(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 2 * WORDS; i++) out[i] = i < VALID || i >= WORDS ? in[i] : 0;
}

/* Each of the wide accesses of its own quarter, in reverse order of the words. */
__global__ void wide_access_kernel(const uint32_t *in, uint32_t *out)
{
    const int lane = (int)threadIdx.x;
    const uint4 a = load16(in + 4 * lane), b = load16_stream(in + 128 + 4 * lane);
    const uint2 c = load8(in + 256 + 2 * lane);
    store16(out + 4 * lane, make_uint4(a.w, a.z, a.y, a.x));
    store16(out + 128 + 4 * lane, make_uint4(b.w, b.z, b.y, b.x));
    store8(out + 256 + 2 * lane, make_uint2(c.y, c.x));
    out[320 + lane] = __ldg(in + 320 + (31 - lane));
}

void wide_access_expected(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 256; i++) out[i] = in[i / 4 * 4 + 3 - i % 4];
    for (int i = 256; i < 320; i++) out[i] = in[i / 2 * 2 + 1 - i % 2];
    for (int i = 320; i < 352; i++) out[i] = in[320 + 351 - i];
}

/* Through the end of more shared memory than a kernel gets without asking. */
enum { LARGE = 64 * 1024 };
__global__ void shared_memory_kernel(const uint32_t *in, uint32_t *out)
{
    unsigned char *shared = dynamic_shared<unsigned char>();
    uint32_t *far = reinterpret_cast<uint32_t *>(shared + LARGE) - THREADS;
    far[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = far[THREADS - 1 - threadIdx.x];
}

void shared_memory_expected(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < THREADS; i++) out[i] = in[THREADS - 1 - i];
}

/* Warp 0 hands words to warp 1 at barrier 1, warp 2 to warp 3 at barrier 2; those that write go on. */
__global__ void named_barrier_kernel(const uint32_t *in, uint32_t *out)
{
    uint32_t *shared = dynamic_shared<uint32_t>();
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, pair = warp / 2;
    if (warp % 2 == 0) {
        shared[32 * pair + lane] = in[threadIdx.x];
        named_barrier_arrive(1 + pair, 64);
        out[threadIdx.x] = in[threadIdx.x];
    } else {
        named_barrier_sync(1 + pair, 64);
        out[threadIdx.x] = shared[32 * pair + 31 - lane];
    }
}

void named_barrier_expected(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < THREADS; i++) out[i] = i / 32 % 2 == 0 ? in[i] : in[i / 32 * 32 - 32 + 31 - i % 32];
}

__global__ void block_votes_kernel(const uint32_t *in, uint32_t *out)
{
    const bool odd = (in[threadIdx.x] & 1) != 0;
    const int count = __syncthreads_count(odd), any = __syncthreads_or(threadIdx.x == 77), all = __syncthreads_and(odd);
    out[threadIdx.x] = (uint32_t)count | (any != 0 ? 1u << 16 : 0) | (all != 0 ? 1u << 17 : 0);
}

void block_votes_expected(const uint32_t *in, uint32_t *out)
{
    uint32_t count = 0;
    for (int i = 0; i < THREADS; i++) count += in[i] & 1;
    for (int i = 0; i < THREADS; i++) out[i] = count | 1u << 16 | (count == THREADS ? 1u << 17 : 0);
}

/* Of integers, whose results do not depend on the order. */
__global__ void atomics_kernel(const uint32_t *in, uint32_t *out)
{
    uint32_t *shared = dynamic_shared<uint32_t>();
    if (threadIdx.x < 4) shared[threadIdx.x] = threadIdx.x == 2 ? ~0u : 0;
    __syncthreads();
    atomicAdd(&shared[0], in[threadIdx.x]);
    atomicMax(&shared[1], in[threadIdx.x]);
    atomicMin(&shared[2], in[threadIdx.x]);
    atomicOr(&shared[3], in[threadIdx.x] & 0x0f0f0f0fu);
    __syncthreads();
    if (threadIdx.x < 4) out[threadIdx.x] = shared[threadIdx.x];
}

void atomics_expected(const uint32_t *in, uint32_t *out)
{
    out[0] = out[1] = out[3] = 0;
    out[2] = ~0u;
    for (int i = 0; i < THREADS; i++) {
        out[0] += in[i];
        out[1] = in[i] > out[1] ? in[i] : out[1];
        out[2] = in[i] < out[2] ? in[i] : out[2];
        out[3] |= in[i] & 0x0f0f0f0fu;
    }
}

const conformance_row rows[] = {
    {"cp.async", 80, cp_async_kernel, cp_async_expected, nullptr, THREADS, 2 * WORDS * 4, 2 * WORDS, 0},
    {"ld and st of 8 and 16 bytes", 80, wide_access_kernel, wide_access_expected, nullptr, 32, 0, 352, 0},
    {"64 KiB of shared memory", 80, shared_memory_kernel, shared_memory_expected, nullptr, THREADS, LARGE, THREADS, 0},
    {"bar.sync, bar.arrive", 80, named_barrier_kernel, named_barrier_expected, nullptr, THREADS, 256, THREADS, 0},
    {"bar.red", 80, block_votes_kernel, block_votes_expected, nullptr, THREADS, 0, THREADS, 0},
    {"atom.shared", 80, atomics_kernel, atomics_expected, nullptr, THREADS, 16, 4, 0},
};

} // namespace

const conformance_list conformance_memory = {rows, sizeof rows / sizeof *rows};
