/* What attention's inner kernels (cpu/kernels.h) are told: the operands, and the tree cut into tiles. Private to
 * csrc/cpu.
 *
 * The packed array falls into segments that see nothing of each other (one for each root of the forest), and a segment
 * into tiles of 64 tokens. A key tile is skipped, computed whole, or masked for a query tile, by the extremes of `end`
 * and `position` in them (packing.md).
 */
#ifndef NIB_CPU_ATTENTION_JOB_H
#define NIB_CPU_ATTENTION_JOB_H

#include "model/ops.h"

#define NIB_ATTENTION_TILE     64
#define NIB_ATTENTION_HEAD_DIM 256 /* largest */

/* Floats of workspace: one call of the forward kernel; a backward call, and for each query tile of its segment. */
#define NIB_ATTENTION_PADDED(HD)          (((HD) + 15) / 16 * 16)
#define NIB_ATTENTION_FORWARD_FLOATS(HD)  (64 * (2 * (HD) + 2 * NIB_ATTENTION_PADDED(HD) + 64))
#define NIB_ATTENTION_BACKWARD_FLOATS(HD) (64 * (3 * (HD) + 2 * NIB_ATTENTION_PADDED(HD) + 3 * 64))
#define NIB_ATTENTION_QUERY_FLOATS(HD)    (64 * (3 * (HD) + 2 * NIB_ATTENTION_PADDED(HD) + 3))

typedef struct {
    int32_t first, rows;
    int32_t end_least, end_most;           /* of the tokens of the tile */
    int32_t position_least, position_most; /* likewise */
    int32_t segment;
} nib_attention_tile;

typedef struct {
    int32_t first_tile, last_tile; /* first .. last - 1 */
} nib_attention_segment;

typedef struct nib_attention_job {
    nib_attention_shape shape;
    nib_tree tree;
    int64_t tiles, segments, longest; /* longest: most tiles of a segment */
    nib_attention_tile *tile;
    nib_attention_segment *segment;
    nib_matrix q, k, v, out; /* as in ops.h */
    float *lse_out;          /* forward: [NH, T], or NULL */
    const float *lse;        /* backward: [NH, T] */
    nib_matrix dout, dq;     /* backward */
    float *dk, *dv;          /* backward, fp32 [NH, T, HD]: each query head's own, summed over groups afterwards */
} nib_attention_job;

typedef enum { NIB_TILE_EMPTY, NIB_TILE_MASKED, NIB_TILE_WHOLE } nib_tile_kind;

/* What queries of tile q see of the keys of tile k. */
static inline nib_tile_kind nib_attention_tile_kind(const nib_attention_tile *q, const nib_attention_tile *k,
                                                    int64_t window)
{
    if (k->first >= q->first + q->rows || k->end_most <= q->first) return NIB_TILE_EMPTY;
    if (window > 0 && q->position_least - (int64_t)k->position_most >= window) return NIB_TILE_EMPTY;
    if (k->first + k->rows - 1 > q->first || k->end_least < q->first + q->rows || k->rows < NIB_ATTENTION_TILE)
        return NIB_TILE_MASKED;
    if (window > 0 && q->position_most - (int64_t)k->position_least >= window) return NIB_TILE_MASKED;
    return NIB_TILE_WHOLE;
}

#endif
