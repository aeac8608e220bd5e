/* Rows by vectors. An elementwise kernel is written once for N elements a thread and step, and compiled for two N: a
 * whole vector (16 bytes of bf16, so 32 of fp32), and 1 for rows whose width or address is no multiple of one. */
#ifndef NIB_CUDA_VECTOR_CUH
#define NIB_CUDA_VECTOR_CUH

#include "cuda/c_headers.h"
#include "cuda/intrinsics.cuh"

#include <initializer_list>

constexpr int VECTOR = 8; /* elements */

/* x = N elements from `from` on: all of them by 16-byte loads if N is a multiple of a load, else one by one. */
template <int N> __device__ __forceinline__ void load(const __nv_bfloat16 *from, float (&x)[N])
{
    if constexpr (N % 8 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 8) {
            const uint4 bits = load16(from + i);
            const uint32_t pair[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float2 both = unpack_bf16(pair[j]);
                x[i + 2 * j] = both.x;
                x[i + 2 * j + 1] = both.y;
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = to_float(from[i]);
    }
}

template <int N> __device__ __forceinline__ void load(const float *from, float (&x)[N])
{
    if constexpr (N % 4 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const uint4 bits = load16(from + i);
            x[i] = __uint_as_float(bits.x);
            x[i + 1] = __uint_as_float(bits.y);
            x[i + 2] = __uint_as_float(bits.z);
            x[i + 3] = __uint_as_float(bits.w);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = from[i];
    }
}

/* The other way, each element rounded to nearest even. */
template <int N> __device__ __forceinline__ void store(__nv_bfloat16 *to, const float (&x)[N])
{
    if constexpr (N % 8 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 8)
            store16(to + i, make_uint4(pack_bf16(x[i], x[i + 1]), pack_bf16(x[i + 2], x[i + 3]),
                                       pack_bf16(x[i + 4], x[i + 5]), pack_bf16(x[i + 6], x[i + 7])));
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = to_bf16(x[i]);
    }
}

template <int N> __device__ __forceinline__ void store(float *to, const float (&x)[N])
{
    if constexpr (N % 4 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 4)
            store16(to + i, make_uint4(__float_as_uint(x[i]), __float_as_uint(x[i + 1]), __float_as_uint(x[i + 2]),
                                       __float_as_uint(x[i + 3])));
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = x[i];
    }
}

/* Over a grid's threads: step(vector<N>, i) at every i where a whole vector lies below n, then step(vector<1>, i) at
 * each of the rest. */
template <int WIDTH> struct vector {
    static constexpr int N = WIDTH;
};
template <int N, class Step> __device__ __forceinline__ void for_each_vector(int64_t n, Step step)
{
    const int64_t first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = first * N; i + N <= n; i += stride * N) step(vector<N>{}, i);
    if constexpr (N > 1)
        for (int64_t i = n / N * N + first; i < n; i += stride) step(vector<1>{}, i);
}

__device__ __forceinline__ float round_to_bf16(float x) { return to_float(to_bf16(x)); }

/* Host side. */

inline bool whole_vectors(const void *address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

inline bool whole_vectors(nib_matrix m)
{
    return whole_vectors(m.data) && m.columns % VECTOR == 0 && m.stride % VECTOR == 0;
}

/* Whether every row of every matrix starts at a multiple of 16 bytes and consists of vectors. A matrix without data,
 * one that the op was not given, does not count. */
inline bool whole_vectors(std::initializer_list<nib_matrix> matrices)
{
    for (const nib_matrix &m : matrices)
        if (m.data != nullptr && !whole_vectors(m)) return false;
    return true;
}

inline int64_t divide_up(int64_t n, int64_t step) { return (n + step - 1) / step; }

/* Blocks for for_each_vector of n elements, N a thread and step: no more than fill a card several times. */
inline dim3 vector_grid(int64_t n, int N, int threads)
{
    const int64_t blocks = divide_up(n, (int64_t)N * threads), most = 4096;
    return dim3((unsigned)(blocks < most ? blocks : most));
}

inline __nv_bfloat16 *bf16_of(nib_matrix m) { return static_cast<__nv_bfloat16 *>(m.data); }
inline float *float_of(nib_matrix m) { return static_cast<float *>(m.data); }

#endif
