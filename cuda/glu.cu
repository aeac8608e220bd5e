/* h = f(g) u, so du = dh f(g) and dg = dh u f'(g), where f(g) = g share(g) and share is one of
 *     SiLU       sigmoid(g)
 *     GELU       Phi(g), the normal distribution (Hendrycks & Gimpel, "Gaussian Error Linear Units", 2016)
 *     GELU tanh  (1 + tanh z) / 2 = sigmoid(2 z), z = sqrt(2 / pi) (g + 0.044715 g^3), of the same paper
 *
 * gate_up [T, 2F]: gate left, up right. Bandwidth-bound: a thread takes one vector of columns of one row.
 *   threads    256 a block; a row is ceil(F / (256 N)) blocks
 *   registers  below 64, no shared memory */
#include "cuda/backend.h"
#include "cuda/glu.h"
#include "cuda/launch.cuh"
#include "cuda/vector.cuh"

constexpr int THREADS = 256;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* share(x) and its derivative. */
__device__ __forceinline__ void share_of(nib_activation activation, float x, float *share, float *slope)
{
    if (activation == NIB_ACTIVATION_GELU) {
        *share = 0.5f * erfcf(x * -0.70710678118654752f); /* exact in the lower tail too, where 1 + erf is not */
        *slope = 0.39894228040143268f * expf(-0.5f * x * x);
    } else if (activation == NIB_ACTIVATION_GELU_TANH) {
        *share = sigmoid(x * (1.59576912160573071f + 0.07135481282553515f * x * x));
        *slope = *share * (1.0f - *share) * (1.59576912160573071f + 0.21406443847660545f * x * x);
    } else {
        *share = sigmoid(x);
        *slope = *share * (1.0f - *share);
    }
}

/* A block's row and the first of its thread's columns; false if there is none. */
template <int N> __device__ __forceinline__ bool place(int tiles, int64_t F, int64_t *t, int64_t *c)
{
    *t = blockIdx.x / tiles;
    *c = ((int64_t)(blockIdx.x % tiles) * THREADS + threadIdx.x) * N;
    return *c < F;
}

template <int N>
__global__ void __launch_bounds__(THREADS)
    glu_forward_kernel(nib_activation activation, int tiles, int64_t F, const __nv_bfloat16 *gate_up,
                       int64_t gate_up_stride, __nv_bfloat16 *h, int64_t h_stride)
{
    int64_t t, c;
    if (!place<N>(tiles, F, &t, &c)) return;
    float gate[N], up[N];
    load(gate_up + t * gate_up_stride + c, gate);
    load(gate_up + t * gate_up_stride + F + c, up);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float share, slope;
        share_of(activation, gate[i], &share, &slope);
        up[i] *= gate[i] * share;
    }
    store(h + t * h_stride + c, up);
}

template <int N>
__global__ void __launch_bounds__(THREADS)
    glu_backward_kernel(nib_activation activation, int tiles, int64_t F, const __nv_bfloat16 *dh, int64_t dh_stride,
                        __nv_bfloat16 *gate_up, int64_t gate_up_stride)
{
    int64_t t, c;
    if (!place<N>(tiles, F, &t, &c)) return;
    float d[N], gate[N], up[N];
    load(dh + t * dh_stride + c, d);
    load(gate_up + t * gate_up_stride + c, gate);
    load(gate_up + t * gate_up_stride + F + c, up);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float share, slope;
        share_of(activation, gate[i], &share, &slope);
        const float dgate = d[i] * up[i] * (share + gate[i] * slope);
        up[i] = d[i] * gate[i] * share;
        gate[i] = dgate;
    }
    store(gate_up + t * gate_up_stride + c, gate);
    store(gate_up + t * gate_up_stride + F + c, up);
}

static nib_status check(nib_activation activation, nib_matrix gate_up, nib_matrix h)
{
    if (activation != NIB_ACTIVATION_SILU && activation != NIB_ACTIVATION_GELU_TANH &&
        activation != NIB_ACTIVATION_GELU)
        return NIB_FAIL(NIB_ERROR_SHAPE, "glu: there is no activation %d", (int)activation);
    if (gate_up.rows != h.rows || gate_up.columns != 2 * h.columns || gate_up.dtype != NIB_DTYPE_BF16 ||
        h.dtype != NIB_DTYPE_BF16)
        return NIB_FAIL(NIB_ERROR_SHAPE, "glu: gate_up %s [%lld, %lld], h %s [%lld, %lld]; bf16, h half as wide",
                        nib_dtype_name(gate_up.dtype), (long long)gate_up.rows, (long long)gate_up.columns,
                        nib_dtype_name(h.dtype), (long long)h.rows, (long long)h.columns);
    return NIB_OK;
}

/* Both kernels' launch over activations of h's shape: their grid, and whether by whole vectors. */
struct launch_plan {
    bool vectors;
    int tiles; /* blocks of a row */
    dim3 grid;
    launch_plan(nib_matrix gate_up, nib_matrix h)
        : vectors(whole_vectors({gate_up, h})), tiles((int)divide_up(h.columns, THREADS * (vectors ? VECTOR : 1))),
          grid((unsigned)(h.rows * tiles))
    {
    }
};

nib_status nib_cuda_glu_forward(nib_ops *ops, nib_activation activation, nib_matrix gate_up, nib_matrix h)
{
    NIB_TRY(check(activation, gate_up, h));
    const launch_plan plan(gate_up, h);
    if (plan.grid.x == 0) return NIB_OK;
    return nib_cuda_launch(plan.vectors ? glu_forward_kernel<VECTOR> : glu_forward_kernel<1>, plan.grid, dim3(THREADS),
                           0, nib_cuda_stream(ops), activation, plan.tiles, h.columns, bf16_of(gate_up), gate_up.stride,
                           bf16_of(h), h.stride);
}

nib_status nib_cuda_glu_backward(nib_ops *ops, nib_activation activation, nib_matrix dh, nib_matrix gate_up)
{
    NIB_TRY(check(activation, gate_up, dh));
    const launch_plan plan(gate_up, dh);
    if (plan.grid.x == 0) return NIB_OK;
    return nib_cuda_launch(plan.vectors ? glu_backward_kernel<VECTOR> : glu_backward_kernel<1>, plan.grid,
                           dim3(THREADS), 0, nib_cuda_stream(ops), activation, plan.tiles, dh.columns, bf16_of(dh),
                           dh.stride, bf16_of(gate_up), gate_up.stride);
}
