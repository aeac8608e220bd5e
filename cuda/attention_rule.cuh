/* What every attention kernel shares: the mask rule, the soft-cap, checks of launchers, and the runs of the cache. */
#ifndef NIB_CUDA_ATTENTION_RULE_CUH
#define NIB_CUDA_ATTENTION_RULE_CUH

#include "cuda/c_headers.h"
#include "cuda/intrinsics.cuh"

#define NIB_ATTENTION_LARGEST_HEAD_DIM 256
#define NIB_ATTENTION_MOST_ROWS        (1 << 30) /* so that sums of two indices are 32-bit numbers */
#define NIB_LOG2_E                     1.4426950408889634f
#define NIB_LN_2                       0.6931471805599453f

/* Key `key` of a tree is visible to query `query`; both below T. */
__device__ __forceinline__ bool attention_visible(nib_tree tree, int window, int query, int key)
{
    if (key > query || query >= __ldg(tree.end + key)) return false;
    return window == 0 || __ldg(tree.position + query) - __ldg(tree.position + key) < window;
}

/* Row t of head h in a matrix of heads side by side. */
__device__ __forceinline__ __nv_bfloat16 *attention_row(nib_matrix matrix, int64_t t, int head, int head_dim)
{
    return static_cast<__nv_bfloat16 *>(matrix.data) + t * matrix.stride + head * head_dim;
}

/* NIB_ERROR_SHAPE, naming op and shapes, unless the matrices are bf16, of these heads, and not too long. q and k stand
 * for all operands of their width. */
nib_status nib_attention_check_shape(const char *op, nib_attention_shape shape, nib_matrix q, nib_matrix k,
                                     nib_matrix v);

/* The shape without a window that hides nothing, so that a window is below T. */
static inline nib_attention_shape nib_attention_clip_window(nib_attention_shape shape, int64_t T)
{
    if (shape.window >= T) shape.window = 0;
    return shape;
}

/* Consecutive rows of the cache that one query sees. */
typedef struct {
    int32_t query, first, count;
} nib_attention_run;

typedef struct {
    const nib_attention_run *run; /* device [runs], by query */
    const int32_t *begin;         /* device [queries + 1]: those of query i are begin[i] .. begin[i + 1] - 1 */
    int64_t runs;
} nib_attention_runs;

/* attention_cached's ranges, checked against the cache's rows, cut to the window and into runs of at most `longest`
 * rows; uploaded into scratch, which the caller resets. */
nib_status nib_attention_upload_runs(nib_ops *ops, int64_t window, int64_t cache_rows, int64_t queries,
                                     const int32_t *range_begin, const nib_cache_range *range, int32_t longest,
                                     nib_attention_runs *runs);

#endif
