/* Conformance of what lanes of a warp tell each other: shuffles, votes, integer reductions. */
#include "cuda/conformance.cuh"

namespace
{

enum { SHUFFLES = 6 };

/* Of whole warps and of groups of eight lanes; what leads out of a group is the lane's own value. */
__global__ void shuffle_kernel(const uint32_t *in, uint32_t *out)
{
    const uint32_t lane = threadIdx.x, x = in[lane], every = 0xffffffffu;
    out[lane] = __shfl_sync(every, x, (int)(lane * 7 + 3) % 32);
    out[32 + lane] = __shfl_up_sync(every, x, 5);
    out[64 + lane] = __shfl_down_sync(every, x, 9);
    out[96 + lane] = __shfl_xor_sync(every, x, 21);
    out[128 + lane] = __shfl_sync(every, x, 2, 8);
    out[160 + lane] = __shfl_down_sync(every, x, 3, 8);
}

void shuffle_expected(const uint32_t *in, uint32_t *out)
{
    for (int lane = 0; lane < 32; lane++) {
        out[lane] = in[(lane * 7 + 3) % 32];
        out[32 + lane] = in[lane < 5 ? lane : lane - 5];
        out[64 + lane] = in[lane + 9 > 31 ? lane : lane + 9];
        out[96 + lane] = in[lane ^ 21];
        out[128 + lane] = in[lane / 8 * 8 + 2];
        out[160 + lane] = in[lane % 8 + 3 > 7 ? lane : lane + 3];
    }
}

/* Of the whole warp, and of its even lanes alone. */
__global__ void vote_kernel(const uint32_t *in, uint32_t *out)
{
    const uint32_t lane = threadIdx.x, every = 0xffffffffu, even = 0x55555555u;
    const bool odd = (in[lane] & 1) != 0;
    out[lane] = __ballot_sync(every, odd);
    out[32 + lane] = (uint32_t)__any_sync(every, lane == 30) | (uint32_t)__all_sync(every, lane != 30) << 1;
    out[64 + lane] = 0;
    if (lane % 2 == 0) out[64 + lane] = __ballot_sync(even, odd);
    __syncwarp();
}

void vote_expected(const uint32_t *in, uint32_t *out)
{
    uint32_t odd = 0;
    for (int lane = 0; lane < 32; lane++) odd |= (in[lane] & 1) << lane;
    for (int lane = 0; lane < 32; lane++) {
        out[lane] = odd;
        out[32 + lane] = 1;
        out[64 + lane] = lane % 2 == 0 ? odd & 0x55555555u : 0;
    }
}

__global__ void redux_kernel(const uint32_t *in, uint32_t *out)
{
    const uint32_t lane = threadIdx.x, x = in[lane], every = 0xffffffffu;
    const int value = (int)x;
    out[lane] = __reduce_add_sync(every, x);
    out[32 + lane] = __reduce_min_sync(every, x);
    out[64 + lane] = __reduce_max_sync(every, x);
    out[96 + lane] = __reduce_and_sync(every, x | 0xff00ff00u);
    out[128 + lane] = __reduce_or_sync(every, x & 0x00ff00f0u);
    out[160 + lane] = __reduce_xor_sync(every, x);
    out[192 + lane] = (uint32_t)__reduce_min_sync(every, value);
    out[224 + lane] = (uint32_t)__reduce_max_sync(every, value);
}

void redux_expected(const uint32_t *in, uint32_t *out)
{
    uint32_t sum = 0, least = ~0u, most = 0, ones = ~0u, any = 0, parity = 0;
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int lane = 0; lane < 32; lane++) {
        const uint32_t x = in[lane];
        const int32_t value = (int32_t)x;
        sum += x;
        least = x < least ? x : least;
        most = x > most ? x : most;
        ones &= x | 0xff00ff00u;
        any |= x & 0x00ff00f0u;
        parity ^= x;
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    const uint32_t all[] = {sum, least, most, ones, any, parity, (uint32_t)low, (uint32_t)high};
    for (int i = 0; i < 8 * 32; i++) out[i] = all[i / 32];
}

const conformance_row rows[] = {
    {"shfl", 80, shuffle_kernel, shuffle_expected, nullptr, 32, 0, SHUFFLES * 32, 0},
    {"vote", 80, vote_kernel, vote_expected, nullptr, 32, 0, 96, 0},
    {"redux", 80, redux_kernel, redux_expected, nullptr, 32, 0, 8 * 32, 0},
};

} // namespace

const conformance_list conformance_warp = {rows, sizeof rows / sizeof *rows};
