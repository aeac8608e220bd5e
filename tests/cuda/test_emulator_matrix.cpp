/* The emulator's matrices and asynchronous copies against plain loops over the PTX manual's fragment tables, and the
 * mistakes that kernels make with them. */
#include "cuda_check.h"

#include "intrinsics.cuh"
#include "launch.cuh"

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cmath>
#include <random>

namespace
{

/* ---- mma: one warp, C[16][8] += A[16][K] B[K][8]; every lane takes its fragments straight from memory ---- */

enum { BF16, F16, E4M3 };

template <int kind, int K, class T> __global__ void mma_kernel(const T *a, const T *b, float *c)
{
    int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    constexpr int per_word = 4 / sizeof(T);
    auto word = [](const T *matrix, int row, int row_length, int column) {
        uint32_t w;
        memcpy(&w, matrix + row * row_length + column, 4);
        return w;
    };
    /* b is given transposed, [8][K], so that a word's values lie side by side */
    uint32_t fragment[4] = {word(a, g, K, per_word * t), word(a, g + 8, K, per_word * t),
                            word(a, g, K, per_word * t + K / 2), word(a, g + 8, K, per_word * t + K / 2)};
    uint32_t b0 = word(b, g, K, per_word * t), b1 = word(b, g, K, per_word * t + K / 2);
    float sum[4] = {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1], c[(g + 8) * 8 + 2 * t], c[(g + 8) * 8 + 2 * t + 1]};
    if (kind == BF16) mma_m16n8k16_bf16(sum, fragment, b0, b1);
    if (kind == F16) mma_m16n8k16_f16(sum, fragment, b0, b1);
    if (kind == E4M3) mma_m16n8k32_e4m3(sum, fragment, b0, b1);
    c[g * 8 + 2 * t] = sum[0];
    c[g * 8 + 2 * t + 1] = sum[1];
    c[(g + 8) * 8 + 2 * t] = sum[2];
    c[(g + 8) * 8 + 2 * t + 1] = sum[3];
}

/* Small integers: every sum is exact, whatever its order. */
template <int kind, int K, class T, class Encode> void check_mma(Encode encode)
{
    std::mt19937 random(7);
    std::vector<int> a(16 * K), b(8 * K);
    std::vector<T> ea, eb;
    for (int &x : a) ea.push_back(encode(float(x = int(random() % 13) - 6)));
    for (int &x : b) eb.push_back(encode(float(x = int(random() % 13) - 6)));
    std::vector<float> c(16 * 8);
    for (float &x : c) x = float(random() % 100);
    device_buffer<T> da(ea), db(eb);
    device_buffer<float> dc(c);
    check_ok(nib_cuda_launch(mma_kernel<kind, K, T>, 1, 32, 0, nullptr, da.data(), db.data(), dc.data()));
    std::vector<float> result = dc.download();
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++) {
            float wanted = c[m * 8 + n];
            for (int k = 0; k < K; k++) wanted += float(a[m * K + k] * b[n * K + k]);
            assert_true(result[m * 8 + n] == wanted);
        }
    assert_int_equal(nib_emulator::counters().matrix_products, 1);
}

void mma_bf16(void **)
{
    check_mma<BF16, 16, __nv_bfloat16>([](float x) { return __float2bfloat16_rn(x); });
}
void mma_f16(void **)
{
    check_mma<F16, 16, __half>([](float x) { return __float2half_rn(x); });
}
void mma_e4m3(void **)
{
    check_mma<E4M3, 32, uint8_t>([](float x) { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); });
}

/* The code of every e4m3 number is the nearest one to itself and to its surroundings; OCP's specification names a few.
 */
void e4m3_conversions(void **)
{
    assert_true(nib_emulator::e4m3_to_float(0x7e) == 448.0f);
    assert_true(nib_emulator::e4m3_to_float(0x08) == 0.015625f);
    assert_true(nib_emulator::e4m3_to_float(0x01) == 0.001953125f);
    assert_true(std::isnan(nib_emulator::e4m3_to_float(0xff)));
    assert_int_equal(nib_emulator::e4m3_from_float(1e6f, true), 0x7e);
    assert_int_equal(nib_emulator::e4m3_from_float(1e6f, false), 0x7f);
    assert_int_equal(nib_emulator::e4m3_from_float(-0.0f, true), 0x80);
    for (int code = 0; code < 0x7e; code++) {
        float x = nib_emulator::e4m3_to_float(uint8_t(code)), next = nib_emulator::e4m3_to_float(uint8_t(code + 1));
        float middle = (x + next) / 2; /* exact; ties to the even code */
        assert_int_equal(nib_emulator::e4m3_from_float(x, true), code);
        assert_int_equal(nib_emulator::e4m3_from_float(middle, true), code + code % 2);
        assert_int_equal(nib_emulator::e4m3_from_float(nextafterf(middle, 0), true), code);
        assert_int_equal(nib_emulator::e4m3_from_float(-nextafterf(middle, 1e9f), true), (code + 1) | 0x80);
    }
}

/* ---- ldmatrix, stmatrix ---- */

/* Four 8 x 8 matrices side by side in shared memory, rows `stride` values apart. */
__global__ void ldmatrix_kernel(const uint16_t *from, uint32_t *plain, uint32_t *transposed, uint16_t *back, int stride)
{
    uint16_t *shared = dynamic_shared<uint16_t>();
    int lane = threadIdx.x;
    for (int i = lane; i < 8 * 32; i += 32) shared[i / 32 * stride + i % 32] = from[i];
    __syncwarp();
    const uint16_t *row = shared + lane % 8 * stride + lane / 8 * 8;
    uint32_t m[4];
    ldmatrix_x4(m, row);
    for (int i = 0; i < 4; i++) plain[i * 32 + lane] = m[i];
    stmatrix_x4(shared + (8 + lane % 8) * stride + lane / 8 * 8, m);
    ldmatrix_x4_trans(m, row);
    for (int i = 0; i < 4; i++) transposed[i * 32 + lane] = m[i];
    __syncwarp();
    for (int i = lane; i < 8 * 32; i += 32) back[i] = shared[(8 + i / 32) * stride + i % 32];
}

uint64_t run_ldmatrix(int stride)
{
    nib_emulator::reset_counters();
    std::vector<uint16_t> from(8 * 32);
    for (size_t i = 0; i < from.size(); i++) from[i] = uint16_t(i * 7 + 1);
    device_buffer<uint16_t> dfrom(from), back(8 * 32);
    device_buffer<uint32_t> plain(4 * 32), transposed(4 * 32);
    check_ok(nib_cuda_launch(ldmatrix_kernel, 1, 32, 16 * stride * 2, nullptr, dfrom.data(), plain.data(),
                             transposed.data(), back.data(), stride));
    std::vector<uint32_t> p = plain.download(), t = transposed.download();
    auto at = [&](int matrix, int row, int column) { return uint32_t(from[row * 32 + matrix * 8 + column]); };
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < 32; lane++) {
            int g = lane / 4, c = 2 * (lane % 4);
            assert_int_equal(p[i * 32 + lane], at(i, g, c) | at(i, g, c + 1) << 16);
            assert_int_equal(t[i * 32 + lane], at(i, c, g) | at(i, c + 1, g) << 16);
        }
    assert_true(back.download() == from);
    return nib_emulator::counters().bank_conflicts;
}

/* Rows of 64 bytes: two share their banks, four ways for eight rows... counted; rows of 80 bytes: none. */
void ldmatrix_and_its_bank_conflicts(void **)
{
    assert_int_equal(run_ldmatrix(40), 0);
    assert_int_equal(run_ldmatrix(32), 3 * 4 * 3); /* 3 instructions, 4 matrices, 8 rows in 2 groups: 4 passes */
    assert_int_equal(run_ldmatrix(64), 3 * 4 * 7);
}

__global__ void misaligned_row_kernel()
{
    uint32_t m[4];
    ldmatrix_x4(m, dynamic_shared<uint16_t>() + threadIdx.x * 8 + (threadIdx.x == 9 ? 1 : 0));
}

__global__ void absent_lane_kernel()
{
    uint32_t m[4];
    if (threadIdx.x != 9) ldmatrix_x4(m, dynamic_shared<uint16_t>() + threadIdx.x * 8);
}

void ldmatrix_mistakes_are_found(void **)
{
    check_ok(nib_cuda_launch(misaligned_row_kernel, 1, 32, 1024, nullptr));
    check_kernel_fails("thread (9,0,0)");
    check_kernel_fails("ldmatrix_x4: a row is misaligned or not in the block's shared memory (byte 146)");
    nib_emulator::reset();
    check_ok(nib_cuda_launch(absent_lane_kernel, 1, 32, 1024, nullptr));
    check_kernel_fails("ldmatrix_x4");
}

/* ---- cp.async ---- */

/* Two tiles in flight; `wait` groups may still be on their way when the first is read. */
template <int wait, bool barrier> __global__ void copy_kernel(const float *from, float *to, int n)
{
    float *shared = dynamic_shared<float>();
    int i = 4 * threadIdx.x;
    cp_async_16(shared + i, from + i, i < n);
    cp_async_commit();
    cp_async_16(shared + 512 + i, from + i, true);
    cp_async_commit();
    cp_async_wait<wait>();
    if (barrier) __syncthreads();
    for (int j = 0; j < 4; j++) to[i + j] = shared[(i + j + 256) % 512];
}

template <int wait, bool barrier> std::vector<float> copied(int n)
{
    std::vector<float> from(512);
    for (int i = 0; i < 512; i++) from[i] = float(i);
    device_buffer<float> dfrom(from), to(512);
    check_ok(nib_cuda_launch(copy_kernel<wait, barrier>, 1, 128, 4096, nullptr, dfrom.data(), to.data(), n));
    return to.download();
}

void copies_land_at_their_wait(void **)
{
    std::vector<float> right = copied<1, true>(300);
    for (int i = 0; i < 512; i++) assert_true(right[i] == ((i + 256) % 512 < 300 ? float((i + 256) % 512) : 0.0f));
}

bool has_nan(const std::vector<float> &x)
{
    for (float value : x)
        if (std::isnan(value)) return true;
    return false;
}

void a_weaker_wait_shows(void **)
{
    std::vector<float> wrong = copied<2, true>(512);
    for (float value : wrong) assert_true(std::isnan(value)); /* nothing has landed */
}

void a_missing_barrier_after_the_wait_shows(void **) { assert_true(has_nan(copied<1, false>(512))); }

__global__ void bad_copy_kernel(const float *from, int shared_at, int global_at)
{
    cp_async_16(dynamic_shared<float>() + shared_at, from + global_at, true);
}

void bad_copies_are_found(void **)
{
    struct {
        int shared, global;
        const char *text;
    } cases[] = {{1, 0, "cp_async_16: the destination is misaligned"},
                 {32, 0, "cp_async_16: the destination is misaligned or not in the block's shared memory"},
                 {0, 2, "cp_async_16 of 16 bytes is misaligned"},
                 {0, 64, "cp_async_16 of 16 bytes at byte 256 of a device buffer of 256 bytes"}};
    for (auto &one : cases) {
        nib_emulator::reset();
        device_buffer<float> from(64);
        check_ok(nib_cuda_launch(bad_copy_kernel, 1, 1, 128, nullptr, from.data(), one.shared, one.global));
        check_kernel_fails(one.text);
    }
}

/* ---- the rest of intrinsics.cuh ---- */

__global__ void philox_kernel(uint32_t *out)
{
    uint4 w = philox4x32(0x0123456789abcdefull, 77, 1ull << 40 | 5);
    out[0] = w.x, out[1] = w.y, out[2] = w.z, out[3] = w.w;
}

void philox_is_the_cpus(void **)
{
    device_buffer<uint32_t> out(4);
    check_ok(nib_cuda_launch(philox_kernel, 1, 1, 0, nullptr, out.data()));
    uint32_t wanted[4];
    nib_philox(0x0123456789abcdefull, 77, 1ull << 40 | 5, wanted);
    std::vector<uint32_t> result = out.download();
    assert_memory_equal(result.data(), wanted, sizeof wanted);
}

void bf16_conversions_are_the_cpus(void **)
{
    std::mt19937 random(3);
    for (int i = 0; i < 100000; i++) {
        float x = __uint_as_float(uint32_t(random()));
        if (std::isnan(x)) continue;
        assert_int_equal(to_bf16(x).bits, nib_bf16_from_float(x).bits);
        assert_int_equal(pack_bf16(x, -x) & 0xffff, nib_bf16_from_float(x).bits);
        assert_int_equal(pack_bf16(x, -x) >> 16, nib_bf16_from_float(-x).bits);
    }
    assert_true(unpack_bf16(0x40003f80u).x == 1.0f && unpack_bf16(0x40003f80u).y == 2.0f);
    assert_true(exp2_approx(-130.0f) == 0.0f && exp2_approx(3.0f) == 8.0f && exp2_approx(-INFINITY) == 0.0f);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(mma_bf16, reset_emulator),
        cmocka_unit_test_setup(mma_f16, reset_emulator),
        cmocka_unit_test_setup(mma_e4m3, reset_emulator),
        cmocka_unit_test_setup(e4m3_conversions, reset_emulator),
        cmocka_unit_test_setup(ldmatrix_and_its_bank_conflicts, reset_emulator),
        cmocka_unit_test_setup(ldmatrix_mistakes_are_found, reset_emulator),
        cmocka_unit_test_setup(copies_land_at_their_wait, reset_emulator),
        cmocka_unit_test_setup(a_weaker_wait_shows, reset_emulator),
        cmocka_unit_test_setup(a_missing_barrier_after_the_wait_shows, reset_emulator),
        cmocka_unit_test_setup(bad_copies_are_found, reset_emulator),
        cmocka_unit_test_setup(philox_is_the_cpus, reset_emulator),
        cmocka_unit_test_setup(bf16_conversions_are_the_cpus, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
