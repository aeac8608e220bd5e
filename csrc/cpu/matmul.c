#include "cpu/matmul.h"
#include "base/memory.h"
#include "cpu/backend_internal.h"
#include "cpu/convert.h"
#include "cpu/matvec.h"

#include <oneapi/dnnl/dnnl.h>
#include <string.h>
#include <sys/mman.h>

/* Everything that oneDNN specialises its code for. */
typedef struct {
    int64_t M, N, K, a_stride, b_stride, c_stride;
    uint8_t transpose_a, transpose_b, accumulate, has_bias, a_type, c_type, padding[2];
} matmul_key;

typedef struct {
    matmul_key key;
    dnnl_primitive_t primitive; /* NULL: free slot */
    dnnl_memory_desc_t a, b, c, bias, workspace;
    size_t workspace_bytes;
} matmul_entry;

#define SLOTS 2048 /* power of two; when three quarters are taken the cache starts anew */

struct nib_cpu_matmul_cache {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    matmul_entry *entries;
    int used;
    char *workspace; /* what oneDNN wants beside the operands, for every thread; grown to the largest product so far */
    size_t workspace_bytes;
};

/* oneDNN plans and runs for the number of threads that it may use, down to splitting the sum over k between them, so
 * that bits would follow that number: it is told "one" while a primitive is made and while it runs. The setting is the
 * calling thread's own. Returns what it was, to be set back. */
static int set_threads(int threads)
{
#ifdef _OPENMP
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    return before;
#else
    return threads;
#endif
}

static void clear(nib_cpu_matmul_cache *cache)
{
    for (int i = 0; i < SLOTS; i++) {
        matmul_entry *entry = &cache->entries[i];
        if (entry->primitive == NULL) continue;
        dnnl_primitive_destroy(entry->primitive);
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

/* oneDNN 2.6 does not look whether it got memory for the code that it generates, some 20 times 256 KiB at worst for a
 * first product: asked for beforehand. */
static bool has_room_for_code(void)
{
    size_t bytes = (size_t)32 << 20;
    void *room = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return room != MAP_FAILED && munmap(room, bytes) == 0;
}

static dnnl_status_t build(nib_cpu_matmul_cache *cache, const matmul_key *key, matmul_entry *entry)
{
    dnnl_matmul_desc_t description;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t post = NULL;
    dnnl_primitive_desc_t chosen = NULL;
    dnnl_status_t status;
    const int threads = set_threads(1);
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        status = (call);                                                                                               \
        if (status != dnnl_success) goto done;                                                                         \
    } while (0)
    TRY(has_room_for_code() ? dnnl_success : dnnl_out_of_memory);
    TRY(describe(&entry->a, key->M, key->K, key->a_stride, key->transpose_a, key->a_type));
    TRY(describe(&entry->b, key->K, key->N, key->b_stride, key->transpose_b, key->a_type));
    TRY(describe(&entry->c, key->M, key->N, key->c_stride, false, key->c_type));
    TRY(describe(&entry->bias, 1, key->N, key->N, false, NIB_DTYPE_F32));
    TRY(dnnl_matmul_desc_init(&description, &entry->a, &entry->b, key->has_bias ? &entry->bias : NULL, &entry->c));
    TRY(dnnl_primitive_attr_create(&attributes));
    TRY(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user));
    if (key->accumulate) {
        TRY(dnnl_post_ops_create(&post));
        TRY(dnnl_post_ops_append_sum(post, 1.0f));
        TRY(dnnl_primitive_attr_set_post_ops(attributes, post));
    }
    TRY(dnnl_primitive_desc_create(&chosen, &description, attributes, cache->engine, NULL));
    entry->workspace = *dnnl_primitive_desc_query_md(chosen, dnnl_query_scratchpad_md, 0);
    entry->workspace_bytes = dnnl_memory_desc_get_size(&entry->workspace);
    TRY(dnnl_primitive_create(&entry->primitive, chosen));
    entry->key = *key;
#undef TRY
done:
    set_threads(threads);
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
    for (uint64_t slot = hash_of(key);; slot++) {
        matmul_entry *entry = &cache->entries[slot % SLOTS];
        if (entry->primitive == NULL) {
            dnnl_status_t status = build(cache, key, entry);
            if (status != dnnl_success) {
                *entry = (matmul_entry){0};
                if (status == dnnl_out_of_memory) return NIB_FAIL(NIB_ERROR_MEMORY, "matmul: no memory for its code");
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

/* One product, and how it is cut: `rows` by `columns` elements of c to a tile, fewer at the edges. The cut depends on
 * the shape alone. */
typedef struct {
    nib_matrix a, b, c;
    const float *bias; /* [N], or NULL */
    bool transpose_a, transpose_b, accumulate;
    int64_t K, rows, columns, tiles_m, tiles_n;
} product;

/* Tiles are as large as ROWS x COLUMNS, since each packs its part of b again; smaller where that makes fewer than TILES
 * of them, so that a few threads end together, but none of less than WORK multiplications. */
enum { TILES = 8, ROWS = 512, COLUMNS = 3072, LEAST = 64, WORK = 1 << 22 };

/* The size of a tile that cuts n evenly into `parts`, in whole multiples of LEAST. */
static int64_t even(int64_t n, int64_t parts) { return ((n + parts - 1) / parts + LEAST - 1) / LEAST * LEAST; }

static void cut(product *p)
{
    const int64_t M = p->c.rows, N = p->c.columns, most = M * N * p->K / WORK;
    const int64_t wanted = most < TILES ? most : TILES;
    int64_t parts_m = (M + ROWS - 1) / ROWS, parts_n = (N + COLUMNS - 1) / COLUMNS;
    while (parts_m * parts_n < wanted && M / parts_m > 2 * LEAST) parts_m++;
    while (parts_m * parts_n < wanted && N / parts_n > LEAST) parts_n++;
    p->rows = even(M, parts_m);
    p->columns = even(N, parts_n);
    p->tiles_m = (M + p->rows - 1) / p->rows;
    p->tiles_n = (N + p->columns - 1) / p->columns;
}

/* The product of tile (i, j): the same on views of the operands. */
static product tile_of(const product *p, int64_t i, int64_t j)
{
    product t = *p;
    int64_t m = i * p->rows, n = j * p->columns;
    int64_t rows = p->c.rows - m < p->rows ? p->c.rows - m : p->rows;
    int64_t columns = p->c.columns - n < p->columns ? p->c.columns - n : p->columns;
    t.a = p->transpose_a ? nib_matrix_columns(p->a, m, rows) : nib_matrix_rows(p->a, m, rows);
    t.b = p->transpose_b ? nib_matrix_rows(p->b, n, columns) : nib_matrix_columns(p->b, n, columns);
    t.c = nib_matrix_columns(nib_matrix_rows(p->c, m, rows), n, columns);
    if (p->bias != NULL) t.bias = p->bias + n;
    return t;
}

static nib_status primitive_of(nib_cpu_matmul_cache *cache, const product *p, matmul_entry **entry)
{
    matmul_key key = {.M = p->c.rows,
                      .N = p->c.columns,
                      .K = p->K,
                      .a_stride = p->a.stride,
                      .b_stride = p->b.stride,
                      .c_stride = p->c.stride,
                      .transpose_a = p->transpose_a,
                      .transpose_b = p->transpose_b,
                      .accumulate = p->accumulate,
                      .has_bias = p->bias != NULL,
                      .a_type = (uint8_t)p->a.dtype,
                      .c_type = (uint8_t)p->c.dtype};
    return find(cache, &key, entry);
}

/* Memory objects are made anew for each call: they hold the pointers, and threads share the primitive. */
static dnnl_status_t execute(const nib_cpu_matmul_cache *cache, const matmul_entry *entry, const product *p,
                             void *workspace)
{
    const struct {
        int argument;
        const dnnl_memory_desc_t *description;
        const void *data;
    } uses[] = {{DNNL_ARG_SRC, &entry->a, p->a.data},
                {DNNL_ARG_WEIGHTS, &entry->b, p->b.data},
                {DNNL_ARG_DST, &entry->c, p->c.data},
                {DNNL_ARG_SCRATCHPAD, &entry->workspace, workspace},
                {DNNL_ARG_BIAS, &entry->bias, p->bias}};
    enum { MOST = sizeof uses / sizeof *uses };
    const int count = p->bias != NULL ? MOST : MOST - 1;
    dnnl_exec_arg_t arguments[MOST] = {{0}};
    dnnl_status_t status = dnnl_success;
    for (int i = 0; i < count && status == dnnl_success; i++) {
        arguments[i].arg = uses[i].argument;
        status = dnnl_memory_create(&arguments[i].memory, uses[i].description, cache->engine, (void *)uses[i].data);
    }
    const int threads = set_threads(1);
    if (status == dnnl_success) status = dnnl_primitive_execute(entry->primitive, cache->stream, count, arguments);
    set_threads(threads);
    for (int i = 0; i < count; i++)
        if (arguments[i].memory != NULL) dnnl_memory_destroy(arguments[i].memory);
    return status;
}

/* `bytes` for each thread. */
static nib_status grow_workspace(nib_cpu_matmul_cache *cache, size_t bytes)
{
    bytes *= (size_t)nib_cpu_threads();
    if (bytes <= cache->workspace_bytes) return NIB_OK;
    nib_free(cache->workspace);
    cache->workspace = nib_calloc(bytes, 1);
    cache->workspace_bytes = cache->workspace == NULL ? 0 : bytes;
    if (cache->workspace == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "matmul: no memory for %zu bytes", bytes);
    return NIB_OK;
}

/* Where the sums of a tile go: into c, or, where c is narrower than the operands, into fp32 memory of the thread. */
static product summed_into(product tile, float *wide, int64_t stride)
{
    if (wide != NULL) {
        tile.c.data = wide;
        tile.c.stride = stride;
        tile.c.dtype = NIB_DTYPE_F32;
    }
    return tile;
}

static void copy_rows(nib_matrix from, nib_matrix to)
{
    for (int64_t r = 0; r < from.rows; r++) {
        const void *source = nib_matrix_rows(from, r, 1).data;
        void *target = nib_matrix_rows(to, r, 1).data;
        if (from.dtype == NIB_DTYPE_F32)
            nib_cpu_narrow(source, target, from.columns);
        else
            nib_cpu_widen(source, target, from.columns);
    }
}

static dnnl_status_t multiply_tile(const nib_cpu_matmul_cache *cache, const matmul_entry *entry, const product *tile,
                                   float *wide, int64_t stride, void *workspace)
{
    const product sums = summed_into(*tile, wide, stride);
    if (wide != NULL && tile->accumulate) copy_rows(tile->c, sums.c);
    dnnl_status_t status = execute(cache, entry, &sums, workspace);
    if (wide != NULL && status == dnnl_success) copy_rows(sums.c, tile->c);
    return status;
}

/* Operands of one type: tiles, each by one thread. There are at most four shapes of tiles: inner ones, and those of the
 * two edges and the corner. A bf16 result of fp32 operands is rounded tile by tile, while it is in the cache. */
static nib_status multiply(nib_ops *ops, product p)
{
    nib_cpu_matmul_cache *cache = nib_cpu_context_of(ops)->matmul;
    matmul_entry *entry[2][2]; /* by last row, last column of tiles */
    size_t workspace_bytes = 0;
    float *wide = NULL;
    cut(&p);
    const int64_t wide_floats = p.a.dtype == NIB_DTYPE_F32 && p.c.dtype == NIB_DTYPE_BF16 ? p.rows * p.columns : 0;
    if (wide_floats > 0) NIB_TRY(nib_arena_take(ops->scratch, nib_cpu_threads() * wide_floats, sizeof *wide, &wide));
    if (ops->rehearsal) return NIB_OK;
    if (cache->used > SLOTS * 3 / 4) clear(cache);
    for (int i = p.tiles_m == 1; i < 2; i++) {
        for (int j = p.tiles_n == 1; j < 2; j++) {
            const product tile = summed_into(tile_of(&p, i * (p.tiles_m - 1), j * (p.tiles_n - 1)), wide, p.columns);
            NIB_TRY(primitive_of(cache, &tile, &entry[i][j]));
            if (entry[i][j]->workspace_bytes > workspace_bytes) workspace_bytes = entry[i][j]->workspace_bytes;
        }
    }
    workspace_bytes = (workspace_bytes + 4095) / 4096 * 4096;
    NIB_TRY(grow_workspace(cache, workspace_bytes));
    dnnl_status_t failure = dnnl_success;
#pragma omp parallel for schedule(dynamic) if (p.tiles_m * p.tiles_n > 1)
    for (int64_t index = 0; index < p.tiles_m * p.tiles_n; index++) {
        const int64_t i = index % p.tiles_m, j = index / p.tiles_m;
        const product tile = tile_of(&p, i, j);
        dnnl_status_t status = multiply_tile(cache, entry[i == p.tiles_m - 1][j == p.tiles_n - 1], &tile,
                                             wide == NULL ? NULL : wide + nib_cpu_thread() * wide_floats, p.columns,
                                             cache->workspace + (size_t)nib_cpu_thread() * workspace_bytes);
        if (status != dnnl_success) {
#pragma omp atomic write
            failure = status;
        }
    }
    if (failure == dnnl_out_of_memory) return NIB_FAIL(NIB_ERROR_MEMORY, "matmul: no memory for the product");
    if (failure != dnnl_success)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "matmul: oneDNN failed with status %d", (int)failure);
    return NIB_OK;
}

/* A bf16 operand on a CPU without bf16 instructions. */
static nib_status widen(nib_ops *ops, nib_matrix *operand)
{
    const nib_matrix narrow = *operand;
    if (narrow.dtype == NIB_DTYPE_F32) return NIB_OK;
    operand->dtype = NIB_DTYPE_F32;
    operand->stride = narrow.columns;
    NIB_TRY(nib_arena_take(ops->scratch, narrow.rows * narrow.columns, sizeof(float), &operand->data));
    return nib_cpu_convert(ops, narrow, *operand);
}

static nib_status widen_and_multiply(nib_ops *ops, product p)
{
    size_t mark = ops->scratch->used;
    nib_status status = NIB_OK;
    if (!nib_cpu_context_of(ops)->bf16_matmul) {
        NIB_TRY_GOTO(widen(ops, &p.a), done);
        NIB_TRY_GOTO(widen(ops, &p.b), done);
    }
    status = multiply(ops, p);
done:
    nib_arena_reset(ops->scratch, mark);
    return status;
}

nib_dtype nib_cpu_operand_type(const nib_ops *ops, nib_dtype activation)
{
    const nib_cpu_context *context = ops->context;
    return context->bf16_matmul ? activation : NIB_DTYPE_F32;
}

static bool has_supported_types(const nib_ops *ops, const product *p)
{
    const nib_cpu_context *context = ops->context;
    const nib_dtype types[] = {p->a.dtype, p->b.dtype, p->c.dtype};
    for (int i = 0; i < 3; i++)
        if (types[i] != NIB_DTYPE_F32 && types[i] != NIB_DTYPE_BF16) return false;
    if (!context->bf16_matmul) return true;
    return types[0] == types[1] && (types[2] == NIB_DTYPE_F32 || types[2] == types[0]);
}

static nib_status checked_product(nib_ops *ops, product p)
{
    const int64_t M = p.transpose_a ? p.a.columns : p.a.rows, K = p.transpose_a ? p.a.rows : p.a.columns;
    const int64_t b_K = p.transpose_b ? p.b.columns : p.b.rows, N = p.transpose_b ? p.b.rows : p.b.columns;
    if (M != p.c.rows || N != p.c.columns || K != b_K)
        return NIB_FAIL(NIB_ERROR_SHAPE, "matmul: [%lld, %lld] x [%lld, %lld] into [%lld, %lld]", (long long)M,
                        (long long)K, (long long)b_K, (long long)N, (long long)p.c.rows, (long long)p.c.columns);
    if (!has_supported_types(ops, &p))
        return NIB_FAIL(NIB_ERROR_SHAPE, "matmul: %s x %s into %s is not supported", nib_dtype_name(p.a.dtype),
                        nib_dtype_name(p.b.dtype), nib_dtype_name(p.c.dtype));
    if (M == 0 || N == 0) return NIB_OK;
    if (M <= NIB_CPU_MATVEC_ROWS && !p.transpose_a && p.transpose_b && !p.accumulate)
        return nib_cpu_dense_matvec(ops, p.a, p.b, p.bias, p.c);
    p.K = K;
    return widen_and_multiply(ops, p);
}

nib_status nib_cpu_matmul(nib_ops *ops, nib_matrix a, bool transpose_a, nib_matrix b, bool transpose_b, bool accumulate,
                          nib_matrix c)
{
    return checked_product(
        ops,
        (product){
            .a = a, .b = b, .c = c, .transpose_a = transpose_a, .transpose_b = transpose_b, .accumulate = accumulate});
}

nib_status nib_cpu_matmul_bias(nib_ops *ops, nib_matrix a, nib_matrix b, const float *bias, nib_matrix c)
{
    return checked_product(ops, (product){.a = a, .b = b, .c = c, .bias = bias, .transpose_b = true});
}
