#include "cuda/tensor_map.h"

#include "cuda/status.cuh"

/* The driver's function, asked for by name: the program starts where there is no driver. */
static nib_status find_encoder(decltype(&cuTensorMapEncodeTiled) *encode)
{
    void *function = NULL;
    cudaDriverEntryPointQueryResult result;
    NIB_CHECK_CUDA(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess || function == NULL)
        return NIB_FAIL(NIB_ERROR_DEVICE, "the driver has no cuTensorMapEncodeTiled (CUDA 12): update it");
    *encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    return NIB_OK;
}

nib_status nib_cuda_map_heads(nib_matrix matrix, int64_t head_dim, int box_rows, CUtensorMap *map)
{
    decltype(&cuTensorMapEncodeTiled) encode = NULL;
    const cuuint64_t size[3] = {(cuuint64_t)head_dim, (cuuint64_t)(matrix.columns / head_dim), (cuuint64_t)matrix.rows};
    const cuuint64_t stride[2] = {(cuuint64_t)head_dim * 2, (cuuint64_t)matrix.stride * 2};
    const cuuint32_t box[3] = {NIB_TENSOR_MAP_COLUMNS, 1, (cuuint32_t)box_rows}, step[3] = {1, 1, 1};
    NIB_TRY(find_encoder(&encode));
    CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, matrix.data, size, stride, box, step,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        return NIB_FAIL(NIB_ERROR_DEVICE,
                        "cuTensorMapEncodeTiled: error %d for [%lld, %lld] of heads of %lld, rows %lld apart",
                        (int)result, (long long)matrix.rows, (long long)matrix.columns, (long long)head_dim,
                        (long long)matrix.stride);
    return NIB_OK;
}
