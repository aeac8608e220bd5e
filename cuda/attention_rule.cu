#include "cuda/attention_rule.cuh"

extern "C" {
#include "base/memory.h"
}

nib_status nib_attention_check_shape(const char *op, nib_attention_shape s, nib_matrix q, nib_matrix k, nib_matrix v)
{
    bool bf16 = q.dtype == NIB_DTYPE_BF16 && k.dtype == NIB_DTYPE_BF16 && v.dtype == NIB_DTYPE_BF16;
    if (s.head_dim < 8 || s.head_dim % 8 != 0 || s.head_dim > NIB_ATTENTION_LARGEST_HEAD_DIM || s.kv_heads < 1 ||
        s.heads % s.kv_heads != 0 || q.columns != s.heads * s.head_dim || k.columns != s.kv_heads * s.head_dim ||
        v.columns != k.columns || k.rows != v.rows || !bf16 || q.rows > NIB_ATTENTION_MOST_ROWS ||
        k.rows > NIB_ATTENTION_MOST_ROWS)
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "%s: q [%lld, %lld], k [%lld, %lld], v [%lld, %lld] for %lld heads, %lld key/value heads of "
                        "%lld (a multiple of 8, at most %d), all bf16",
                        op, (long long)q.rows, (long long)q.columns, (long long)k.rows, (long long)k.columns,
                        (long long)v.rows, (long long)v.columns, (long long)s.heads, (long long)s.kv_heads,
                        (long long)s.head_dim, NIB_ATTENTION_LARGEST_HEAD_DIM);
    return NIB_OK;
}

/* Cuts query number `query`'s ranges into runs, which are only counted if out is NULL. */
static nib_status cut_query(int64_t window, int64_t cache_rows, int64_t query, const nib_cache_range *range,
                            int32_t ranges, int32_t longest, nib_attention_run *out, int64_t *count)
{
    int64_t keys = 0;
    for (int32_t r = 0; r < ranges; r++) {
        if (range[r].first < 0 || range[r].count < 0 || range[r].first > cache_rows - range[r].count)
            return NIB_FAIL(NIB_ERROR_SHAPE, "attention_cached: rows %d + %d of a cache of %lld", range[r].first,
                            range[r].count, (long long)cache_rows);
        keys += range[r].count;
    }
    int64_t skip = window > 0 && keys > window ? keys - window : 0;
    for (int32_t r = 0; r < ranges; r++) {
        int32_t skipped = (int32_t)(skip < range[r].count ? skip : range[r].count);
        skip -= skipped;
        for (int32_t done = skipped; done < range[r].count; (*count)++) {
            int32_t rows = range[r].count - done < longest ? range[r].count - done : longest;
            if (out != NULL) out[*count] = {(int32_t)query, range[r].first + done, rows};
            done += rows;
        }
    }
    return NIB_OK;
}

nib_status nib_attention_upload_runs(nib_ops *ops, int64_t window, int64_t cache_rows, int64_t queries,
                                     const int32_t *range_begin, const nib_cache_range *range, int32_t longest,
                                     nib_attention_runs *runs)
{
    nib_attention_run *host = NULL, *device_run = NULL;
    int32_t *begin = NULL, *device_begin = NULL;
    int64_t count = 0;
    nib_status status = NIB_OK;
    for (int64_t i = 0; i < queries; i++)
        NIB_TRY(cut_query(window, cache_rows, i, range + range_begin[i], range_begin[i + 1] - range_begin[i], longest,
                          NULL, &count));
    NIB_TRY(nib_arena_take(ops->scratch, count, sizeof *device_run, &device_run));
    NIB_TRY(nib_arena_take(ops->scratch, queries + 1, sizeof *device_begin, &device_begin));
    runs->run = device_run;
    runs->begin = device_begin;
    runs->runs = count;
    host = (nib_attention_run *)nib_calloc((size_t)count, sizeof *host);
    begin = (int32_t *)nib_calloc((size_t)queries + 1, sizeof *begin);
    if (host == NULL || begin == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "attention_cached: no memory for %lld runs of the cache", (long long)count);
        goto done;
    }
    count = 0;
    for (int64_t i = 0; i < queries; i++) {
        NIB_TRY_GOTO(cut_query(window, cache_rows, i, range + range_begin[i], range_begin[i + 1] - range_begin[i],
                               longest, host, &count),
                     done);
        begin[i + 1] = (int32_t)count;
    }
    NIB_TRY_GOTO(ops->upload(ops, device_run, host, (size_t)count * sizeof *host), done);
    NIB_TRY_GOTO(ops->upload(ops, device_begin, begin, (size_t)(queries + 1) * sizeof *begin), done);
done:
    nib_free(host);
    nib_free(begin);
    return status;
}
