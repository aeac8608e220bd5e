/* Keys and values of tokens that a generation has seen, one row a token and layer; private to csrc/model. */
#ifndef NIB_KEY_VALUE_CACHE_H
#define NIB_KEY_VALUE_CACHE_H

#include "model/config.h"

typedef struct {
    nib_arena arena; /* "key/value cache" */
    int64_t capacity;
    nib_matrix *layer; /* host [layers] of [capacity, 2 NKV HD] in the activation type: keys left, values right */
} nib_key_value_cache;

/* Fails with NIB_ERROR_MEMORY. *cache is to be freed whatever the outcome. */
nib_status nib_key_value_cache_create(nib_ops *ops, const nib_model_config *config, nib_dtype dtype, int64_t capacity,
                                      nib_key_value_cache *cache);
void nib_key_value_cache_free(nib_ops *ops, nib_key_value_cache *cache);

/* Where the T tokens of one forward pass stand in the cache, and what they see there. Host arrays. */
typedef struct {
    const nib_key_value_cache *cache;
    const int32_t *row;           /* [T] of each token */
    const int32_t *range_begin;   /* [T + 1] as attention_cached takes them; NULL: the tokens see only each other, */
    const nib_cache_range *range; /* by the tree rule */
} nib_cache_access;

/* Stores k and v [T, NKV HD], rotated, in layer l, then attends with q [T, NH HD]: out [T, NH HD]. */
nib_status nib_cached_attention(nib_ops *ops, const nib_cache_access *access, int64_t l, nib_attention_shape shape,
                                nib_tree tree, nib_matrix q, nib_matrix k, nib_matrix v, nib_matrix out);

#endif
