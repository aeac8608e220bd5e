/* Maps by which Hopper's copy engine finds boxes of a matrix in memory (CUDA driver API, "Tensor Map Object
 * Management"; the copies: intrinsics_hopper.cuh). */
#ifndef NIB_CUDA_TENSOR_MAP_H
#define NIB_CUDA_TENSOR_MAP_H

#include "cuda/c_headers.h"

#include <cuda.h>

#define NIB_TENSOR_MAP_COLUMNS 64 /* of a box: rows of 128 bytes, in the swizzle of that width */

/* A bf16 matrix of heads side by side as a tensor [head_dim, heads, rows], innermost first, in boxes of 64 columns, one
 * head and `box_rows` rows. Columns behind head_dim read as zeros and are not written. Rows start at multiples of 16
 * bytes, head_dim is a multiple of 8. NIB_ERROR_DEVICE: the driver has no such maps, or refuses this one. */
nib_status nib_cuda_map_heads(nib_matrix matrix, int64_t head_dim, int box_rows, CUtensorMap *map);
/* A bf16 matrix as a tensor [columns, rows], in boxes of 64 columns and `box_rows` rows. Rows start at multiples of 16
 * bytes. */
nib_status nib_cuda_map_matrix(nib_matrix matrix, int box_rows, CUtensorMap *map);
/* Rows of bytes behind each other; data, row_bytes and box_bytes are multiples of 16. */
nib_status nib_cuda_map_bytes(const uint8_t *data, int64_t rows, int64_t row_bytes, int box_rows, int box_bytes,
                              CUtensorMapSwizzle swizzle, CUtensorMap *map);

#endif
