#include "cpu/matmul.h"
#include "base/memory.h"
#include "cpu/backend_internal.h"
#include "cpu/convert.h"

#include <oneapi/dnnl/dnnl.h>
#include <string.h>

/* Everything that oneDNN specialises its code for. */
typedef struct {
    int64_t M, N, K, a_stride, b_stride, c_stride;
    uint8_t transpose_a, transpose_b, accumulate, a_type, c_type;
    int32_t threads;
} matmul_key;

typedef struct {
    matmul_key key;
    dnnl_primitive_t primitive; /* NULL: free slot */
    dnnl_memory_t a, b, c, workspace;
    size_t workspace_bytes;
} matmul_entry;

#define SLOTS 2048 /* power of two; when three quarters are taken the cache starts anew */

struct nib_cpu_matmul_cache {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    matmul_entry *entries;
    int used;
    void *workspace; /* what oneDNN wants beside the operands; grown to the largest product so far */
    size_t workspace_bytes;
};

static void clear(nib_cpu_matmul_cache *cache)
{
    for (int i = 0; i < SLOTS; i++) {
        matmul_entry *entry = &cache->entries[i];
        if (entry->primitive == NULL) continue;
        dnnl_primitive_destroy(entry->primitive);
        dnnl_memory_destroy(entry->a);
        dnnl_memory_destroy(entry->b);
        dnnl_memory_destroy(entry->c);
        dnnl_memory_destroy(entry->workspace);
        *entry = (matmul_entry){0};
    }
    cache->used = 0;
}

nib_status nib_cpu_matmul_cache_create(nib_cpu_matmul_cache **out)
{
    nib_cpu_matmul_cache *cache = nib_calloc(1, sizeof *cache);
    *out = cache;
    if (cache != NULL) cache->entries = nib_calloc(SLOTS, sizeof *cache->entries);
    if (cache == NULL || cache->entries == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the matmul cache");
    if (dnnl_engine_create(&cache->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&cache->stream, cache->engine, dnnl_stream_default_flags) != dnnl_success)
        return NIB_FAIL(NIB_ERROR_DEVICE, "oneDNN has no CPU engine on this machine");
    return NIB_OK;
}

void nib_cpu_matmul_cache_free(nib_cpu_matmul_cache *cache)
{
    if (cache == NULL) return;
    if (cache->entries != NULL) clear(cache);
    if (cache->stream != NULL) dnnl_stream_destroy(cache->stream);
    if (cache->engine != NULL) dnnl_engine_destroy(cache->engine);
    nib_free(cache->entries);
    nib_free(cache->workspace);
    nib_free(cache);
}

static dnnl_data_type_t type_of(uint8_t dtype) { return dtype == NIB_DTYPE_F32 ? dnnl_f32 : dnnl_bf16; }

/* A [rows, columns] operand as oneDNN sees it: the stored matrix, or its transpose, by strides. */
static dnnl_status_t describe(dnnl_memory_desc_t *memory, int64_t rows, int64_t columns, int64_t stride, bool transpose,
                              uint8_t dtype)
{
    dnnl_dims_t sizes = {rows, columns}, strides = {transpose ? 1 : stride, transpose ? stride : 1};
    return dnnl_memory_desc_init_by_strides(memory, 2, sizes, type_of(dtype), strides);
}

static dnnl_status_t build(nib_cpu_matmul_cache *cache, const matmul_key *key, matmul_entry *entry)
{
    dnnl_memory_desc_t a, b, c;
    dnnl_matmul_desc_t description;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t post = NULL;
    dnnl_primitive_desc_t chosen = NULL;
    dnnl_status_t status;
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        status = (call);                                                                                               \
        if (status != dnnl_success) goto done;                                                                         \
    } while (0)
    TRY(describe(&a, key->M, key->K, key->a_stride, key->transpose_a, key->a_type));
    TRY(describe(&b, key->K, key->N, key->b_stride, key->transpose_b, key->a_type));
    TRY(describe(&c, key->M, key->N, key->c_stride, false, key->c_type));
    TRY(dnnl_matmul_desc_init(&description, &a, &b, NULL, &c));
    TRY(dnnl_primitive_attr_create(&attributes));
    TRY(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user));
    if (key->accumulate) {
        TRY(dnnl_post_ops_create(&post));
        TRY(dnnl_post_ops_append_sum(post, 1.0f));
        TRY(dnnl_primitive_attr_set_post_ops(attributes, post));
    }
    TRY(dnnl_primitive_desc_create(&chosen, &description, attributes, cache->engine, NULL));
    const dnnl_memory_desc_t *workspace = dnnl_primitive_desc_query_md(chosen, dnnl_query_scratchpad_md, 0);
    TRY(dnnl_primitive_create(&entry->primitive, chosen));
    entry->workspace_bytes = dnnl_memory_desc_get_size(workspace);
    TRY(dnnl_memory_create(&entry->a, &a, cache->engine, DNNL_MEMORY_NONE));
    TRY(dnnl_memory_create(&entry->b, &b, cache->engine, DNNL_MEMORY_NONE));
    TRY(dnnl_memory_create(&entry->c, &c, cache->engine, DNNL_MEMORY_NONE));
    TRY(dnnl_memory_create(&entry->workspace, workspace, cache->engine, DNNL_MEMORY_NONE));
    entry->key = *key;
#undef TRY
done:
    if (chosen != NULL) dnnl_primitive_desc_destroy(chosen);
    if (post != NULL) dnnl_post_ops_destroy(post);
    if (attributes != NULL) dnnl_primitive_attr_destroy(attributes);
    return status;
}

static uint64_t hash_of(const matmul_key *key)
{
    uint64_t words[sizeof *key / 8], hash = 0x9e3779b97f4a7c15u;
    memcpy(words, key, sizeof words);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        hash = (hash ^ words[i]) * 0xff51afd7ed558ccdu;
        hash ^= hash >> 32;
    }
    return hash;
}

static nib_status find(nib_cpu_matmul_cache *cache, const matmul_key *key, matmul_entry **found)
{
    _Static_assert(sizeof *key % 8 == 0, "the key is compared and hashed as words without padding");
    if (cache->used > SLOTS * 3 / 4) clear(cache);
    for (uint64_t slot = hash_of(key);; slot++) {
        matmul_entry *entry = &cache->entries[slot % SLOTS];
        if (entry->primitive == NULL) {
            if (build(cache, key, entry) != dnnl_success) {
                *entry = (matmul_entry){0};
                return NIB_FAIL(NIB_ERROR_INTERNAL, "matmul: oneDNN refuses [%lld, %lld] x [%lld, %lld] in %s",
                                (long long)key->M, (long long)key->K, (long long)key->K, (long long)key->N,
                                nib_dtype_name((nib_dtype)key->a_type));
            }
            cache->used++;
            *found = entry;
            return NIB_OK;
        }
        if (memcmp(&entry->key, key, sizeof *key) == 0) {
            *found = entry;
            return NIB_OK;
        }
    }
}

static nib_status workspace_of(nib_cpu_matmul_cache *cache, size_t bytes, void **workspace)
{
    if (bytes > cache->workspace_bytes) {
        nib_free(cache->workspace);
        cache->workspace = nib_calloc(bytes, 1);
        cache->workspace_bytes = cache->workspace == NULL ? 0 : bytes;
        if (cache->workspace == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "matmul: no memory for %zu bytes", bytes);
    }
    *workspace = cache->workspace;
    return NIB_OK;
}

/* In the operands' own types. */
static nib_status multiply(nib_ops *ops, nib_matrix a, bool transpose_a, nib_matrix b, bool transpose_b,
                           bool accumulate, nib_matrix c)
{
    nib_cpu_matmul_cache *cache = nib_cpu_context_of(ops)->matmul;
    if (ops->rehearsal) return NIB_OK;
    matmul_key key = {.M = c.rows,
                      .N = c.columns,
                      .K = transpose_a ? a.rows : a.columns,
                      .a_stride = a.stride,
                      .b_stride = b.stride,
                      .c_stride = c.stride,
                      .transpose_a = transpose_a,
                      .transpose_b = transpose_b,
                      .accumulate = accumulate,
                      .a_type = (uint8_t)a.dtype,
                      .c_type = (uint8_t)c.dtype,
                      .threads = nib_cpu_threads()};
    matmul_entry *entry = NULL;
    void *workspace = NULL;
    NIB_TRY(find(cache, &key, &entry));
    NIB_TRY(workspace_of(cache, entry->workspace_bytes, &workspace));
    dnnl_memory_set_data_handle_v2(entry->a, a.data, cache->stream);
    dnnl_memory_set_data_handle_v2(entry->b, b.data, cache->stream);
    dnnl_memory_set_data_handle_v2(entry->c, c.data, cache->stream);
    dnnl_memory_set_data_handle_v2(entry->workspace, workspace, cache->stream);
    dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, entry->a},
                                   {DNNL_ARG_WEIGHTS, entry->b},
                                   {DNNL_ARG_DST, entry->c},
                                   {DNNL_ARG_SCRATCHPAD, entry->workspace}};
    dnnl_status_t status = dnnl_primitive_execute(entry->primitive, cache->stream, 4, arguments);
    if (status == dnnl_success) status = dnnl_stream_wait(cache->stream);
    if (status != dnnl_success)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "matmul: oneDNN failed with status %d", (int)status);
    return NIB_OK;
}

/* bf16 operands on a CPU without bf16 instructions: widened, multiplied in fp32, rounded once. */
static nib_status multiply_widened(nib_ops *ops, nib_matrix a, bool transpose_a, nib_matrix b, bool transpose_b,
                                   bool accumulate, nib_matrix c)
{
    size_t mark = ops->scratch->used;
    nib_matrix wide[3], *narrow[3] = {&a, &b, &c};
    for (int i = 0; i < 3; i++) {
        wide[i] = *narrow[i];
        if (narrow[i]->dtype == NIB_DTYPE_F32) continue;
        wide[i].dtype = NIB_DTYPE_F32;
        wide[i].stride = narrow[i]->columns;
        NIB_TRY(nib_arena_take(ops->scratch, wide[i].rows * wide[i].stride, sizeof(float), &wide[i].data));
        if (i < 2 || accumulate) NIB_TRY(nib_cpu_convert(ops, *narrow[i], wide[i]));
    }
    NIB_TRY(multiply(ops, wide[0], transpose_a, wide[1], transpose_b, accumulate, wide[2]));
    if (c.dtype != NIB_DTYPE_F32) NIB_TRY(nib_cpu_convert(ops, wide[2], c));
    nib_arena_reset(ops->scratch, mark);
    return NIB_OK;
}

nib_status nib_cpu_matmul(nib_ops *ops, nib_matrix a, bool transpose_a, nib_matrix b, bool transpose_b, bool accumulate,
                          nib_matrix c)
{
    int64_t M = transpose_a ? a.columns : a.rows, K = transpose_a ? a.rows : a.columns;
    int64_t b_K = transpose_b ? b.columns : b.rows, N = transpose_b ? b.rows : b.columns;
    if (M != c.rows || N != c.columns || K != b_K)
        return NIB_FAIL(NIB_ERROR_SHAPE, "matmul: [%lld, %lld] x [%lld, %lld] into [%lld, %lld]", (long long)M,
                        (long long)K, (long long)b_K, (long long)N, (long long)c.rows, (long long)c.columns);
    if (a.dtype != b.dtype || (a.dtype != NIB_DTYPE_F32 && a.dtype != NIB_DTYPE_BF16) ||
        (c.dtype != NIB_DTYPE_F32 && c.dtype != a.dtype))
        return NIB_FAIL(NIB_ERROR_SHAPE, "matmul: %s x %s into %s is not supported", nib_dtype_name(a.dtype),
                        nib_dtype_name(b.dtype), nib_dtype_name(c.dtype));
    if (M == 0 || N == 0) return NIB_OK;
    if (a.dtype == NIB_DTYPE_BF16 && !nib_cpu_context_of(ops)->bf16_matmul)
        return multiply_widened(ops, a, transpose_a, b, transpose_b, accumulate, c);
    return multiply(ops, a, transpose_a, b, transpose_b, accumulate, c);
}
