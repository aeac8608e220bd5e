/* What kernels did, counted: the traffic that a bandwidth-bound kernel is judged by, and the bank conflicts that a
 * layout is chosen to avoid. Exact, unlike time on an emulator. Plain loads and stores through pointers are not seen:
 * only those of cuda/intrinsics.cuh. */
#ifndef NIB_EMULATOR_COUNTERS_H
#define NIB_EMULATOR_COUNTERS_H

#include <cstdint>

namespace nib_emulator
{

struct Counters {
    uint64_t blocks = 0;
    uint64_t switches = 0;        /* of fibers */
    uint64_t matrix_products = 0; /* mma and wgmma instructions, of a warp or a warp group */
    uint64_t global_read = 0;     /* bytes */
    uint64_t global_written = 0;  /* bytes */
    uint64_t bank_conflicts = 0;  /* passes over shared memory beyond the first, of ldmatrix, stmatrix and cp.async */
    uint64_t async_copies = 0;

    void add(const Counters &other)
    {
        blocks += other.blocks;
        switches += other.switches;
        matrix_products += other.matrix_products;
        global_read += other.global_read;
        global_written += other.global_written;
        bank_conflicts += other.bank_conflicts;
        async_copies += other.async_copies;
    }
};

} // namespace nib_emulator

#endif
