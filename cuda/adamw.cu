/* m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,
 * p = (1 - rate decay) p - rate / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon),   g = scale * gradient.
 *
 * 16 bytes read and 12 written an element, nothing else counts: a thread takes 4 neighbours, one 16-byte load of each
 * array, and a grid strides over all. Every step is rounded by itself (no fused multiply-add), in the CPU backend's
 * order. */
#include "cuda/adamw.h"
#include "cuda/adamw_step.cuh"
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/vector.cuh"

constexpr int THREADS = 256;

template <int N>
__global__ void __launch_bounds__(THREADS)
    adamw_kernel(const nib_adamw_factors *factors, const nib_clip *clip, int64_t n, float *parameter,
                 const float *gradient, float *first_moment, float *second_moment)
{
    if (!isfinite(clip->norm)) return;
    const nib_adamw_factors f = factors[clip->missed];
    const float scale = clip->scale;
    for_each_vector<N>(n, [&](auto width, int64_t at) {
        float p[width.N], g[width.N], m[width.N], v[width.N];
        load(parameter + at, p);
        load(gradient + at, g);
        load(first_moment + at, m);
        load(second_moment + at, v);
#pragma unroll
        for (int i = 0; i < width.N; i++) adamw_step(f, __fmul_rn(g[i], scale), m[i], v[i], p[i]);
        store(parameter + at, p);
        store(first_moment + at, m);
        store(second_moment + at, v);
    });
}

nib_status nib_cuda_adamw(nib_ops *ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n,
                          float *parameter, const float *gradient, float *first_moment, float *second_moment)
{
    if (n == 0) return NIB_OK;
    const bool vectors = whole_vectors(parameter) && whole_vectors(gradient) && whole_vectors(first_moment) &&
                         whole_vectors(second_moment);
    return nib_cuda_launch(vectors ? adamw_kernel<4> : adamw_kernel<1>, vector_grid(n, vectors ? 4 : 1, THREADS),
                           dim3(THREADS), 0, nib_cuda_stream(ops), factors, clip, n, parameter, gradient, first_moment,
                           second_moment);
}
