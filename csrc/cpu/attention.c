#include "cpu/attention.h"
#include "cpu/backend_internal.h"

nib_status nib_attention_check(const char *op, nib_attention_shape s, nib_matrix q, nib_matrix k, nib_matrix v)
{
    if (s.head_dim < 8 || s.head_dim % 8 != 0 || s.head_dim > NIB_ATTENTION_HEAD_DIM || s.kv_heads < 1 ||
        s.heads % s.kv_heads != 0 || q.columns != s.heads * s.head_dim || k.columns != s.kv_heads * s.head_dim ||
        v.columns != k.columns || k.rows != v.rows || q.dtype != k.dtype || q.dtype != v.dtype)
        return NIB_FAIL(
            NIB_ERROR_SHAPE,
            "%s: q [%lld, %lld], k [%lld, %lld], v [%lld, %lld] for %lld heads, %lld key/value heads of %lld "
            "(a multiple of 8, at most %d)",
            op, (long long)q.rows, (long long)q.columns, (long long)k.rows, (long long)k.columns, (long long)v.rows,
            (long long)v.columns, (long long)s.heads, (long long)s.kv_heads, (long long)s.head_dim,
            NIB_ATTENTION_HEAD_DIM);
    return NIB_OK;
}

static void describe_tile(nib_tree tree, nib_attention_tile *tile)
{
    tile->end_least = tile->end_most = tree.end[tile->first];
    tile->position_least = tile->position_most = tree.position[tile->first];
    for (int32_t t = tile->first; t < tile->first + tile->rows; t++) {
        int32_t end = tree.end[t], position = tree.position[t];
        if (end < tile->end_least) tile->end_least = end;
        if (end > tile->end_most) tile->end_most = end;
        if (position < tile->position_least) tile->position_least = position;
        if (position > tile->position_most) tile->position_most = position;
    }
}

/* The first index behind the segment that starts at `first`: no token in it is seen from there on. */
static int32_t segment_end(nib_tree tree, int32_t first)
{
    int32_t last = first + 1;
    for (int32_t t = first; t < last; t++)
        if (tree.end[t] > last) last = tree.end[t] < tree.T ? tree.end[t] : (int32_t)tree.T;
    return last;
}

static void add_segment(nib_attention_job *job, int32_t first, int32_t last)
{
    nib_attention_segment *segment = &job->segment[job->segments];
    segment->first_tile = (int32_t)job->tiles;
    for (; first < last; first += NIB_ATTENTION_TILE) {
        nib_attention_tile *tile = &job->tile[job->tiles++];
        tile->first = first;
        tile->rows = last - first < NIB_ATTENTION_TILE ? last - first : NIB_ATTENTION_TILE;
        tile->segment = (int32_t)job->segments;
        describe_tile(job->tree, tile);
    }
    segment->last_tile = (int32_t)job->tiles;
    job->segments++;
}

nib_status nib_attention_cut(nib_arena *scratch, nib_tree tree, nib_attention_job *job)
{
    /* A segment of n tokens has (n + 63) / 64 tiles, so there are at most as many of either as tokens. */
    NIB_TRY(nib_arena_take(scratch, tree.T, sizeof *job->tile, &job->tile));
    NIB_TRY(nib_arena_take(scratch, tree.T, sizeof *job->segment, &job->segment));
    job->tree = tree;
    for (int32_t first = 0; first < tree.T;) {
        int32_t last = segment_end(tree, first);
        int64_t tiles = (last - first + NIB_ATTENTION_TILE - 1) / NIB_ATTENTION_TILE;
        job->longest = tiles > job->longest ? tiles : job->longest;
        if (!nib_arena_counts(scratch)) add_segment(job, first, last);
        first = last;
    }
    return NIB_OK;
}

nib_status nib_cpu_attention_forward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k,
                                     nib_matrix v, nib_matrix out, float *lse)
{
    const nib_cpu_kernels *kernels = nib_cpu_context_of(ops)->kernels;
    nib_attention_job job = {.shape = shape, .q = q, .k = k, .v = v, .out = out, .lse_out = lse};
    const int64_t floats = NIB_ATTENTION_FORWARD_FLOATS(shape.head_dim);
    size_t mark = ops->scratch->used;
    float *workspace = NULL;
    nib_status status = NIB_OK;
    NIB_TRY(nib_attention_check("attention_forward", shape, q, k, v));
    NIB_TRY(nib_attention_check("attention_forward", shape, out, k, v));
    NIB_TRY_GOTO(nib_attention_cut(ops->scratch, tree, &job), done);
    NIB_TRY_GOTO(nib_arena_take(ops->scratch, nib_cpu_threads() * floats, sizeof *workspace, &workspace), done);
    /* Last tiles first: they see most keys, and short work at the end evens the threads out. */
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < job.tiles * shape.heads; i++)
        kernels->attention_forward(&job, job.tiles - 1 - i / shape.heads, i % shape.heads,
                                   workspace + nib_cpu_thread() * floats);
done:
    nib_arena_reset(ops->scratch, mark);
    return status;
}
