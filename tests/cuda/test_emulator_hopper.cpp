/* The emulator's sm_90a part: barriers that count bytes, tensor copies, products of warp groups, registers handed over;
 * against plain loops over the layouts that the PTX manual draws, and the mistakes that kernels make with them. */
#include "cuda_check.h"

#include "intrinsics_hopper.cuh"
#include "launch.cuh"

#include <cmath>
#include <random>

namespace
{

uint16_t bf16(float x) { return __float2bfloat16_rn(x).bits; }

/* ---- mbarrier ---- */

/* Ten rounds through one buffer, two barriers used alternately in place of __syncthreads. */
template <bool second> __global__ void rounds_kernel(float *wrong)
{
    float *shared = dynamic_shared<float>();
    uint64_t *barrier = reinterpret_cast<uint64_t *>(shared + 128);
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 128);
        mbarrier_init(barrier + 1, 128);
    }
    __syncthreads();
    for (int round = 0; round < 10; round++) {
        shared[threadIdx.x] = float(round);
        mbarrier_arrive(barrier);
        mbarrier_wait(barrier, round % 2);
        if (shared[(threadIdx.x + 32) % 128] != float(round)) *wrong = 1.0f;
        if (second) {
            mbarrier_arrive(barrier + 1);
            mbarrier_wait(barrier + 1, round % 2);
        }
    }
}

void mbarrier_counts_its_phases(void **)
{
    device_buffer<float> wrong(std::vector<float>{0.0f});
    check_ok(nib_cuda_launch(rounds_kernel<true>, 1, 128, 1024, nullptr, wrong.data()));
    assert_true(wrong.download()[0] == 0.0f);
    check_ok(nib_cuda_launch(rounds_kernel<false>, 1, 128, 1024, nullptr, wrong.data()));
    assert_true(wrong.download()[0] == 1.0f);
}

enum mistake { ARRIVAL_MISSING, BYTES_MISSING, NOT_INITIALISED, OVERWRITTEN, TWICE, TOO_MANY, WRONG_PARITY };
__global__ void barrier_mistake_kernel(int which)
{
    uint64_t *barrier = dynamic_shared<uint64_t>() + 2;
    if (threadIdx.x == 0 && which != NOT_INITIALISED) mbarrier_init(barrier, 2);
    if (threadIdx.x == 0 && which == TWICE) mbarrier_init(barrier, 2);
    __syncthreads();
    if (threadIdx.x == 0 && which == OVERWRITTEN) *barrier = 0;
    __syncthreads();
    if (threadIdx.x == 40) mbarrier_arrive_expect(barrier, which == BYTES_MISSING || which == TOO_MANY ? 64 : 0);
    if (threadIdx.x == 41 && which != ARRIVAL_MISSING) mbarrier_arrive(barrier);
    __syncwarp();
    if (threadIdx.x == 42 && which == TOO_MANY) mbarrier_arrive(barrier);
    mbarrier_wait(barrier, which == WRONG_PARITY ? 2 : 0);
}

void mbarrier_mistakes_are_found(void **)
{
    const struct {
        mistake which;
        const char *text;
    } cases[] = {
        {ARRIVAL_MISSING, "deadlock: 64 threads (first (0,0,0), last (63,0,0)) wait for mbarrier_wait"},
        {ARRIVAL_MISSING, "is in phase 0 and misses 1 of 2 arrivals and 0 bytes, 64 threads wait for it"},
        {BYTES_MISSING, "the mbarrier at byte 16 ("},
        {BYTES_MISSING, "misses 0 of 2 arrivals and 64 bytes"},
        {NOT_INITIALISED, "no mbarrier was initialised at byte 16"},
        {OVERWRITTEN, "the mbarrier at byte 16 of shared memory was overwritten"},
        {TWICE, "there is an mbarrier at byte 16 already"},
        {TOO_MANY, "more than 2 arrivals in a phase that still misses 64 bytes"},
        {WRONG_PARITY, "mbarrier_wait: parity 2"},
    };
    for (auto &one : cases) {
        nib_emulator::reset();
        check_ok(nib_cuda_launch(barrier_mistake_kernel, 1, 64, 64, nullptr, (int)one.which));
        check_kernel_fails(one.text);
    }
    nib_emulator::reset();
    nib_emulator::set_device(8, 0, 4, size_t{1} << 30);
    check_ok(nib_cuda_launch(barrier_mistake_kernel, 1, 64, 64, nullptr, 0));
    check_kernel_fails("mbarrier_init: the device is sm_80");
}

/* ---- TMA ---- */

CUresult encode(CUtensorMap *map, CUtensorMapDataType type, std::vector<cuuint64_t> size,
                std::vector<cuuint64_t> stride, std::vector<cuuint32_t> box, void *base, CUtensorMapSwizzle swizzle,
                std::vector<cuuint32_t> step = {1, 1, 1, 1})
{
    return cuTensorMapEncodeTiled(map, type, (cuuint32_t)size.size(), base, size.data(), stride.data(), box.data(),
                                  step.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

struct copy_parameters {
    CUtensorMap map;
    int rank;
    int4 at;
    unsigned bytes;
};

/* Loads a box and writes shared memory out as it lies there. */
template <bool wait, bool fence> __global__ void load_kernel(const __grid_constant__ copy_parameters p, uint16_t *out)
{
    uint8_t *box = dynamic_shared<uint8_t>();
    uint64_t *barrier = reinterpret_cast<uint64_t *>(box + p.bytes);
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        if (fence) fence_proxy_async();
        mbarrier_arrive_expect(barrier, p.bytes);
        if (p.rank == 2) tma_load(box, &p.map, barrier, make_int2(p.at.x, p.at.y));
        if (p.rank == 3) tma_load(box, &p.map, barrier, make_int3(p.at.x, p.at.y, p.at.z));
        if (p.rank == 4) tma_load(box, &p.map, barrier, p.at);
    }
    __syncthreads();
    if (wait) mbarrier_wait(barrier, 0);
    for (unsigned i = threadIdx.x; i < p.bytes / 2; i += blockDim.x) out[i] = reinterpret_cast<uint16_t *>(box)[i];
    if (!wait) mbarrier_wait(barrier, 0);
}

/* A tensor [4][6][70][40] of 16-bit values (rows 48 apart) through boxes of every rank, each element looked up. */
void tma_loads_boxes(void **)
{
    const int64_t size[4] = {40, 70, 6, 4}, stride[4] = {1, 48, 48 * 72, 48 * 72 * 6};
    std::vector<uint16_t> tensor(size_t(stride[3] * 4));
    for (size_t i = 0; i < tensor.size(); i++) tensor[i] = uint16_t(i * 40503u >> 3);
    device_buffer<uint16_t> device(tensor);
    const struct {
        CUtensorMapSwizzle swizzle;
        int rank, box[4], step[4], at[4];
    } cases[] = {
        {CU_TENSOR_MAP_SWIZZLE_NONE, 2, {24, 9, 1, 1}, {1, 1, 1, 1}, {8, 3, 0, 0}},
        {CU_TENSOR_MAP_SWIZZLE_128B, 2, {64, 32, 1, 1}, {1, 1, 1, 1}, {0, 50, 0, 0}},
        {CU_TENSOR_MAP_SWIZZLE_64B, 2, {32, 64, 1, 1}, {1, 1, 1, 1}, {16, -5, 0, 0}},
        {CU_TENSOR_MAP_SWIZZLE_32B, 2, {16, 40, 1, 1}, {1, 1, 1, 1}, {-3, 40, 0, 0}},
        {CU_TENSOR_MAP_SWIZZLE_128B, 3, {64, 7, 3, 1}, {1, 1, 1, 1}, {5, 66, 4, 0}},
        {CU_TENSOR_MAP_SWIZZLE_64B, 4, {32, 5, 2, 3}, {1, 1, 1, 1}, {33, 1, -1, 2}},
        {CU_TENSOR_MAP_SWIZZLE_32B, 3, {16, 9, 4, 1}, {1, 2, 3, 1}, {0, 63, 1, 0}},
        {CU_TENSOR_MAP_SWIZZLE_NONE, 2, {16, 8, 1, 1}, {1, 1, 1, 1}, {60, 0, 0, 0}},
    };
    for (auto &one : cases) {
        int taken[4], elements = 1;
        for (int d = 0; d < 4; d++) elements *= taken[d] = (one.box[d] + one.step[d] - 1) / one.step[d];
        copy_parameters p = {{}, one.rank, {one.at[0], one.at[1], one.at[2], one.at[3]}, (unsigned)elements * 2};
        auto first = [&](const auto *x, int from) { return std::vector<cuuint64_t>(x + from, x + one.rank); };
        std::vector<cuuint64_t> strides = first(stride, 1);
        for (cuuint64_t &s : strides) s *= 2;
        assert_int_equal(encode(&p.map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, first(size, 0), strides,
                                {one.box, one.box + one.rank}, device.data(), one.swizzle,
                                {one.step, one.step + one.rank}),
                         CUDA_SUCCESS);
        device_buffer<uint16_t> out((size_t)elements);
        check_ok(nib_cuda_launch(load_kernel<true, true>, 1, 64, p.bytes + 8, nullptr, p, out.data()));
        std::vector<uint16_t> result = out.download();
        const int chunks = taken[0] / 8;
        for (int e = 0; e < elements; e++) {
            int i[4] = {e % taken[0], e / taken[0] % taken[1], e / taken[0] / taken[1] % taken[2],
                        e / taken[0] / taken[1] / taken[2]};
            int64_t from = 0;
            bool inside = true;
            for (int d = 0; d < one.rank; d++) {
                int64_t c = one.at[d] + i[d] * one.step[d];
                inside = inside && c >= 0 && c < size[d];
                from += c * stride[d];
            }
            int row = e / taken[0], chunk = i[0] / 8;
            if (one.swizzle == CU_TENSOR_MAP_SWIZZLE_128B) chunk ^= row % 8;
            if (one.swizzle == CU_TENSOR_MAP_SWIZZLE_64B) chunk ^= row / 2 % 4;
            if (one.swizzle == CU_TENSOR_MAP_SWIZZLE_32B) chunk ^= row / 4 % 2;
            assert_int_equal(result[size_t((row * chunks + chunk) * 8 + i[0] % 8)], inside ? tensor[size_t(from)] : 0);
        }
    }
}

copy_parameters plain_box(void *base)
{
    copy_parameters p = {{}, 2, {0, 0, 0, 0}, 64 * 64 * 2};
    assert_int_equal(
        encode(&p.map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, {100, 60}, {208}, {64, 64}, base, CU_TENSOR_MAP_SWIZZLE_128B),
        CUDA_SUCCESS);
    return p;
}

void loads_are_late(void **)
{
    device_buffer<uint16_t> tensor(std::vector<uint16_t>(104 * 60, 7)), out(64 * 64);
    copy_parameters p = plain_box(tensor.data());
    check_ok(nib_cuda_launch(load_kernel<true, true>, 1, 128, p.bytes + 8, nullptr, p, out.data()));
    assert_int_equal(out.download()[0], 7);
    check_ok(nib_cuda_launch(load_kernel<false, true>, 1, 128, p.bytes + 8, nullptr, p, out.data()));
    std::vector<uint16_t> early = out.download();
    assert_true(std::count(early.begin(), early.end(), 0xffff) > 1000);
    check_ok(nib_cuda_launch(load_kernel<true, false>, 1, 128, p.bytes + 8, nullptr, p, out.data()));
    check_kernel_fails("was not fenced by the thread that initialised it");
}

void tensor_maps_follow_the_rules(void **)
{
    device_buffer<uint16_t> tensor(4096);
    CUtensorMap map;
    const auto type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    const auto none = CU_TENSOR_MAP_SWIZZLE_NONE, wide = CU_TENSOR_MAP_SWIZZLE_128B;
    assert_int_equal(encode(&map, type, {64, 8}, {128}, {64, 8}, tensor.data(), wide), CUDA_SUCCESS);
    assert_int_equal(encode(&map, type, {64, 8}, {136}, {64, 8}, tensor.data(), wide), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(encode(&map, type, {64, 8}, {128}, {64, 257}, tensor.data(), wide), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(encode(&map, type, {64, 8}, {128}, {60, 8}, tensor.data(), none), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(encode(&map, type, {128, 8}, {256}, {72, 8}, tensor.data(), wide), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(encode(&map, type, {64, 8}, {128}, {64, 8}, tensor.data() + 4, wide), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(encode(&map, type, {64, 8}, {128}, {64, 8}, tensor.data(), wide, {1, 9}),
                     CUDA_ERROR_INVALID_VALUE);
}

/* Fills a box, thread by thread, and stores it. */
template <bool fence, bool wait> __global__ void store_kernel(const __grid_constant__ copy_parameters p)
{
    uint8_t *box = dynamic_shared<uint8_t>();
    for (unsigned i = threadIdx.x; i < 64 * 8; i += blockDim.x) {
        unsigned row = i / 8, value = row << 8 | i % 8 << 4; /* of the chunk */
        uint4 chunk = make_uint4(value * 0x10001u, value * 0x10001u, value * 0x10001u, value * 0x10001u);
        store16(box + row * 128 + (i % 8 ^ row % 8) * 16, chunk);
    }
    if (fence) fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 37) {
        tma_store(&p.map, make_int2(p.at.x, p.at.y), box);
        tma_store_commit();
        if (wait) tma_store_wait_read<0>();
    }
}

void tma_stores_what_lies_inside(void **)
{
    device_buffer<uint16_t> tensor(std::vector<uint16_t>(104 * 60, 0xabcd));
    copy_parameters p = plain_box(tensor.data());
    p.at = {72, 20, 0, 0};
    check_ok(nib_cuda_launch(store_kernel<true, true>, 1, 128, p.bytes, nullptr, p));
    std::vector<uint16_t> result = tensor.download();
    for (int row = 0; row < 60; row++)
        for (int column = 0; column < 104; column++) {
            int r = row - 20, c = column - 72;
            bool inside = r >= 0 && c >= 0 && column < 100;
            assert_int_equal(result[size_t(row * 104 + column)], inside ? r << 8 | c / 8 << 4 : 0xabcd);
        }
    check_ok(nib_cuda_launch(store_kernel<false, true>, 1, 128, p.bytes, nullptr, p));
    check_kernel_fails("wrote this shared memory and has not called fence_proxy_async since");
    nib_emulator::reset();
    device_buffer<uint16_t> other(104 * 60);
    p = plain_box(other.data());
    check_ok(nib_cuda_launch(store_kernel<true, false>, 1, 128, p.bytes, nullptr, p));
    check_kernel_fails("tma_store_wait_read is missing");
}

/* A row of 16-byte pieces, without a map. */
__global__ void bulk_kernel(const float *from, float *to, unsigned bytes)
{
    float *shared = dynamic_shared<float>();
    uint64_t *barrier = reinterpret_cast<uint64_t *>(shared + 64);
    if (elect_one()) {
        mbarrier_init(barrier, 1);
        fence_proxy_async();
        mbarrier_arrive_expect(barrier, bytes);
        bulk_load(shared, from, bytes, barrier);
    }
    __syncwarp();
    mbarrier_wait(barrier, 0);
    to[threadIdx.x] = shared[threadIdx.x];
}

void bulk_loads_copy_rows(void **)
{
    std::vector<float> values(32);
    for (int i = 0; i < 32; i++) values[i] = float(i);
    device_buffer<float> from(values), to(32);
    check_ok(nib_cuda_launch(bulk_kernel, 1, 32, 264, nullptr, from.data(), to.data(), 128u));
    assert_true(to.download() == values);
    check_ok(nib_cuda_launch(bulk_kernel, 1, 32, 264, nullptr, from.data(), to.data(), 120u));
    check_kernel_fails("bulk_load: 120 bytes misaligned (16)");
    nib_emulator::reset();
    device_buffer<float> small(16), end(32);
    check_ok(nib_cuda_launch(bulk_kernel, 1, 32, 264, nullptr, small.data(), end.data(), 128u));
    check_kernel_fails("bulk_load of 128 bytes at byte 0 of a device buffer of 64 bytes");
}

/* ---- wgmma ---- */

/* One 64 x N x 16 product of operands whose layout in shared memory the host has drawn: a image of A at byte 0, of B
 * behind it. */
struct product_parameters {
    unsigned a_bytes, a_leading, a_stride, b_bytes, b_leading, b_stride;
    wgmma_swizzle a_swizzle, b_swizzle;
};
template <int N8, bool A_MN, bool B_MN, bool RS>
__global__ void product_kernel(product_parameters p, const uint4 *image, const uint16_t *a, float *c)
{
    uint8_t *shared = dynamic_shared<uint8_t>();
    for (unsigned i = threadIdx.x; i < (p.a_bytes + p.b_bytes) / 16; i += 128) store16(shared + 16 * i, image[i]);
    fence_proxy_async();
    __syncthreads();
    unsigned g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, row = threadIdx.x / 32 * 16 + g;
    float sum[N8][4];
    for (int j = 0; j < N8; j++)
        for (int i = 0; i < 4; i++) sum[j][i] = c[(row + i / 2 * 8) * 8 * N8 + 8 * j + 2 * t + i % 2];
    uint64_t right = wgmma_operand(shared + p.a_bytes, p.b_leading, p.b_stride, p.b_swizzle);
    uint32_t left[4];
    for (unsigned i = 0; i < 4; i++) memcpy(&left[i], a + (row + i % 2 * 8) * 16 + 2 * t + i / 2 * 8, 4);
    wgmma_fence();
    if (RS)
        wgmma_bf16_rs<B_MN>(sum, left, right, true);
    else
        wgmma_bf16_ss<A_MN, B_MN>(sum, wgmma_operand(shared, p.a_leading, p.a_stride, p.a_swizzle), right, true);
    wgmma_commit();
    wgmma_wait<0>();
    for (int j = 0; j < N8; j++)
        for (int i = 0; i < 4; i++) c[(row + i / 2 * 8) * 8 * N8 + 8 * j + 2 * t + i % 2] = sum[j][i];
}

/* An operand [rows, 16] drawn in shared memory as the manual's figures show it, blocks with gaps between them. */
struct drawn_operand {
    std::vector<uint16_t> image;
    unsigned leading, stride;

    static size_t round_to_1024_bytes(size_t elements) { return (elements + 511) / 512 * 512; }
    drawn_operand(const std::vector<int> &values, unsigned rows, bool mn_major, wgmma_swizzle swizzle)
    {
        const unsigned width = swizzle == WGMMA_SWIZZLE_128  ? 64
                               : swizzle == WGMMA_SWIZZLE_64 ? 32
                               : swizzle == WGMMA_SWIZZLE_32 ? 16
                                                             : 8; /* elements in a row of the pattern */
        const unsigned block = 8 * width;                         /* elements of eight rows of it */
        const bool plain = swizzle == WGMMA_PLAIN;
        /* Elements from one eight of rows to the next, and from one width to the next. */
        const unsigned along = 2 * block, across = along * ((mn_major ? 2 : rows / 8) + 1);
        image.assign(round_to_1024_bytes(across * (((mn_major ? rows : 16) + width - 1) / width)), bf16(1e30f));
        leading = (mn_major && plain ? along : across) * 2;
        stride = (mn_major && plain ? across : along) * 2;
        for (unsigned row = 0; row < rows; row++)
            for (unsigned k = 0; k < 16; k++) {
                unsigned inner = mn_major ? row : k, outer = mn_major ? k : row;
                unsigned chunk = inner % width / 8, r = outer % 8;
                if (width == 64) chunk ^= r;
                if (width == 32) chunk ^= r / 2;
                if (width == 16) chunk ^= r / 4;
                image[inner / width * across + outer / 8 * along + r * width + chunk * 8 + inner % 8] =
                    bf16(float(values[row * 16 + k]));
            }
    }
};

/* Small integers: every sum is exact, whatever its order. */
template <int N8, bool A_MN, bool B_MN, bool RS> void check_product(wgmma_swizzle a_swizzle, wgmma_swizzle b_swizzle)
{
    std::mt19937 random(11);
    const unsigned N = 8 * N8;
    std::vector<int> a(64 * 16), b(N * 16);
    for (int &x : a) x = int(random() % 13) - 6;
    for (int &x : b) x = int(random() % 13) - 6;
    drawn_operand left(a, 64, A_MN, a_swizzle), right(b, N, B_MN, b_swizzle);
    std::vector<uint16_t> image = left.image, a_bits;
    image.insert(image.end(), right.image.begin(), right.image.end());
    for (int x : a) a_bits.push_back(bf16(float(x)));
    std::vector<float> c(64 * N);
    for (float &x : c) x = float(random() % 100);
    product_parameters p = {unsigned(left.image.size() * 2),
                            left.leading,
                            left.stride,
                            unsigned(right.image.size() * 2),
                            right.leading,
                            right.stride,
                            a_swizzle,
                            b_swizzle};
    device_buffer<uint16_t> device_image(image), device_a(a_bits);
    device_buffer<float> device_c(c);
    check_ok(nib_cuda_launch(product_kernel<N8, A_MN, B_MN, RS>, 1, 128, image.size() * 2, nullptr, p,
                             reinterpret_cast<const uint4 *>(device_image.data()), device_a.data(), device_c.data()));
    std::vector<float> result = device_c.download();
    for (unsigned m = 0; m < 64; m++)
        for (unsigned n = 0; n < N; n++) {
            float wanted = c[m * N + n];
            for (unsigned k = 0; k < 16; k++) wanted += float(a[m * 16 + k] * b[n * 16 + k]);
            assert_true(result[m * N + n] == wanted);
        }
}

void wgmma_reads_every_layout(void **)
{
    for (wgmma_swizzle one : {WGMMA_PLAIN, WGMMA_SWIZZLE_128, WGMMA_SWIZZLE_64, WGMMA_SWIZZLE_32})
        for (wgmma_swizzle other : {WGMMA_PLAIN, WGMMA_SWIZZLE_128, WGMMA_SWIZZLE_64, WGMMA_SWIZZLE_32}) {
            check_product<4, false, false, false>(one, other);
            check_product<8, true, false, false>(one, other);
            check_product<4, false, true, false>(one, other);
            check_product<8, true, true, false>(one, other);
        }
    check_product<16, false, false, false>(WGMMA_SWIZZLE_128, WGMMA_SWIZZLE_128);
    check_product<16, false, true, true>(WGMMA_PLAIN, WGMMA_SWIZZLE_128);
    check_product<8, false, false, true>(WGMMA_PLAIN, WGMMA_SWIZZLE_64);
}

enum product_mistake {
    RIGHT,
    NO_FENCE,
    NO_PROXY_FENCE,
    READ_EARLY,
    WRITTEN_EARLY,
    OVERWRITTEN_OPERAND,
    NO_WAIT,
    WARP_MISSING,
    DIVERGENT,
    BEYOND
};
/* Two products into the same sums, in two groups. */
__global__ void product_mistake_kernel(int which, float *out)
{
    uint8_t *shared = dynamic_shared<uint8_t>();
    for (unsigned i = threadIdx.x; i < 64 * 8; i += 128) store16(shared + 16 * i, make_uint4(0, 0, 0, 0));
    if (which != NO_PROXY_FENCE) fence_proxy_async();
    __syncthreads();
    if (which == WARP_MISSING && threadIdx.x / 32 == 2) return;
    uint64_t operand = wgmma_operand(shared + (which == BEYOND ? 4096 : 0), 1, 1024, WGMMA_SWIZZLE_128);
    float sum[8][4];
    if (which != NO_FENCE) wgmma_fence();
    if (which == DIVERGENT && threadIdx.x < 32)
        wgmma_bf16_ss<false, false>(sum, operand, operand, false);
    else
        wgmma_bf16_ss<false, false>(sum, operand, operand, false);
    wgmma_commit();
    wgmma_fence();
    wgmma_bf16_ss<false, false>(sum, operand, operand, true);
    wgmma_commit();
    wgmma_wait<1>();
    if (which == READ_EARLY) out[threadIdx.x] = sum[3][2];
    if (which == WRITTEN_EARLY) sum[3][2] = 0.0f;
    if (which == OVERWRITTEN_OPERAND && threadIdx.x == 5) shared[1] = 0x3f;
    if (which != NO_WAIT) wgmma_wait<0>();
    if (which == RIGHT) out[threadIdx.x] = sum[3][2];
}

void wgmma_mistakes_are_found(void **)
{
    const struct {
        product_mistake which;
        const char *text;
    } cases[] = {
        {NO_FENCE, "no wgmma_fence since the thread's last wgmma_commit"},
        {NO_PROXY_FENCE, "wrote its operand and has not called fence_proxy_async since"},
        {WRITTEN_EARLY, "were written while it was under way"},
        {OVERWRITTEN_OPERAND, "an operand of wgmma_bf16_ss ("},
        {NO_WAIT, "ended while a wgmma is under way: wgmma_wait is missing"},
        {WARP_MISSING, "wgmma_bf16_ss"},
        {DIVERGENT, "divergence: is at this wgmma_bf16_ss while others of its warp group are at wgmma_bf16_ss"},
        {BEYOND, "the operand at byte 4096 reaches beyond 8192 bytes of shared memory"},
    };
    for (int which : {RIGHT, READ_EARLY}) {
        device_buffer<float> out(128);
        check_ok(nib_cuda_launch(product_mistake_kernel, 1, 128, 8192, nullptr, which, out.data()));
        for (float x : out.download()) assert_true(which == RIGHT ? x == 0.0f : std::isnan(x));
    }
    for (auto &one : cases) {
        nib_emulator::reset();
        device_buffer<float> out(128);
        check_ok(nib_cuda_launch(product_mistake_kernel, 1, 128, 8192, nullptr, (int)one.which, out.data()));
        check_kernel_fails(one.text);
    }
}

/* Five warps: four multiply and free the operand, the fifth overwrites it as soon as it is free. */
template <bool early> __global__ void freed_kernel()
{
    uint8_t *shared = dynamic_shared<uint8_t>();
    uint64_t *freed = reinterpret_cast<uint64_t *>(shared + 8192);
    for (unsigned i = threadIdx.x; i < 64 * 8; i += 160) store16(shared + 16 * i, make_uint4(0, 0, 0, 0));
    if (threadIdx.x == 0) mbarrier_init(freed, 4);
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x >= 128) {
        mbarrier_wait(freed, 0);
        shared[threadIdx.x % 32] = 0x3f;
        return;
    }
    uint64_t operand = wgmma_operand(shared, 1, 1024, WGMMA_SWIZZLE_128);
    float sum[8][4];
    wgmma_fence();
    wgmma_bf16_ss<false, false>(sum, operand, operand, false);
    wgmma_commit();
    if (early && threadIdx.x % 32 == 0) mbarrier_arrive(freed);
    wgmma_wait<0>();
    if (!early && threadIdx.x % 32 == 0) mbarrier_arrive(freed);
}

void an_operand_freed_too_early_is_found(void **)
{
    for (int i = 0; i < 20; i++) check_ok(nib_cuda_launch(freed_kernel<false>, 1, 160, 8200, nullptr));
    check_cuda(cudaDeviceSynchronize());
    for (int i = 0; i < 20; i++) check_ok(nib_cuda_launch(freed_kernel<true>, 1, 160, 8200, nullptr));
    check_kernel_fails("was overwritten while it was under way");
}

/* ---- setmaxnreg, elect ---- */

/* 384 threads begin with 168 registers each. */
template <int LOW, int HIGH> __global__ void registers_kernel()
{
    if (threadIdx.x < 128)
        lower_registers<LOW>();
    else
        raise_registers<HIGH>();
}

void registers_are_handed_over(void **)
{
    check_ok(nib_cuda_launch((registers_kernel<24, 240>), 1, 384, 0, nullptr));
    check_cuda(cudaDeviceSynchronize());
    check_ok(nib_cuda_launch((registers_kernel<32, 240>), 1, 384, 0, nullptr));
    check_kernel_fails("wants 240 registers a thread, it has 168 and 64 a thread are free");
    nib_emulator::reset();
    check_ok(nib_cuda_launch((registers_kernel<176, 240>), 1, 384, 0, nullptr));
    check_kernel_fails("lower_registers: to 176 registers from 168");
}

__global__ void elect_kernel(int *count)
{
    bool first = elect_one();
    if (first) atomicAdd(count, 1);
    if (first != elect_one()) atomicAdd(count, 100);
}

void one_lane_is_elected(void **)
{
    device_buffer<int> count(std::vector<int>{0});
    check_ok(nib_cuda_launch(elect_kernel, 3, 64, 0, nullptr, count.data()));
    assert_int_equal(count.download()[0], 6);
}

__global__ void barrier_left_kernel() { named_barrier_arrive(3, 64); }

void arrivals_that_nobody_waits_for_are_found(void **)
{
    check_ok(nib_cuda_launch(barrier_left_kernel, 1, 32, 0, nullptr));
    check_kernel_fails("all threads ended while 32 have arrived at barrier 3");
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(mbarrier_counts_its_phases, reset_emulator),
        cmocka_unit_test_setup(mbarrier_mistakes_are_found, reset_emulator),
        cmocka_unit_test_setup(tma_loads_boxes, reset_emulator),
        cmocka_unit_test_setup(loads_are_late, reset_emulator),
        cmocka_unit_test_setup(tensor_maps_follow_the_rules, reset_emulator),
        cmocka_unit_test_setup(tma_stores_what_lies_inside, reset_emulator),
        cmocka_unit_test_setup(bulk_loads_copy_rows, reset_emulator),
        cmocka_unit_test_setup(wgmma_reads_every_layout, reset_emulator),
        cmocka_unit_test_setup(wgmma_mistakes_are_found, reset_emulator),
        cmocka_unit_test_setup(an_operand_freed_too_early_is_found, reset_emulator),
        cmocka_unit_test_setup(registers_are_handed_over, reset_emulator),
        cmocka_unit_test_setup(one_lane_is_elected, reset_emulator),
        cmocka_unit_test_setup(arrivals_that_nobody_waits_for_are_found, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
