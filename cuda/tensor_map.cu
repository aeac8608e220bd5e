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

/* Boxes of a tensor of `rank` dimensions, innermost first, without gaps between taken elements. */
static nib_status encode_map(CUtensorMapDataType type, cuuint32_t rank, const void *data, const cuuint64_t *size,
                             const cuuint64_t *stride, const cuuint32_t *box, CUtensorMapSwizzle swizzle,
                             CUtensorMap *map)
{
    decltype(&cuTensorMapEncodeTiled) encode = NULL;
    const cuuint32_t step[3] = {1, 1, 1};
    NIB_TRY(find_encoder(&encode));
    CUresult result =
        encode(map, type, rank, const_cast<void *>(data), size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
               swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DEVICE, "cuTensorMapEncodeTiled: error %d for %llu rows of %llu, %llu bytes apart",
                    (int)result, (unsigned long long)size[rank - 1], (unsigned long long)size[0],
                    (unsigned long long)stride[rank - 2]);
}

nib_status nib_cuda_map_heads(nib_matrix matrix, int64_t head_dim, int box_rows, CUtensorMap *map)
{
    const cuuint64_t size[3] = {(cuuint64_t)head_dim, (cuuint64_t)(matrix.columns / head_dim), (cuuint64_t)matrix.rows};
    const cuuint64_t stride[2] = {(cuuint64_t)head_dim * 2, (cuuint64_t)matrix.stride * 2};
    const cuuint32_t box[3] = {NIB_TENSOR_MAP_COLUMNS, 1, (cuuint32_t)box_rows};
    return encode_map(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, matrix.data, size, stride, box, CU_TENSOR_MAP_SWIZZLE_128B,
                      map);
}

nib_status nib_cuda_map_matrix(nib_matrix matrix, int box_rows, CUtensorMap *map)
{
    const cuuint64_t size[2] = {(cuuint64_t)matrix.columns, (cuuint64_t)matrix.rows};
    const cuuint64_t stride[1] = {(cuuint64_t)matrix.stride * 2};
    const cuuint32_t box[2] = {NIB_TENSOR_MAP_COLUMNS, (cuuint32_t)box_rows};
    return encode_map(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, matrix.data, size, stride, box, CU_TENSOR_MAP_SWIZZLE_128B,
                      map);
}

nib_status nib_cuda_map_bytes(const uint8_t *data, int64_t rows, int64_t row_bytes, int box_rows, int box_bytes,
                              CUtensorMapSwizzle swizzle, CUtensorMap *map)
{
    const cuuint64_t size[2] = {(cuuint64_t)row_bytes, (cuuint64_t)rows};
    const cuuint64_t stride[1] = {(cuuint64_t)row_bytes};
    const cuuint32_t box[2] = {(cuuint32_t)box_bytes, (cuuint32_t)box_rows};
    return encode_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, data, size, stride, box, swizzle, map);
}
