/* to[r][c] = from[r][c] in to's type.
 *
 * Bandwidth-bound: a thread takes a vector of neighbours, a grid strides over all. Matrices without gaps between their
 * rows are one long row. No shared memory. */
#include "cuda/backend.h"
#include "cuda/convert.h"
#include "cuda/launch.cuh"
#include "cuda/vector.cuh"

constexpr int THREADS = 256;

/* N divides columns, unless all is one row. */
template <int N, typename From, typename To>
__global__ void __launch_bounds__(THREADS)
    convert_kernel(const From *from, int64_t from_stride, To *to, int64_t to_stride, int64_t columns, int64_t n)
{
    for_each_vector<N>(n, [&](auto width, int64_t at) {
        const int64_t r = at / columns, c = at % columns;
        float x[width.N];
        load(from + r * from_stride + c, x);
        store(to + r * to_stride + c, x);
    });
}

template <typename From, typename To> static nib_status convert(nib_ops *ops, nib_matrix from, nib_matrix to)
{
    const bool one_row = from.stride == from.columns && to.stride == to.columns;
    const bool vectors = one_row ? whole_vectors(from.data) && whole_vectors(to.data) : whole_vectors({from, to});
    const int64_t n = from.rows * from.columns;
    return nib_cuda_launch(vectors ? convert_kernel<VECTOR, From, To> : convert_kernel<1, From, To>,
                           vector_grid(n, vectors ? VECTOR : 1, THREADS), dim3(THREADS), 0, nib_cuda_stream(ops),
                           (const From *)from.data, from.stride, (To *)to.data, to.stride, one_row ? n : from.columns,
                           n);
}

nib_status nib_cuda_convert(nib_ops *ops, nib_matrix from, nib_matrix to)
{
    if (from.rows != to.rows || from.columns != to.columns)
        return NIB_FAIL(NIB_ERROR_SHAPE, "convert: [%lld, %lld] to [%lld, %lld]", (long long)from.rows,
                        (long long)from.columns, (long long)to.rows, (long long)to.columns);
    bool from_wide = from.dtype == NIB_DTYPE_F32, to_wide = to.dtype == NIB_DTYPE_F32;
    if ((!from_wide && from.dtype != NIB_DTYPE_BF16) || (!to_wide && to.dtype != NIB_DTYPE_BF16))
        return NIB_FAIL(NIB_ERROR_SHAPE, "convert: %s to %s is not supported", nib_dtype_name(from.dtype),
                        nib_dtype_name(to.dtype));
    if (from.rows * from.columns == 0) return NIB_OK;
    if (from_wide) return to_wide ? convert<float, float>(ops, from, to) : convert<float, __nv_bfloat16>(ops, from, to);
    return to_wide ? convert<__nv_bfloat16, float>(ops, from, to)
                   : convert<__nv_bfloat16, __nv_bfloat16>(ops, from, to);
}
