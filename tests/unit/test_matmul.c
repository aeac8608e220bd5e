/* Matrix products: every transpose, type and stride against double arithmetic, and the same bits at any number of
 * threads over the shapes of real models, among them those that tempt a library to split the sum over k between
 * threads: few rows and columns, long k (the gradients of LoRA's A and B). */
#include "numeric.h"

#include "cpu/backend_internal.h"
#include "cpu/matmul.h"

#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { PADDING = 3 };
static const float sentinel = -12345.0f;

static size_t size_of(nib_dtype dtype) { return dtype == NIB_DTYPE_F32 ? 4 : 2; }

static float get(nib_matrix m, int64_t row, int64_t column)
{
    int64_t i = row * m.stride + column;
    return m.dtype == NIB_DTYPE_F32 ? ((float *)m.data)[i] : nib_bf16_to_float(((nib_bf16 *)m.data)[i]);
}

static void set(nib_matrix m, int64_t row, int64_t column, float value)
{
    int64_t i = row * m.stride + column;
    if (m.dtype == NIB_DTYPE_F32)
        ((float *)m.data)[i] = value;
    else
        ((nib_bf16 *)m.data)[i] = nib_bf16_from_float(value);
}

/* [rows, columns] random values, with sentinels between the rows. */
static nib_matrix matrix(uint64_t stream, int64_t rows, int64_t columns, nib_dtype dtype)
{
    nib_matrix m = {NULL, rows, columns, columns + PADDING, dtype};
    m.data = nib_calloc((size_t)(rows * m.stride), size_of(dtype));
    assert_non_null(m.data);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < m.stride; c++)
            set(m, r, c, c < columns ? nib_test_uniform(stream, (uint64_t)(r * columns + c)) : sentinel);
    return m;
}

typedef struct {
    bool transpose_a, transpose_b, accumulate;
    nib_dtype in, out;
} variant;

/* Every element within the rounding of a sum of K terms, in any order. */
static void agrees_with_double(nib_ops *ops, int64_t M, int64_t N, int64_t K, variant v)
{
    nib_matrix a = v.transpose_a ? matrix(1, K, M, v.in) : matrix(1, M, K, v.in);
    nib_matrix b = v.transpose_b ? matrix(2, N, K, v.in) : matrix(2, K, N, v.in);
    nib_matrix c = matrix(3, M, N, v.out), before = matrix(3, M, N, v.out);
    assert_int_equal(nib_cpu_matmul(ops, a, v.transpose_a, b, v.transpose_b, v.accumulate, c), NIB_OK);
    for (int64_t m = 0; m < M; m++) {
        for (int64_t n = 0; n < N; n++) {
            double want = v.accumulate ? (double)get(before, m, n) : 0.0, size = fabs(want);
            for (int64_t k = 0; k < K; k++) {
                float x = v.transpose_a ? get(a, k, m) : get(a, m, k), y = v.transpose_b ? get(b, n, k) : get(b, k, n);
                want += (double)x * (double)y;
                size += fabs((double)x * (double)y);
            }
            /* K roundings of 2^-24 at most, each of at most `size`; the last one to bf16 is of 2^-9 of the value. */
            double tolerance = (double)(K + 1) * 0x1p-24 * size + (v.out == NIB_DTYPE_BF16 ? 0x1p-8 * fabs(want) : 0.0);
            if (!(fabs((double)get(c, m, n) - want) <= tolerance))
                fail_msg("[%d, %d] of %d x %d x %d (%s to %s, a%s b%s%s): %g, expected %g", (int)m, (int)n, (int)M,
                         (int)K, (int)N, nib_dtype_name(v.in), nib_dtype_name(v.out), v.transpose_a ? "^T" : "",
                         v.transpose_b ? "^T" : "", v.accumulate ? ", accumulated" : "", (double)get(c, m, n), want);
        }
        for (int64_t n = N; n < c.stride; n++) assert_true(get(c, m, n) == get(before, m, n));
    }
    nib_free(a.data);
    nib_free(b.data);
    nib_free(c.data);
    nib_free(before.data);
}

static void every_variant_agrees_with_double(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 1}, {1, 33, 65}, {7, 16, 129}, {37, 48, 64}, {64, 5, 300}};
    static const nib_dtype types[][2] = {
        {NIB_DTYPE_F32, NIB_DTYPE_F32}, {NIB_DTYPE_BF16, NIB_DTYPE_F32}, {NIB_DTYPE_BF16, NIB_DTYPE_BF16}};
    nib_ops *ops;
    assert_int_equal(nib_cpu_backend_create(64 << 20, &ops), NIB_OK);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int t = 0; t < 3; t++)
            for (int bits = 0; bits < 8; bits++)
                agrees_with_double(ops, shapes[s][0], shapes[s][1], shapes[s][2],
                                   (variant){bits & 1, bits & 2, bits & 4, types[t][0], types[t][1]});
    nib_cpu_backend_free(ops);
}

#ifdef _OPENMP
static void threads_change_no_bit_of(nib_ops *ops, int64_t M, int64_t N, int64_t K, variant v)
{
    nib_matrix a = v.transpose_a ? matrix(1, K, M, v.in) : matrix(1, M, K, v.in);
    nib_matrix b = v.transpose_b ? matrix(2, N, K, v.in) : matrix(2, K, N, v.in);
    nib_matrix first = {0};
    for (int threads = 1; threads <= 4; threads++) {
        omp_set_num_threads(threads);
        nib_matrix c = matrix(3, M, N, v.out);
        assert_int_equal(nib_cpu_matmul(ops, a, v.transpose_a, b, v.transpose_b, v.accumulate, c), NIB_OK);
        if (threads == 1)
            first = c;
        else if (memcmp(first.data, c.data, (size_t)(M * c.stride) * size_of(v.out)) != 0)
            fail_msg("%d threads give other bits than one: %d x %d x %d (%s to %s, a%s b%s%s)", threads, (int)M, (int)K,
                     (int)N, nib_dtype_name(v.in), nib_dtype_name(v.out), v.transpose_a ? "^T" : "",
                     v.transpose_b ? "^T" : "", v.accumulate ? ", accumulated" : "");
        if (threads > 1) nib_free(c.data);
    }
    nib_free(a.data);
    nib_free(b.data);
    nib_free(first.data);
}

static void threads_change_no_bit(void **state)
{
    (void)state;
    static const struct {
        int64_t M, N, K;
        bool transpose_a, transpose_b;
    } shapes[] = {
        {2048, 48, 576, false, true},   /* u = x A^T */
        {2048, 960, 576, false, true},  /* q, k, v */
        {512, 576, 1536, false, true},  /* down */
        {512, 1536, 576, false, false}, /* its dx */
        {512, 576, 48, false, false},   /* dx += du A */
        {512, 16, 1536, false, false},  /* du = dy B */
        {16, 576, 2048, true, false},   /* dA = du^T x, dB^T = u^T dy */
        {16, 1536, 4096, true, false},  {4, 128, 8192, true, false},  {576, 576, 1024, true, false}, /* dW */
        {1, 576, 576, false, true},     {1, 4096, 4096, false, true}, {1, 64, 8192, false, true},
        {8, 576, 1536, false, true},    {17, 100, 3000, false, true}, {37, 176, 128, false, true},
        {3, 49152, 576, false, true},   {5, 7, 10000, false, true},   {5, 7, 10000, true, false},
    };
    static const nib_dtype types[][2] = {
        {NIB_DTYPE_F32, NIB_DTYPE_F32}, {NIB_DTYPE_BF16, NIB_DTYPE_F32}, {NIB_DTYPE_BF16, NIB_DTYPE_BF16}};
    const int threads = omp_get_max_threads();
    nib_ops *ops;
    assert_int_equal(nib_cpu_backend_create(512 << 20, &ops), NIB_OK);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int t = 0; t < 3; t++)
            for (int accumulate = 0; accumulate < 2; accumulate++)
                threads_change_no_bit_of(
                    ops, shapes[s].M, shapes[s].N, shapes[s].K,
                    (variant){shapes[s].transpose_a, shapes[s].transpose_b, accumulate, types[t][0], types[t][1]});
    nib_cpu_backend_free(ops);
    omp_set_num_threads(threads);
}
#endif

static void wrong_requests_are_refused(void **state)
{
    (void)state;
    nib_ops *ops;
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    nib_matrix a = matrix(1, 4, 8, NIB_DTYPE_F32), b = matrix(2, 8, 6, NIB_DTYPE_F32),
               c = matrix(3, 4, 6, NIB_DTYPE_F32);
    assert_int_equal(nib_cpu_matmul(ops, a, true, b, false, false, c), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "[8, 4] x [8, 6] into [4, 6]"));
    b.dtype = NIB_DTYPE_F16;
    assert_int_equal(nib_cpu_matmul(ops, a, false, b, false, false, c), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "F32 x F16"));
    nib_cpu_context_of(ops)->bf16_matmul = true; /* mixed operands are for CPUs that widen them */
    b.dtype = NIB_DTYPE_BF16;
    assert_int_equal(nib_cpu_matmul(ops, a, false, b, false, false, c), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "F32 x BF16"));
    nib_free(a.data);
    nib_free(b.data);
    nib_free(c.data);
    nib_cpu_backend_free(ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_variant_agrees_with_double),
#ifdef _OPENMP
        cmocka_unit_test(threads_change_no_bit),
#endif
        cmocka_unit_test(wrong_requests_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
