/* m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,
 * p = (1 - rate decay) p - rate / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon),   g = scale * gradient.
 *
 * One thread an element, a grid that strides over all: 16 bytes read and 12 written, nothing else counts. Every step is
 * rounded by itself (no fused multiply-add), in the CPU backend's order. */
#include "cuda/adamw.h"
#include "cuda/backend.h"
#include "cuda/intrinsics.cuh"
#include "cuda/launch.cuh"

static const int THREADS = 256;
static const int64_t MOST_BLOCKS = 4096;

/* nib_adamw as its kernel uses it. */
typedef struct {
    float decay, beta1, beta2, rest1, rest2, step_size, root, epsilon;
} factors;

__global__ void adamw_kernel(factors f, const nib_clip *clip, int64_t n, float *parameter, const float *gradient,
                             float *first_moment, float *second_moment)
{
    if (!isfinite(clip->norm)) return;
    const float scale = clip->scale;
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        float g = __fmul_rn(gradient[i], scale);
        float m = __fadd_rn(__fmul_rn(first_moment[i], f.beta1), __fmul_rn(g, f.rest1));
        float v = __fadd_rn(__fmul_rn(second_moment[i], f.beta2), __fmul_rn(__fmul_rn(g, g), f.rest2));
        first_moment[i] = m;
        second_moment[i] = v;
        float scaled = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), f.root), f.epsilon);
        parameter[i] = __fsub_rn(__fmul_rn(parameter[i], f.decay), __fdiv_rn(__fmul_rn(f.step_size, m), scaled));
    }
}

nib_status nib_cuda_adamw(nib_ops *ops, nib_adamw o, const nib_clip *clip, int64_t n, float *parameter,
                          const float *gradient, float *first_moment, float *second_moment)
{
    if (n == 0) return NIB_OK;
    factors f = {(float)(1.0 - o.learning_rate * o.weight_decay),
                 (float)o.beta1,
                 (float)o.beta2,
                 (float)(1.0 - o.beta1),
                 (float)(1.0 - o.beta2),
                 (float)(o.learning_rate / (1.0 - pow(o.beta1, (double)o.step))),
                 (float)sqrt(1.0 - pow(o.beta2, (double)o.step)),
                 (float)o.epsilon};
    int64_t blocks = (n + THREADS - 1) / THREADS;
    return nib_cuda_launch(adamw_kernel, dim3((unsigned)(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS)), dim3(THREADS),
                           0, nib_cuda_stream(ops), f, clip, n, parameter, gradient, first_moment, second_moment);
}
