#include "model/key_value_cache.h"
#include "base/memory.h"

static nib_status place_layers(nib_key_value_cache *cache, int64_t layers, int64_t columns, nib_dtype dtype)
{
    for (int64_t l = 0; l < layers; l++) {
        cache->layer[l] = (nib_matrix){NULL, cache->capacity, columns, columns, dtype};
        NIB_TRY(nib_arena_take(&cache->arena, cache->capacity * columns, (size_t)nib_dtype_block_bytes(dtype),
                               &cache->layer[l].data));
    }
    return NIB_OK;
}

nib_status nib_key_value_cache_create(nib_ops *ops, const nib_model_config *config, nib_dtype dtype, int64_t capacity,
                                      nib_key_value_cache *cache)
{
    int64_t columns = 2 * config->kv_heads * config->head_dim;
    void *block;
    *cache = (nib_key_value_cache){.arena.name = "key/value cache", .capacity = capacity};
    cache->layer = nib_calloc((size_t)config->layers, sizeof *cache->layer);
    if (cache->layer == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a key/value cache");
    NIB_TRY(place_layers(cache, config->layers, columns, dtype)); /* counts */
    size_t bytes = cache->arena.used;
    NIB_TRY(ops->allocate(ops, cache->arena.name, bytes, &block));
    cache->arena = (nib_arena){.name = cache->arena.name, .block = block, .capacity = bytes};
    return place_layers(cache, config->layers, columns, dtype);
}

void nib_key_value_cache_free(nib_ops *ops, nib_key_value_cache *cache)
{
    if (cache->arena.block != NULL) ops->release(ops, cache->arena.block, cache->arena.capacity);
    nib_free(cache->layer);
    *cache = (nib_key_value_cache){0};
}

/* Tokens that stand in consecutive rows are copied at once. */
static nib_status store(nib_ops *ops, const int32_t *row, nib_matrix from, nib_matrix to)
{
    for (int64_t t = 0, n; t < from.rows; t += n) {
        for (n = 1; t + n < from.rows && row[t + n] == row[t] + n;) n++;
        NIB_TRY(ops->convert(ops, nib_matrix_rows(from, t, n), nib_matrix_rows(to, row[t], n)));
    }
    return NIB_OK;
}

nib_status nib_cached_attention(nib_ops *ops, const nib_cache_access *access, int64_t l, nib_attention_shape shape,
                                nib_tree tree, nib_matrix q, nib_matrix k, nib_matrix v, nib_matrix out)
{
    int64_t columns = shape.kv_heads * shape.head_dim;
    nib_matrix layer = access->cache->layer[l];
    nib_matrix keys = nib_matrix_columns(layer, 0, columns), values = nib_matrix_columns(layer, columns, columns);
    NIB_TRY(store(ops, access->row, k, keys));
    NIB_TRY(store(ops, access->row, v, values));
    if (access->range_begin == NULL) return ops->attention_forward(ops, shape, tree, q, k, v, out, NULL);
    return ops->attention_cached(ops, shape, q, keys, values, access->range_begin, access->range, out);
}
