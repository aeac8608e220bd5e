/* c = op(a) op(b) (+ c), of bf16 or of e4m3.
 *
 * cublasLt counts in columns, so the product is handed over transposed: c^T [N, M] = op(b)^T op(a)^T, where a row-major
 * matrix is the column-major one of its transpose and nothing is copied. Products of documents of all lengths are asked
 * for; what cublasLt needs to know of a shape is prepared once and kept in a table by shape. Its algorithm is that of
 * the shape's class (cuda/matmul_choice.h), measured on the operands at hand when the class is first met: the host
 * waits for the device then. A product that adds to c, which cannot be repeated, takes the first algorithm that is
 * offered.
 *
 * Of e4m3, cublasLt takes row-major a and b as they are (its "TN"), with a scale for each row on Hopper from CUDA 12.9
 * on, with one for the whole matrix elsewhere: there, a kernel multiplies the rows of c afterwards, which costs another
 * pass over c, and no bit, since the scales are powers of two. Fast accumulation stays off. With it, Hopper's tensor
 * cores keep some 14 bits of a sum (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 3.3.2); without it,
 * their partial sums are added up in fp32 registers at intervals, which is what that report does by hand.
 *
 * Source of the calls: NVIDIA, "cuBLASLt API" (CUDA 13.0), cublasLtMatmul, cublasLtMatmulAlgoGetHeuristic, and
 * cublasLtMatmulMatrixScale_t. */
#include "cuda/backend.h"
#include "cuda/choice.h"
#include "cuda/launch.cuh"
#include "cuda/matmul.h"
#include "cuda/matmul_choice.h"
#include "cuda/status.cuh"
#include "cuda/vector.cuh"

#include <cublasLt.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define WORKSPACE_BYTES ((size_t)32 << 20) /* what NVIDIA recommends for Hopper */
#define BUCKETS         256
#define WIDEST_ACCESS   16 /* bytes; pointers that are better aligned gain nothing */
#define TIMED           3  /* products, after one that is not */

#define SCALED_ROWS_VERSION 120900 /* of cublasLt: CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F */

static const int SCALE_THREADS = 256;

/* All that a choice may depend on; no padding, so that it can be compared by its bytes. */
typedef struct {
    int64_t M, N, K, a_stride, b_stride, c_stride;
    int32_t transpose_a, transpose_b, wide, accumulate, a_alignment, b_alignment, c_alignment, e4m3;
} shape_key;

typedef struct product {
    shape_key key;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c; /* as cublasLt names them: a is our b */
    cublasLtMatmulAlgo_t algorithm;
    struct product *next;
} product;

struct nib_cuda_matmul_cache {
    cublasLtHandle_t handle;
    cudaStream_t stream;
    void *workspace;
    cudaEvent_t begin, end;
    nib_matmul_choices *choices;
    product *bucket[BUCKETS];
};

/* The operands of one call. */
typedef struct {
    const void *a, *b;
    void *c;
    const float *a_scale, *b_scale; /* of e4m3: a's by row, or NULL; b's by row, or of all rows */
} product_data;

static nib_status check_cublas(cublasStatus_t status, const shape_key *key, const char *call)
{
    if (status == CUBLAS_STATUS_SUCCESS) return NIB_OK;
    return NIB_FAIL(status == CUBLAS_STATUS_NOT_SUPPORTED ? NIB_ERROR_SHAPE : NIB_ERROR_DEVICE,
                    "matmul [%lld, %lld] x [%lld, %lld]: %s: %s", (long long)key->M, (long long)key->K,
                    (long long)key->K, (long long)key->N, call, cublasLtGetStatusString(status));
}
#define CHECK_CUBLAS(call) NIB_TRY(check_cublas((call), key, #call))

static void free_product(product *p)
{
    if (p->operation != NULL) cublasLtMatmulDescDestroy(p->operation);
    if (p->a != NULL) cublasLtMatrixLayoutDestroy(p->a);
    if (p->b != NULL) cublasLtMatrixLayoutDestroy(p->b);
    if (p->c != NULL) cublasLtMatrixLayoutDestroy(p->c);
    delete p;
}

/* What a choice of an algorithm is good for. */
static nib_status make_choices(nib_cuda_matmul_cache *cache)
{
    char identity[512];
    cudaDeviceProp properties;
    int device, driver = 0;
    NIB_CHECK_CUDA(cudaGetDevice(&device));
    NIB_CHECK_CUDA(cudaGetDeviceProperties(&properties, device));
    cudaDriverGetVersion(&driver);
    snprintf(identity, sizeof identity, "%s, %d processors, driver %d, cublasLt %zu, NF4 by two ways", properties.name,
             properties.multiProcessorCount, driver, cublasLtGetVersion());
    cache->choices = nib_matmul_choices_create(identity);
    return cache->choices != NULL ? NIB_OK : NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a table of products");
}

nib_status nib_cuda_matmul_cache_create(cudaStream_t stream, nib_cuda_matmul_cache **out)
{
    nib_cuda_matmul_cache *cache = new nib_cuda_matmul_cache();
    *out = cache; /* freed by the caller, whatever happens */
    cache->stream = stream;
    cublasStatus_t status = cublasLtCreate(&cache->handle);
    if (status != CUBLAS_STATUS_SUCCESS)
        return NIB_FAIL(NIB_ERROR_DEVICE, "cublasLt cannot be started: %s", cublasLtGetStatusString(status));
    NIB_CHECK_CUDA(cudaMalloc(&cache->workspace, WORKSPACE_BYTES));
    NIB_CHECK_CUDA(cudaEventCreate(&cache->begin));
    NIB_CHECK_CUDA(cudaEventCreate(&cache->end));
    return make_choices(cache);
}

static void free_products(nib_cuda_matmul_cache *cache)
{
    for (product *&bucket : cache->bucket)
        for (product *p = bucket; p != NULL; p = bucket) {
            bucket = p->next;
            free_product(p);
        }
}

nib_status nib_cuda_keep_algorithms(nib_ops *ops, const char *folder)
{
    nib_cuda_matmul_cache *cache = nib_cuda_matmul_cache_of(ops);
    free_products(cache);
    return nib_matmul_choices_follow(cache->choices, folder);
}

void nib_cuda_matmul_cache_free(nib_cuda_matmul_cache *cache)
{
    if (cache == NULL) return;
    free_products(cache);
    nib_matmul_choices_free(cache->choices);
    if (cache->begin != NULL) cudaEventDestroy(cache->begin);
    if (cache->end != NULL) cudaEventDestroy(cache->end);
    if (cache->workspace != NULL) cudaFree(cache->workspace);
    if (cache->handle != NULL) cublasLtDestroy(cache->handle);
    delete cache;
}

/* The largest power of two, up to WIDEST_ACCESS, that divides the address of every row. */
static int32_t alignment_of(nib_matrix m)
{
    uint64_t bits =
        (uint64_t)(uintptr_t)m.data | (uint64_t)m.stride * (m.dtype == NIB_DTYPE_F32 ? 4 : 2) | WIDEST_ACCESS;
    return (int32_t)(bits & (~bits + 1));
}

static unsigned bucket_of(const shape_key *key) { return (unsigned)(nib_matmul_hash(key, sizeof *key) % BUCKETS); }

static nib_status describe(product *p, const shape_key *key)
{
    cublasOperation_t first = key->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = key->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    cudaDataType_t result = key->wide ? CUDA_R_32F : CUDA_R_16BF;
    CHECK_CUBLAS(cublasLtMatmulDescCreate(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    const cudaDataType_t type = key->e4m3 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    uint64_t M = (uint64_t)key->M, N = (uint64_t)key->N, K = (uint64_t)key->K;
    CHECK_CUBLAS(
        cublasLtMatrixLayoutCreate(&p->a, type, key->transpose_b ? K : N, key->transpose_b ? N : K, key->b_stride));
    CHECK_CUBLAS(
        cublasLtMatrixLayoutCreate(&p->b, type, key->transpose_a ? M : K, key->transpose_a ? K : M, key->a_stride));
    CHECK_CUBLAS(cublasLtMatrixLayoutCreate(&p->c, result, N, M, key->c_stride));
    return NIB_OK;
}

/* Where the scales of e4m3 operands are. */
static nib_status set_scales(const product *p, const shape_key *key, product_data data)
{
    if (!key->e4m3) return NIB_OK;
    if (data.a_scale != NULL) {
        const int32_t by_row = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
        CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &by_row, 4));
        CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &by_row, 4));
        CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &data.a_scale,
                                                    sizeof data.a_scale));
    }
    CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &data.b_scale,
                                                sizeof data.b_scale));
    return NIB_OK;
}

static nib_status set_limits(cublasLtMatmulPreference_t preference, const shape_key *key)
{
    size_t workspace = WORKSPACE_BYTES;
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        const void *value;
        size_t bytes;
    } limits[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &key->b_alignment, sizeof key->b_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &key->a_alignment, sizeof key->a_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &key->c_alignment, sizeof key->c_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &key->c_alignment, sizeof key->c_alignment},
    };
    for (const auto &limit : limits)
        CHECK_CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference, limit.attribute, limit.value, limit.bytes));
    return NIB_OK;
}

static nib_status get_offers(const nib_cuda_matmul_cache *cache, product *p, const shape_key *key, int *found,
                             cublasLtMatmulHeuristicResult_t offer[NIB_MATMUL_MOST_OFFERED])
{
    cublasLtMatmulPreference_t preference = NULL;
    CHECK_CUBLAS(cublasLtMatmulPreferenceCreate(&preference));
    nib_status status = set_limits(preference, key);
    if (status == NIB_OK)
        status = check_cublas(cublasLtMatmulAlgoGetHeuristic(cache->handle, p->operation, p->a, p->b, p->c, p->c,
                                                             preference, NIB_MATMUL_MOST_OFFERED, offer, found),
                              key, "cublasLtMatmulAlgoGetHeuristic");
    cublasLtMatmulPreferenceDestroy(preference);
    if (status == NIB_OK && *found == 0)
        status = check_cublas(CUBLAS_STATUS_NOT_SUPPORTED, key, "cublasLtMatmulAlgoGetHeuristic");
    return status;
}

static cublasStatus_t run(nib_cuda_matmul_cache *cache, const product *p, const cublasLtMatmulAlgo_t *algorithm,
                          product_data data)
{
    const float one = 1.0f, beta = p->key.accumulate ? 1.0f : 0.0f;
    return cublasLtMatmul(cache->handle, p->operation, &one, data.b, p->a, data.a, p->b, &beta, data.c, p->c, data.c,
                          p->c, algorithm, cache->workspace, WORKSPACE_BYTES, cache->stream);
}

typedef struct {
    nib_cuda_matmul_cache *cache;
    const product *p;
    const cublasLtMatmulHeuristicResult_t *offer;
    product_data data;
} measurement;

nib_status nib_cuda_matmul_time(nib_cuda_matmul_cache *cache, nib_status (*run)(void *user), void *user,
                                float *microseconds)
{
    float milliseconds;
    NIB_TRY(run(user));
    NIB_CHECK_CUDA(cudaEventRecord(cache->begin, cache->stream));
    for (int i = 0; i < TIMED; i++) NIB_TRY(run(user));
    NIB_CHECK_CUDA(cudaEventRecord(cache->end, cache->stream));
    NIB_CHECK_CUDA(cudaEventSynchronize(cache->end));
    NIB_CHECK_CUDA(cudaEventElapsedTime(&milliseconds, cache->begin, cache->end));
    *microseconds = 1000.0f * milliseconds / TIMED;
    return NIB_OK;
}

/* One algorithm that is timed. */
typedef struct {
    const measurement *m;
    const cublasLtMatmulAlgo_t *algorithm;
    bool runs;
} attempt;

static nib_status run_attempt(void *user)
{
    attempt *a = (attempt *)user;
    a->runs = a->runs && run(a->m->cache, a->m->p, a->algorithm, a->m->data) == CUBLAS_STATUS_SUCCESS;
    return NIB_OK;
}

static nib_status time_all(void *user, int offered, float *microseconds)
{
    const measurement *m = (const measurement *)user;
    for (int i = 0; i < offered; i++) {
        attempt a = {m, &m->offer[i].algo, true};
        NIB_TRY(nib_cuda_matmul_time(m->cache, run_attempt, &a, &microseconds[i]));
        if (!a.runs) microseconds[i] = HUGE_VALF; /* others are left */
    }
    return NIB_OK;
}

static nib_status choose(nib_cuda_matmul_cache *cache, product *p, const shape_key *key, product_data data)
{
    cublasLtMatmulHeuristicResult_t offer[NIB_MATMUL_MOST_OFFERED];
    uint64_t hash[NIB_MATMUL_MOST_OFFERED];
    int found = 0, chosen = 0;
    memset(offer, 0, sizeof offer); /* hashed with all that cublasLt does not set */
    NIB_TRY(get_offers(cache, p, key, &found, offer));
    for (int i = 0; i < found; i++) hash[i] = nib_matmul_hash(&offer[i].algo, sizeof offer[i].algo);
    const nib_matmul_class shape = {nib_matmul_class_size(key->M),
                                    nib_matmul_class_size(key->N),
                                    nib_matmul_class_size(key->K),
                                    key->transpose_a,
                                    key->transpose_b,
                                    key->e4m3 ? 2 : key->wide,
                                    key->a_alignment,
                                    key->b_alignment,
                                    key->c_alignment,
                                    0,
                                    0};
    measurement measured = {cache, p, offer, data};
    if (!key->accumulate && found > 1)
        NIB_TRY(nib_matmul_choose(cache->choices, &shape, found, hash, NULL, time_all, &measured, &chosen));
    p->algorithm = offer[chosen].algo;
    return NIB_OK;
}

/* The prepared product of a shape, made when the shape is first met. */
static nib_status find(nib_cuda_matmul_cache *cache, const shape_key *key, product_data data, product **out)
{
    product **bucket = &cache->bucket[bucket_of(key)];
    for (product *p = *bucket; p != NULL; p = p->next)
        if (memcmp(&p->key, key, sizeof *key) == 0) {
            *out = p;
            return NIB_OK;
        }
    product *p = new product();
    p->key = *key;
    nib_status status = describe(p, key);
    if (status == NIB_OK) status = set_scales(p, key, data);
    if (status == NIB_OK) status = choose(cache, p, key, data);
    if (status != NIB_OK) {
        free_product(p);
        return status;
    }
    p->next = *bucket;
    *bucket = *out = p;
    return NIB_OK;
}

static nib_status multiply(nib_ops *ops, const shape_key *key, product_data data)
{
    nib_cuda_matmul_cache *cache = nib_cuda_matmul_cache_of(ops);
    product *p;
    NIB_TRY(find(cache, key, data, &p));
    NIB_TRY(set_scales(p, key, data));
    CHECK_CUBLAS(run(cache, p, &p->algorithm, data));
    return NIB_OK;
}

static nib_status check(nib_matrix a, bool transpose_a, nib_matrix b, bool transpose_b, nib_matrix c)
{
    int64_t M = transpose_a ? a.columns : a.rows, K = transpose_a ? a.rows : a.columns;
    int64_t b_rows = transpose_b ? b.columns : b.rows, N = transpose_b ? b.rows : b.columns;
    if (c.rows != M || c.columns != N || b_rows != K)
        return NIB_FAIL(NIB_ERROR_SHAPE, "matmul: [%lld, %lld] x [%lld, %lld] to [%lld, %lld]", (long long)M,
                        (long long)K, (long long)b_rows, (long long)N, (long long)c.rows, (long long)c.columns);
    if (a.dtype != NIB_DTYPE_BF16 || b.dtype != NIB_DTYPE_BF16 ||
        (c.dtype != NIB_DTYPE_BF16 && c.dtype != NIB_DTYPE_F32))
        return NIB_FAIL(NIB_ERROR_SHAPE, "matmul: %s x %s to %s; expected BF16 x BF16 to BF16 or F32",
                        nib_dtype_name(a.dtype), nib_dtype_name(b.dtype), nib_dtype_name(c.dtype));
    return NIB_OK;
}

nib_matmul_choices *nib_cuda_matmul_choices(nib_cuda_matmul_cache *cache) { return cache->choices; }

nib_status nib_cuda_matmul(nib_ops *ops, nib_matrix a, bool transpose_a, nib_matrix b, bool transpose_b,
                           bool accumulate, nib_matrix c)
{
    NIB_TRY(check(a, transpose_a, b, transpose_b, c));
    if (c.rows == 0 || c.columns == 0 || ops->rehearsal) return NIB_OK;
    if (nib_cuda_is_plain(ops, NIB_CUDA_MATMUL))
        return nib_cuda_matmul_plain(ops, a, transpose_a, b, transpose_b, accumulate, c);
    const shape_key shape = {
        c.rows,          c.columns,   transpose_a ? a.rows : a.columns, a.stride,   b.stride,        c.stride,
        transpose_a,     transpose_b, c.dtype == NIB_DTYPE_F32,         accumulate, alignment_of(a), alignment_of(b),
        alignment_of(c), false};
    return multiply(ops, &shape, {a.data, b.data, c.data, NULL, NULL});
}

/* c[m][n] = scale[m] from[m][n] (+ c[m][n]). grid (blocks of N, M) */
__global__ void __launch_bounds__(SCALE_THREADS)
    matmul_scale_rows_kernel(const float *scale, const __nv_bfloat16 *from, int64_t from_stride, bool accumulate,
                             __nv_bfloat16 *c, int64_t stride, int64_t M, int64_t N)
{
    const int64_t n = (int64_t)blockIdx.x * SCALE_THREADS + threadIdx.x;
    if (n >= N) return;
    for (int64_t m = blockIdx.y; m < M; m += gridDim.y) {
        const float x = scale[m] * to_float(from[m * from_stride + n]);
        c[m * stride + n] = to_bf16(accumulate ? x + to_float(c[m * stride + n]) : x);
    }
}

static nib_status check_e4m3(const nib_cuda_e4m3 *a, const nib_cuda_e4m3 *b, nib_matrix c)
{
    if (a->columns != b->columns || c.rows != a->rows || c.columns != b->rows || c.dtype != NIB_DTYPE_BF16)
        return NIB_FAIL(NIB_ERROR_SHAPE, "matmul of e4m3: [%lld, %lld] x [%lld, %lld]^T to [%lld, %lld] %s",
                        (long long)a->rows, (long long)a->columns, (long long)b->rows, (long long)b->columns,
                        (long long)c.rows, (long long)c.columns, nib_dtype_name(c.dtype));
    if (a->columns % 16 != 0 || b->rows % 16 != 0 || a->stride % 16 != 0 || b->stride % 16 != 0 || c.stride % 8 != 0 ||
        !whole_vectors(a->data) || !whole_vectors(b->data) || !whole_vectors(c.data))
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "matmul of e4m3: [%lld, %lld] x [%lld, %lld]^T, expected 16-byte aligned rows, and a multiple "
                        "of 16 of b's rows and of columns",
                        (long long)a->rows, (long long)a->columns, (long long)b->rows, (long long)b->columns);
    return NIB_OK;
}

/* cublasLt multiplies rows with their scales. */
static bool scales_rows(nib_ops *ops)
{
    return nib_cuda_device_of(ops)->architecture == 90 && cublasLtGetVersion() >= SCALED_ROWS_VERSION;
}

static nib_status multiply_e4m3(nib_ops *ops, const nib_cuda_e4m3 *a, const nib_cuda_e4m3 *b, bool accumulate,
                                nib_matrix c)
{
    const bool by_row = scales_rows(ops);
    nib_matrix sum = c; /* without the rows' scales, where they are not applied at once */
    if (!by_row && accumulate) {
        sum = {NULL, c.rows, c.columns, c.columns, NIB_DTYPE_BF16};
        NIB_TRY(nib_arena_take(ops->scratch, c.rows * c.columns, sizeof(nib_bf16), &sum.data));
    }
    if (ops->rehearsal) return NIB_OK;
    const shape_key shape = {c.rows,        c.columns,     a->columns,    a->stride, b->stride,
                             sum.stride,    false,         true,          false,     by_row && accumulate,
                             WIDEST_ACCESS, WIDEST_ACCESS, WIDEST_ACCESS, true};
    NIB_TRY(multiply(ops, &shape, {a->data, b->data, sum.data, by_row ? a->scale : NULL, b->scale}));
    if (by_row) return NIB_OK;
    const dim3 grid((unsigned)divide_up(c.columns, SCALE_THREADS), (unsigned)(c.rows < 65535 ? c.rows : 65535));
    return nib_cuda_launch(matmul_scale_rows_kernel, grid, dim3(SCALE_THREADS), 0, nib_cuda_stream(ops), a->scale,
                           bf16_of(sum), sum.stride, accumulate, bf16_of(c), c.stride, c.rows, c.columns);
}

nib_status nib_cuda_matmul_e4m3(nib_ops *ops, const nib_cuda_e4m3 *a, const nib_cuda_e4m3 *b, bool accumulate,
                                nib_matrix c)
{
    NIB_TRY(check_e4m3(a, b, c));
    if (!ops->fp8)
        return NIB_FAIL(NIB_ERROR_SHAPE, "matmul of e4m3: sm_%d has no such products, sm_89 and later have",
                        nib_cuda_device_of(ops)->architecture);
    if (c.rows == 0 || c.columns == 0) return NIB_OK;
    if (nib_cuda_is_plain(ops, NIB_CUDA_MATMUL)) return nib_cuda_matmul_e4m3_plain(ops, a, b, accumulate, c);
    const size_t mark = ops->scratch->used;
    const nib_status status = multiply_e4m3(ops, a, b, accumulate, c);
    nib_arena_reset(ops->scratch, mark);
    return status;
}
