/* What the attention passes share: tile sizes, loading tiles, the tree rule on a tile. Private to csrc/cpu. */
#ifndef NIB_CPU_ATTENTION_TILES_H
#define NIB_CPU_ATTENTION_TILES_H

#include "cpu/backend_internal.h"
#include "cpu/tile_matmul.h"
#include "cpu/vector.h"

#include <math.h>

#define NIB_TILE_QUERIES      32
#define NIB_TILE_KEYS         64
#define NIB_TILE_MAX_HEAD_DIM 256

/* Refuses what the tiles do not hold. */
nib_status nib_attention_check(const char *op, nib_attention_shape shape, nib_matrix q, nib_matrix k, nib_matrix v);

/* Head dims in a tile, padded with zeros to whole vectors. */
NIB_INLINE int64_t nib_tile_columns(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

/* Rows first .. first + n of one head to fp32: tile [n, columns], padding zeroed. */
NIB_INLINE void nib_tile_load(nib_matrix head, int64_t first, int64_t n, int64_t columns, float *tile)
{
    for (int64_t r = 0; r < n; r++) {
        nib_load_row(nib_row(head, first + r), head.dtype, head.columns, tile + r * columns);
        for (int64_t c = head.columns; c < columns; c++) tile[r * columns + c] = 0.0f;
    }
}

/* The same transposed: tile [columns, NIB_TILE_KEYS]; keys beyond n are zero. */
NIB_INLINE void nib_tile_load_transposed(nib_matrix head, int64_t first, int64_t n, float *tile)
{
    float row[NIB_TILE_MAX_HEAD_DIM];
    for (int64_t r = 0; r < NIB_TILE_KEYS; r++) {
        if (r < n) nib_load_row(nib_row(head, first + r), head.dtype, head.columns, row);
        for (int64_t c = 0; c < head.columns; c++) tile[c * NIB_TILE_KEYS + r] = r < n ? row[c] : 0.0f;
    }
}

/* First and largest `end` of keys first .. first + n, which decide whether a tile is empty or whole. */
NIB_INLINE void nib_tile_ends(nib_tree tree, int64_t first, int64_t n, int32_t *least, int32_t *most)
{
    *least = *most = tree.end[first];
    for (int64_t k = first + 1; k < first + n; k++) {
        *least = tree.end[k] < *least ? tree.end[k] : *least;
        *most = tree.end[k] > *most ? tree.end[k] : *most;
    }
}

/* Scores of one query against the keys of a tile, minus infinity where the tree rule hides them. */
NIB_INLINE void nib_tile_mask(nib_attention_shape shape, nib_tree tree, int64_t query, int64_t first, int64_t n,
                              float *scores)
{
    for (int64_t i = 0; i < NIB_TILE_KEYS; i++) {
        int64_t key = first + i;
        bool seen = i < n && key <= query && query < tree.end[key] &&
                    (shape.window <= 0 || tree.position[query] - tree.position[key] < shape.window);
        if (!seen) scores[i] = -INFINITY;
    }
}

/* n keys from `first` on, for queries from..to: no mask needed. */
NIB_INLINE bool nib_tile_is_whole(nib_attention_shape shape, int64_t first, int64_t n, int32_t least_end, int64_t from,
                                  int64_t to)
{
    return shape.window <= 0 && n == NIB_TILE_KEYS && first + n - 1 <= from && to < least_end;
}

/* One row's step of the online softmax: scores become exponentials, sum and total are rescaled. */
NIB_INLINE void nib_tile_softmax_step(float *scores, float *largest, float *total, float *sum, int64_t columns)
{
    nib_v16 *s = (nib_v16 *)scores, top = nib_v16_max(nib_v16_max(s[0], s[1]), nib_v16_max(s[2], s[3]));
    float lanes[16], now = *largest;
    memcpy(lanes, &top, sizeof lanes);
    for (int i = 0; i < 16; i++) now = lanes[i] > now ? lanes[i] : now;
    if (now == -INFINITY) { /* nothing seen so far */
        for (int i = 0; i < 4; i++) s[i] = nib_v16_set(0.0f);
        return;
    }
    nib_v16 added = nib_v16_set(0.0f);
    for (int i = 0; i < 4; i++) {
        s[i] = nib_v16_exp(s[i] - now);
        added += s[i];
    }
    if (now > *largest) {
        float rescale = *largest == -INFINITY ? 0.0f : expf(*largest - now);
        for (int64_t c = 0; c < columns; c += 16) *(nib_v16 *)(sum + c) *= rescale;
        *total *= rescale;
        *largest = now;
    }
    *total += nib_v16_sum(added);
}

/* softcap * tanh(s / softcap) in place. */
NIB_INLINE void nib_tile_softcap(float softcap, float *scores)
{
    for (int i = 0; i < NIB_TILE_KEYS; i++) scores[i] = softcap * tanhf(scores[i] / softcap);
}

#endif
