/* The warp's matrices: ldmatrix, stmatrix, mma.sync, by the fragment tables of the PTX ISA. */
#include "block.h"
#include "include/cuda_fp16.h"
#include "include/cuda_fp8.h"
#include "include/emulated_intrinsics.h"

#include <algorithm>

namespace nib_emulator
{

/* ---- ldmatrix, stmatrix ---- */

struct MatricesArgument {
    const void *row;
    uint32_t m[4];
};

/* Rows r of matrix i come from lanes 8 i + r. A warp reads a matrix in one pass if its eight rows lie in different
 * groups of four banks. */
static void count_conflicts(void *const argument[warp_size])
{
    for (int i = 0; i < 4; i++) {
        unsigned used[8] = {}, passes = 0;
        for (int r = 0; r < 8; r++) {
            uintptr_t row = reinterpret_cast<uintptr_t>(static_cast<MatricesArgument *>(argument[8 * i + r])->row);
            passes = std::max(passes, ++used[row / 16 % 8]);
        }
        Block::current->counters().bank_conflicts += passes - 1;
    }
}

static void check_row(const char *name, Site site, const void *row)
{
    Block &block = *Block::current;
    if (!block.is_shared(row, 16) || reinterpret_cast<uintptr_t>(row) % 16 != 0)
        block.fail(site, "%s: a row is misaligned or not in the block's shared memory (byte %td)", name,
                   static_cast<const uint8_t *>(row) - block.shared());
}

/* A row is an access of the lane that names it. */
static void share_row(const void *row, Access kind)
{
    Block &block = *Block::current;
    block.share(static_cast<size_t>(static_cast<const uint8_t *>(row) - block.shared()), 16, kind);
}

template <bool transposed> static void load_all(uint32_t, void *const argument[warp_size])
{
    count_conflicts(argument);
    for (unsigned lane = 0; lane < warp_size; lane++) {
        unsigned g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 4; i++) {
            uint32_t word = 0;
            for (unsigned h = 0; h < 2; h++) {
                unsigned row = transposed ? 2 * t + h : g, column = transposed ? g : 2 * t + h;
                uint16_t value;
                const void *from = static_cast<MatricesArgument *>(argument[8 * i + row])->row;
                std::memcpy(&value, static_cast<const uint8_t *>(from) + 2 * column, 2);
                word |= static_cast<uint32_t>(value) << (16 * h);
            }
            static_cast<MatricesArgument *>(argument[lane])->m[i] = word;
        }
    }
}

void load_matrices(const char *name, Site site, uint32_t (&m)[4], const void *row, bool transposed)
{
    check_row(name, site, row);
    share_row(row, Access::read);
    MatricesArgument argument{row, {}};
    Block::current->meet(name, site, ~0u, true, &argument, transposed ? load_all<true> : load_all<false>);
    std::copy_n(argument.m, 4, m);
}

void store_matrices(const char *name, Site site, void *row, const uint32_t (&m)[4])
{
    check_row(name, site, row);
    Block &block = *Block::current;
    block.hopper().wrote(block.thread_index(), static_cast<size_t>(static_cast<uint8_t *>(row) - block.shared()), 16);
    share_row(row, Access::write);
    MatricesArgument argument{row, {m[0], m[1], m[2], m[3]}};
    block.meet(name, site, ~0u, true, &argument, [](uint32_t, void *const all[warp_size]) {
        count_conflicts(all);
        for (unsigned lane = 0; lane < warp_size; lane++) {
            unsigned g = lane / 4, t = lane % 4;
            for (unsigned i = 0; i < 4; i++) {
                const void *to = static_cast<MatricesArgument *>(all[8 * i + g])->row;
                uint8_t *at = static_cast<uint8_t *>(const_cast<void *>(to)) + 4 * t;
                std::memcpy(at, &static_cast<MatricesArgument *>(all[lane])->m[i], 4);
            }
        }
    });
}

/* ---- mma ---- */

struct MultiplyArgument {
    float *c;
    const uint32_t *a;
    uint32_t b[2];
    MatrixType type;
};

/* The values packed in one word, first in the low bits. */
static int unpack(MatrixType type, uint32_t word, float value[4])
{
    switch (type) {
    case MatrixType::bf16:
        value[0] = __uint_as_float(word << 16);
        value[1] = __uint_as_float(word & 0xffff0000u);
        return 2;
    case MatrixType::f16:
        value[0] = __half2float(__ushort_as_half(static_cast<uint16_t>(word)));
        value[1] = __half2float(__ushort_as_half(static_cast<uint16_t>(word >> 16)));
        return 2;
    case MatrixType::e4m3:
        for (int i = 0; i < 4; i++) value[i] = e4m3_to_float(static_cast<uint8_t>(word >> (8 * i)));
        return 4;
    }
    return 0;
}

/* C += A B. Products are exact; the chip's order of the sum is not known, this one is by k. */
static void multiply_all(uint32_t, void *const argument[warp_size])
{
    float A[16][32], B[32][8], C[16][8];
    MatrixType type = static_cast<MultiplyArgument *>(argument[0])->type;
    int packed = type == MatrixType::e4m3 ? 4 : 2, K = 8 * packed;
    for (int lane = 0; lane < warp_size; lane++) {
        const MultiplyArgument &mine = *static_cast<MultiplyArgument *>(argument[lane]);
        int g = lane / 4, t = lane % 4;
        float value[4];
        for (int i = 0; i < 4; i++) {
            unpack(type, mine.a[i], value);
            for (int h = 0; h < packed; h++) A[g + i % 2 * 8][i / 2 * 4 * packed + t * packed + h] = value[h];
        }
        for (int i = 0; i < 2; i++) {
            unpack(type, mine.b[i], value);
            for (int h = 0; h < packed; h++) B[i * 4 * packed + t * packed + h][g] = value[h];
        }
        for (int i = 0; i < 4; i++) C[g + i / 2 * 8][2 * t + i % 2] = mine.c[i];
    }
    for (int m = 0; m < 16; m++) {
        float sum[8] = {};
        for (int k = 0; k < K; k++)
            for (int n = 0; n < 8; n++) sum[n] += A[m][k] * B[k][n];
        for (int n = 0; n < 8; n++) C[m][n] += sum[n];
    }
    for (int lane = 0; lane < warp_size; lane++) {
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++)
            static_cast<MultiplyArgument *>(argument[lane])->c[i] = C[g + i / 2 * 8][2 * t + i % 2];
    }
    Block::current->counters().matrix_products++;
}

void multiply(const char *name, Site site, MatrixType type, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
              uint32_t b1)
{
    MultiplyArgument argument{c, a, {b0, b1}, type};
    Block::current->meet(name, site, ~0u, true, &argument, multiply_all);
}

void named_barrier(const char *name, Site site, unsigned id, unsigned threads, bool wait)
{
    if (id == 0) Block::current->fail(site, "%s: barrier 0 is that of __syncthreads; 1 to 15", name);
    Block::current->barrier(name, site, id, threads, 1, wait);
}

} // namespace nib_emulator
