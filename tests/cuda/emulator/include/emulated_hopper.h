/* The emulated meaning of cuda/intrinsics_hopper.cuh, function by function; the contracts stand there. */
#ifndef NIB_EMULATOR_EMULATED_HOPPER_H
#define NIB_EMULATOR_EMULATED_HOPPER_H

#include "cuda.h"
#include "emulated_intrinsics.h"

namespace nib_emulator
{

void barrier_init(Site site, uint64_t *barrier, unsigned arrivals);
void barrier_arrive(const char *name, Site site, uint64_t *barrier, unsigned bytes);
void barrier_wait(Site site, uint64_t *barrier, unsigned parity);
void fence_async(Site site);
bool elect(Site site);

void load_tensor(Site site, void *shared, const CUtensorMap *map, uint64_t *barrier, int rank, const int *coordinate);
void load_bulk(Site site, void *shared, const void *global, unsigned bytes, uint64_t *barrier);
void store_tensor(Site site, const void *shared, const CUtensorMap *map, int rank, const int *coordinate);
void commit_stores(Site site);
void wait_stores(Site site, unsigned pending);

/* a: the fragments in registers, or nullptr for the operand of a_descriptor. */
void multiply_group(const char *name, Site site, float *sum, unsigned n, const uint32_t *a, uint64_t a_descriptor,
                    bool a_mn_major, uint64_t b_descriptor, bool b_mn_major, bool accumulate);
void fence_products(Site site);
void commit_products(Site site);
void wait_products(Site site, unsigned pending);
void limit_registers(const char *name, Site site, unsigned registers, bool raise);

} // namespace nib_emulator

inline void mbarrier_init(uint64_t *barrier, unsigned arrivals, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::barrier_init(site, barrier, arrivals);
}
inline void mbarrier_arrive(uint64_t *barrier, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::barrier_arrive("mbarrier_arrive", site, barrier, 0);
}
inline void mbarrier_arrive_expect(uint64_t *barrier, unsigned bytes,
                                   nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::barrier_arrive("mbarrier_arrive_expect", site, barrier, bytes);
}
inline void mbarrier_wait(uint64_t *barrier, unsigned parity, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::barrier_wait(site, barrier, parity);
}
inline void fence_proxy_async(nib_emulator::Site site = nib_emulator::Site::here()) { nib_emulator::fence_async(site); }
inline bool elect_one(nib_emulator::Site site = nib_emulator::Site::here()) { return nib_emulator::elect(site); }

inline void tma_load(void *shared, const CUtensorMap *map, uint64_t *barrier, int2 at,
                     nib_emulator::Site site = nib_emulator::Site::here())
{
    const int coordinate[] = {at.x, at.y};
    nib_emulator::load_tensor(site, shared, map, barrier, 2, coordinate);
}
inline void tma_load(void *shared, const CUtensorMap *map, uint64_t *barrier, int3 at,
                     nib_emulator::Site site = nib_emulator::Site::here())
{
    const int coordinate[] = {at.x, at.y, at.z};
    nib_emulator::load_tensor(site, shared, map, barrier, 3, coordinate);
}
inline void tma_load(void *shared, const CUtensorMap *map, uint64_t *barrier, int4 at,
                     nib_emulator::Site site = nib_emulator::Site::here())
{
    const int coordinate[] = {at.x, at.y, at.z, at.w};
    nib_emulator::load_tensor(site, shared, map, barrier, 4, coordinate);
}
inline void tma_store(const CUtensorMap *map, int2 at, const void *shared,
                      nib_emulator::Site site = nib_emulator::Site::here())
{
    const int coordinate[] = {at.x, at.y};
    nib_emulator::store_tensor(site, shared, map, 2, coordinate);
}
inline void tma_store(const CUtensorMap *map, int3 at, const void *shared,
                      nib_emulator::Site site = nib_emulator::Site::here())
{
    const int coordinate[] = {at.x, at.y, at.z};
    nib_emulator::store_tensor(site, shared, map, 3, coordinate);
}
inline void tma_store(const CUtensorMap *map, int4 at, const void *shared,
                      nib_emulator::Site site = nib_emulator::Site::here())
{
    const int coordinate[] = {at.x, at.y, at.z, at.w};
    nib_emulator::store_tensor(site, shared, map, 4, coordinate);
}
inline void tma_store_commit(nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::commit_stores(site);
}
template <int N> void tma_store_wait_read(nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::wait_stores(site, N);
}
inline void bulk_load(void *shared, const void *global, unsigned bytes, uint64_t *barrier,
                      nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::load_bulk(site, shared, global, bytes, barrier);
}

inline uint32_t shared_address(const void *at)
{
    return static_cast<uint32_t>(static_cast<const uint8_t *>(at) -
                                 static_cast<const uint8_t *>(nib_emulator::shared_memory()));
}
inline void wgmma_fence(nib_emulator::Site site = nib_emulator::Site::here()) { nib_emulator::fence_products(site); }
inline void wgmma_commit(nib_emulator::Site site = nib_emulator::Site::here()) { nib_emulator::commit_products(site); }
template <int N> void wgmma_wait(nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::wait_products(site, N);
}
template <int N8> void wgmma_settle(float (&)[N8][4]) {}
template <bool A_MN_MAJOR, bool B_MN_MAJOR, int N8>
void wgmma_bf16_ss(float (&c)[N8][4], uint64_t a, uint64_t b, bool accumulate,
                   nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::multiply_group("wgmma_bf16_ss", site, &c[0][0], 8 * N8, nullptr, a, A_MN_MAJOR, b, B_MN_MAJOR,
                                 accumulate);
}
template <bool B_MN_MAJOR, int N8>
void wgmma_bf16_rs(float (&c)[N8][4], const uint32_t (&a)[4], uint64_t b, bool accumulate,
                   nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::multiply_group("wgmma_bf16_rs", site, &c[0][0], 8 * N8, a, 0, false, b, B_MN_MAJOR, accumulate);
}

template <int REGISTERS> void raise_registers(nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::limit_registers("raise_registers", site, REGISTERS, true);
}
template <int REGISTERS> void lower_registers(nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::limit_registers("lower_registers", site, REGISTERS, false);
}

#endif
