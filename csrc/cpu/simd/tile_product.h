/* Products of small matrices in the cache, the body of attention: C[rows, columns] (+)= A[rows, K] B[K, columns].
 *
 * Operands are made of 32-bit units along K: one fp32 value, or a pair of bf16 values that one instruction multiplies
 * and adds into fp32 (vdpbf16ps). A is row-major; B holds for each unit of K one unit of each column. So one loop
 * serves both: broadcast a unit of A, load a vector of units of B, accumulate. `pairs` is a constant where it is used;
 * it is true only with bf16 storage on CPUs that have the instruction, elsewhere bf16 is widened to fp32 when packed.
 * Pairs in this order are also what tile registers take (tdpbf16ps): 16 rows of 16 units each, where K is whole tiles.
 */
#ifndef NIB_TILE_PRODUCT_H
#define NIB_TILE_PRODUCT_H

#include "cpu/attention_job.h"
#include "cpu/simd/vector.h"

#define TILE          NIB_ATTENTION_TILE
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Columns are padded to a multiple of this at every instruction set. */
#define PADDED(n) (((n) + 15) / 16 * 16)

#if defined __AVX512BF16__
#define HAVE_PAIRS true
#else
#define HAVE_PAIRS false
#endif

#if defined __AMX_BF16__
#define ROW_STEP 32 /* rows of tiles are padded to a multiple of this: pairs of them are then whole tiles of K */
#else
#define ROW_STEP 4
#endif
#define ROWS_PADDED(n) (((n) + ROW_STEP - 1) / ROW_STEP * ROW_STEP)

#define BLOCK_ROWS 4
#if defined __AVX512F__
#define BLOCK_VECTORS 4
#else
#define BLOCK_VECTORS 2
#endif

ALWAYS_INLINE vec unit_fma(vec a, vec b, vec sum, bool pairs)
{
#if defined __AVX512BF16__
    if (pairs) return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
    (void)pairs;
    return vec_fma(a, b, sum);
}

ALWAYS_INLINE void product_block(int vectors, int64_t K, const float *a, int64_t a_stride, const float *b,
                                 int64_t b_stride, float *c, int64_t c_stride, bool accumulate, bool pairs)
{
    vec sum[BLOCK_ROWS][BLOCK_VECTORS];
    for (int r = 0; r < BLOCK_ROWS; r++)
        for (int v = 0; v < vectors; v++) sum[r][v] = accumulate ? vec_load(c + r * c_stride + v * LANES) : vec_zero();
    for (int64_t k = 0; k < K; k++) {
        vec column[BLOCK_VECTORS];
        for (int v = 0; v < vectors; v++) column[v] = vec_load(b + k * b_stride + v * LANES);
        for (int r = 0; r < BLOCK_ROWS; r++) {
            vec unit = vec_set(a[r * a_stride + k]);
            for (int v = 0; v < vectors; v++) sum[r][v] = unit_fma(unit, column[v], sum[r][v], pairs);
        }
    }
    for (int r = 0; r < BLOCK_ROWS; r++)
        for (int v = 0; v < vectors; v++) vec_store(c + r * c_stride + v * LANES, sum[r][v]);
}

#if defined __AMX_BF16__
/* Eight tiles of 16 rows of 64 bytes, palette 1 (Intel SDM volume 1, 18.2). A kernel begins and ends with these two. */
ALWAYS_INLINE void tiles_begin(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.row_bytes[i] = 64, shape.rows[i] = 16;
    _tile_loadconfig(&shape);
}
ALWAYS_INLINE void tiles_end(void) { _tile_release(); }

/* C[16 or 32, 16 or 32]: a tile register for each 16 x 16 of it. */
ALWAYS_INLINE void register_block(bool tall, bool wide, int64_t K, const float *a, int64_t a_stride, const float *b,
                                  int64_t b_stride, float *c, int64_t c_stride, bool accumulate)
{
    const size_t a_bytes = (size_t)a_stride * 4, b_bytes = (size_t)b_stride * 4, c_bytes = (size_t)c_stride * 4;
    float *below = c + 16 * c_stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (accumulate) {
        _tile_loadd(0, c, c_bytes);
        if (wide) _tile_loadd(1, c + 16, c_bytes);
        if (tall) _tile_loadd(2, below, c_bytes);
        if (tall && wide) _tile_loadd(3, below + 16, c_bytes);
    }
    for (int64_t k = 0; k < K; k += 16) {
        _tile_loadd(4, a + k, a_bytes);
        _tile_loadd(6, b + k * b_stride, b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if (wide) _tile_loadd(7, b + k * b_stride + 16, b_bytes);
        if (wide) _tile_dpbf16ps(1, 4, 7);
        if (tall) _tile_loadd(5, a + 16 * a_stride + k, a_bytes);
        if (tall) _tile_dpbf16ps(2, 5, 6);
        if (tall && wide) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_bytes);
    if (wide) _tile_stored(1, c + 16, c_bytes);
    if (tall) _tile_stored(2, below, c_bytes);
    if (tall && wide) _tile_stored(3, below + 16, c_bytes);
}

ALWAYS_INLINE void register_product(int64_t rows, int64_t columns, int64_t K, const float *a, int64_t a_stride,
                                    const float *b, float *c, bool accumulate)
{
    for (int64_t n = 0; n < columns; n += 32)
        for (int64_t m = 0; m < rows; m += 32)
            register_block(m + 32 <= rows, n + 32 <= columns, K, a + m * a_stride, a_stride, b + n, columns,
                           c + m * columns + n, columns, accumulate);
}
#else
ALWAYS_INLINE void tiles_begin(void) {}
ALWAYS_INLINE void tiles_end(void) {}
#endif

/* rows: a multiple of 4; columns: of LANES; K in units; strides in units, b's and c's rows are `columns` long. */
ALWAYS_INLINE void tile_product(int64_t rows, int64_t columns, int64_t K, const float *a, int64_t a_stride,
                                const float *b, float *c, bool accumulate, bool pairs)
{
    int64_t n = 0;
#if defined __AMX_BF16__
    if (pairs && rows % 16 == 0 && K % 16 == 0) {
        register_product(rows, columns, K, a, a_stride, b, c, accumulate);
        return;
    }
#endif
    for (; n + BLOCK_VECTORS * LANES <= columns; n += BLOCK_VECTORS * LANES)
        for (int64_t m = 0; m < rows; m += BLOCK_ROWS)
            product_block(BLOCK_VECTORS, K, a + m * a_stride, a_stride, b + n, columns, c + m * columns + n, columns,
                          accumulate, pairs);
    for (; n < columns; n += LANES)
        for (int64_t m = 0; m < rows; m += BLOCK_ROWS)
            product_block(1, K, a + m * a_stride, a_stride, b + n, columns, c + m * columns + n, columns, accumulate,
                          pairs);
}

/* Two floats as a unit of bf16, the first in the low half. */
ALWAYS_INLINE float unit_of(nib_bf16 low, nib_bf16 high)
{
    uint32_t bits = (uint32_t)low.bits | (uint32_t)high.bits << 16;
    float unit;
    memcpy(&unit, &bits, 4);
    return unit;
}

/* Rows of a tile, one head: the pointer to its first element, and how to step. */
typedef struct {
    const void *data;
    int64_t stride;
    nib_dtype dtype;
    int64_t rows, width; /* rows of the tile that exist, head dim */
} tile_source;

ALWAYS_INLINE float source_at(const tile_source *s, int64_t row, int64_t column)
{
    int64_t i = row * s->stride + column;
    return s->dtype == NIB_DTYPE_F32 ? ((const float *)s->data)[i] : nib_bf16_to_float(((const nib_bf16 *)s->data)[i]);
}

ALWAYS_INLINE nib_bf16 source_bf16(const tile_source *s, int64_t row, int64_t column)
{
    return ((const nib_bf16 *)s->data)[row * s->stride + column];
}

/* Units along the head dim, row-major: [TILE][width units]; rows that do not exist are zero. */
ALWAYS_INLINE void pack_rows(const tile_source *s, float *a, bool pairs)
{
    int64_t units = pairs ? s->width / 2 : s->width;
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t u = 0; u < units; u++)
            a[r * units + u] =
                pairs ? unit_of(source_bf16(s, r, 2 * u), source_bf16(s, r, 2 * u + 1)) : source_at(s, r, u);
    memset(a + s->rows * units, 0, (size_t)((TILE - s->rows) * units) * sizeof *a);
}

/* Units along the head dim, transposed: [width units][TILE]. */
ALWAYS_INLINE void pack_transposed(const tile_source *s, float *b, bool pairs)
{
    int64_t units = pairs ? s->width / 2 : s->width;
    if (s->rows < TILE) memset(b, 0, (size_t)(units * TILE) * sizeof *b);
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t u = 0; u < units; u++)
            b[u * TILE + r] =
                pairs ? unit_of(source_bf16(s, r, 2 * u), source_bf16(s, r, 2 * u + 1)) : source_at(s, r, u);
}

/* Units along the rows: [TILE units][PADDED(width)]; columns beyond the width are zero. */
ALWAYS_INLINE void pack_columns(const tile_source *s, float *b, bool pairs)
{
    int64_t padded = PADDED(s->width);
    if (s->rows < TILE || padded > s->width) memset(b, 0, (size_t)((pairs ? TILE / 2 : TILE) * padded) * sizeof *b);
    if (!pairs) {
        for (int64_t r = 0; r < s->rows; r++)
            for (int64_t c = 0; c < s->width; c++) b[r * padded + c] = source_at(s, r, c);
        return;
    }
    const nib_bf16 zero = {0};
    for (int64_t r = 0; r < s->rows; r += 2)
        for (int64_t c = 0; c < s->width; c++)
            b[r / 2 * padded + c] = unit_of(source_bf16(s, r, c), r + 1 < s->rows ? source_bf16(s, r + 1, c) : zero);
}

/* A row of n values (n a multiple of 2 LANES), as units along it; may be written over the values themselves. */
ALWAYS_INLINE void store_units(float *to, int64_t i, vec low, vec high, bool pairs)
{
#if defined __AVX512BF16__
    if (pairs) {
        __m512bh both = _mm512_cvtne2ps_pbh(high, low);
        memcpy(to + i / 2, &both, sizeof both);
        return;
    }
#endif
    (void)pairs;
    vec_store(to + i, low);
    vec_store(to + i + LANES, high);
}

/* 0, 1, 2, ... from first on. */
ALWAYS_INLINE vec vec_count(float first)
{
    float x[LANES];
    for (int i = 0; i < LANES; i++) x[i] = first + (float)i;
    return vec_load(x);
}

#endif
