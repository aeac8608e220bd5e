/* The parts of a linear as kernels take them: by value, with the places of their outputs and ranks. */
#ifndef NIB_CUDA_LINEAR_PARTS_CUH
#define NIB_CUDA_LINEAR_PARTS_CUH

#include "cuda/c_headers.h"

#include "cuda/intrinsics.cuh"

struct linear_part {
    nib_nf4 nf4;
    const float *bias;      /* [rows], or NULL */
    const __nv_bfloat16 *a; /* [rank, K], rows a_stride apart */
    const __nv_bfloat16 *b; /* [rows, rank], rows b_stride apart */
    int64_t a_stride, b_stride;
    int64_t first_row, rows; /* of the linear's outputs */
    int first_rank, rank;    /* of u's columns; rank 0: no adapter */
    float scale;
    const float *gain;   /* [rows] of DoRA, or NULL */
    const uint64_t *key; /* of the part's dropout masks; NULL: there are none */
};

struct linear_parts {
    linear_part part[NIB_LINEAR_MAX_PARTS];
    int count;
    int64_t K;
};

/* With the dropout's key of each part. */
inline linear_parts linear_parts_of(const nib_linear *linear, nib_dropout dropout)
{
    linear_parts parts = {};
    parts.count = linear->parts;
    parts.K = linear->K;
    int64_t row = 0;
    int rank = 0;
    for (int p = 0; p < linear->parts; p++) {
        const nib_linear_part *from = &linear->part[p];
        parts.part[p] = {from->nf4,
                         from->bias,
                         (const __nv_bfloat16 *)from->lora.a.data,
                         (const __nv_bfloat16 *)from->lora.b.data,
                         from->lora.a.stride,
                         from->lora.b.stride,
                         row,
                         from->rows,
                         rank,
                         (int)from->lora.rank,
                         from->lora.scale,
                         from->lora.dora.gain,
                         dropout.p > 0.0f ? dropout.key + p : nullptr};
        row += from->rows;
        rank += (int)from->lora.rank;
    }
    return parts;
}

/* The part that an output row belongs to. */
__device__ inline const linear_part &part_of_row(const linear_parts &parts, int64_t row)
{
    int p = 0;
    while (p + 1 < parts.count && row >= parts.part[p + 1].first_row) p++;
    return parts.part[p];
}

/* Output n of a part from its base product: gain[n] (base + scale * sum over r of u[r] b[n][r]) + bias[n], where u is
 * the token's row over all parts' ranks, or NULL; without DoRA the gain is 1. */
__device__ inline float output_of(const linear_part &part, int64_t n, float base, const __nv_bfloat16 *u)
{
    const float bias = part.bias != nullptr ? part.bias[n] : 0.0f;
    float lora = 0.0f;
    for (int r = 0; r < part.rank && u != nullptr; r++)
        lora = fmaf(to_float(u[part.first_rank + r]), to_float(part.b[n * part.b_stride + r]), lora);
    if (part.gain != nullptr) return fmaf(part.gain[n], fmaf(part.scale, lora, base), bias);
    return base + fmaf(part.scale, lora, bias);
}

#endif
