/* TMA: tensor maps (CUDA driver API, "Tensor Map Object Management") and the copies that follow them. */
#include "block.h"
#include "include/emulated_hopper.h"
#include "memory.h"

#include <algorithm>
#include <cstring>

namespace nib_emulator
{

constexpr uint32_t map_mark = 0x7E4503A9;

/* What an encoded map holds; CUtensorMap is opaque. Dimension 0 is the innermost. */
struct TensorMap {
    uint32_t mark;
    uint8_t rank, element, swizzle; /* swizzle: bytes of a row of the pattern; 0: none */
    uint8_t step[5];                /* elementStrides */
    uint8_t *base;
    uint64_t size[5];
    uint64_t stride[4]; /* bytes, of dimensions 1.. */
    uint16_t box[5];
    unsigned taken(int dimension) const { return (box[dimension] + step[dimension] - 1u) / step[dimension]; }
    unsigned row_bytes() const { return box[0] * element; }
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

static TensorMap decode(const CUtensorMap &map)
{
    TensorMap what;
    std::memcpy(&what, &map, sizeof what);
    return what;
}

/* The chunk of 16 bytes moves within its row by the row's number, both taken from the address. */
static uint8_t *swizzled(uint8_t *shared, const uint8_t *base, size_t byte, unsigned pattern)
{
    size_t address = static_cast<size_t>(shared - base) + byte;
    unsigned mask = pattern / 16 == 0 ? 0 : pattern / 16 - 1;
    return const_cast<uint8_t *>(base) + (address ^ (address >> 7 & mask) << 4);
}

/* Calls row(byte of the box, address in global memory or nullptr if outside) for each row of the box. */
template <class Row> static void each_row(const TensorMap &map, const int *coordinate, Row row)
{
    unsigned i[5] = {}, rows = 1;
    for (int d = 1; d < map.rank; d++) rows *= map.taken(d);
    for (unsigned r = 0; r < rows; r++) {
        uint8_t *at = map.base;
        for (int d = 1; d < map.rank; d++) {
            int64_t c = coordinate[d] + int64_t{i[d]} * map.step[d];
            if (c < 0 || c >= static_cast<int64_t>(map.size[d])) at = nullptr;
            if (at != nullptr) at += static_cast<uint64_t>(c) * map.stride[d - 1];
        }
        row(size_t{r} * map.row_bytes(), at);
        for (int d = 1; d < map.rank && ++i[d] == map.taken(d); d++) i[d] = 0;
    }
}

/* Of a row, the elements inside the tensor: [first, last). */
static void inside(const TensorMap &map, int coordinate, int64_t *first, int64_t *last)
{
    *first = std::max<int64_t>(0, -int64_t{coordinate});
    *last = std::min<int64_t>(map.box[0], static_cast<int64_t>(map.size[0]) - coordinate);
}

void move_tensor(const CUtensorMap &encoded, const int *coordinate, uint8_t *shared, const uint8_t *base, bool store)
{
    TensorMap map = decode(encoded);
    int64_t first, last;
    inside(map, coordinate[0], &first, &last);
    each_row(map, coordinate, [&](size_t byte, uint8_t *global) {
        for (int64_t e = 0; e < map.box[0]; e++) {
            uint8_t *at = swizzled(shared, base, byte + static_cast<size_t>(e) * map.element, map.swizzle);
            uint8_t *other = global + (coordinate[0] + e) * map.element;
            bool there = global != nullptr && e >= first && e < last;
            if (there && store) std::memcpy(other, at, map.element);
            if (there && !store) std::memcpy(at, other, map.element);
            if (!there && !store) std::memset(at, 0, map.element);
        }
    });
}

/* What is common to loads and stores; the map's bytes of a whole box. */
static unsigned check_tensor(const char *name, Site site, const void *shared, const CUtensorMap *encoded, int rank,
                             const int *coordinate, bool store)
{
    Block &block = hopper_block(name, site);
    TensorMap map = decode(*encoded);
    if (map.mark != map_mark || map.rank != rank) block.fail(site, "%s: not a tensor map of rank %d", name, rank);
    unsigned bytes = map.row_bytes();
    for (int d = 1; d < rank; d++) bytes *= map.taken(d);
    if (!block.is_shared(shared, bytes) || reinterpret_cast<uintptr_t>(shared) % 128 != 0)
        block.fail(site, "%s: a box of %u bytes at byte %td is misaligned (128) or not in the block's shared memory",
                   name, bytes, static_cast<const uint8_t *>(shared) - block.shared());
    int64_t first, last;
    inside(map, coordinate[0], &first, &last);
    each_row(map, coordinate, [&](size_t, uint8_t *global) {
        if (global == nullptr || first >= last) return;
        size_t inner = static_cast<size_t>(last - first) * map.element;
        check_global(name, site, global + (coordinate[0] + first) * map.element, inner);
        (store ? block.counters().global_written : block.counters().global_read) += inner;
    });
    int writer = block.hopper().unfenced_writer(
        static_cast<size_t>(static_cast<const uint8_t *>(shared) - block.shared()), bytes);
    if (writer >= 0)
        block.fail(site, "%s: thread %d wrote this shared memory and has not called fence_proxy_async since", name,
                   writer);
    return bytes;
}

/* Poisons what a load will fill, and queues it. */
static void queue_load(const char *name, BulkCopy copy, uint64_t *barrier)
{
    Block &block = *Block::current;
    TransactionBarrier &found = find_barrier(name, copy.site, barrier);
    if (!found.visible)
        block.fail(copy.site, "%s: the mbarrier of %s:%d was not fenced by the thread that initialised it", name,
                   found.site.file, found.site.line);
    copy.barrier = static_cast<unsigned>(reinterpret_cast<uint8_t *>(barrier) - block.shared());
    copy.thread = block.thread_index();
    copy.known = block.races().known(copy.thread);
    poison(copy.shared, copy.bytes);
    block.hopper().engine_wrote(static_cast<size_t>(copy.shared - block.shared()), copy.bytes);
    block.hopper().copies.push_back(copy);
    block.counters().async_copies++;
}

void load_tensor(Site site, void *shared, const CUtensorMap *map, uint64_t *barrier, int rank, const int *coordinate)
{
    BulkCopy copy{};
    copy.kind = BulkCopy::tensor_load;
    copy.bytes = check_tensor("tma_load", site, shared, map, rank, coordinate, false);
    copy.map = *map;
    copy.shared = static_cast<uint8_t *>(shared);
    copy.site = site;
    std::copy_n(coordinate, rank, copy.coordinate);
    queue_load("tma_load", copy, barrier);
}

void load_bulk(Site site, void *shared, const void *global, unsigned bytes, uint64_t *barrier)
{
    Block &block = hopper_block("bulk_load", site);
    if (!block.is_shared(shared, bytes) || (reinterpret_cast<uintptr_t>(shared) | bytes) % 16 != 0 ||
        reinterpret_cast<uintptr_t>(global) % 16 != 0)
        block.fail(site, "bulk_load: %u bytes misaligned (16) or not into the block's shared memory", bytes);
    check_global("bulk_load", site, global, bytes);
    block.counters().global_read += bytes;
    BulkCopy copy{};
    copy.kind = BulkCopy::linear_load;
    copy.bytes = bytes;
    copy.shared = static_cast<uint8_t *>(shared);
    copy.global = static_cast<const uint8_t *>(global);
    copy.site = site;
    queue_load("bulk_load", copy, barrier);
}

void store_tensor(Site site, const void *shared, const CUtensorMap *map, int rank, const int *coordinate)
{
    BulkCopy copy{};
    copy.kind = BulkCopy::tensor_store;
    copy.bytes = check_tensor("tma_store", site, shared, map, rank, coordinate, true);
    Block &block = *Block::current;
    copy.map = *map;
    copy.shared = static_cast<uint8_t *>(const_cast<void *>(shared));
    copy.site = site;
    copy.thread = block.thread_index();
    copy.group = block.hopper().work(copy.thread).store_groups;
    block.share(static_cast<size_t>(copy.shared - block.shared()), copy.bytes, Access::read);
    std::copy_n(coordinate, rank, copy.coordinate);
    block.hopper().copies.push_back(copy);
}

void commit_stores(Site site)
{
    Block &block = hopper_block("tma_store_commit", site);
    block.hopper().work(block.thread_index()).store_groups++;
}

/* Lands this thread's groups but for the latest `pending`, oldest first. */
void wait_stores(Site site, unsigned pending)
{
    Block &block = hopper_block("tma_store_wait_read", site);
    auto &copies = block.hopper().copies;
    unsigned thread = block.thread_index(), groups = block.hopper().work(thread).store_groups;
    for (size_t i = 0; i < copies.size();)
        if (copies[i].kind == BulkCopy::tensor_store && copies[i].thread == thread &&
            copies[i].group + pending < groups)
            block.hopper().land(block, copies.begin() + static_cast<std::ptrdiff_t>(i));
        else
            i++;
}

} // namespace nib_emulator

using namespace nib_emulator;

static unsigned element_bytes(CUtensorMapDataType type)
{
    switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
        return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
        return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
        return 4;
    }
    return 0;
}

/* The driver's rules; besides, what is not modelled is refused: interleaving, rows shorter than the swizzle's pattern,
 * another filling than zero. */
CUresult cuTensorMapEncodeTiled(CUtensorMap *out, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
                                const cuuint32_t *step, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill)
{
    const unsigned pattern[] = {0, 32, 64, 128};
    TensorMap map{};
    map.mark = map_mark;
    map.rank = static_cast<uint8_t>(rank);
    map.element = static_cast<uint8_t>(element_bytes(type));
    map.swizzle = static_cast<uint8_t>(pattern[swizzle]);
    map.base = static_cast<uint8_t *>(address);
    if (rank < 1 || rank > 5 || map.element == 0 || address == nullptr ||
        reinterpret_cast<uintptr_t>(address) % 16 != 0 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
        fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE || step[0] != 1)
        return CUDA_ERROR_INVALID_VALUE;
    for (cuuint32_t d = 0; d < rank; d++) {
        if (size[d] < 1 || size[d] > uint64_t{1} << 32 || box[d] < 1 || box[d] > 256 || step[d] < 1 || step[d] > 8)
            return CUDA_ERROR_INVALID_VALUE;
        map.size[d] = size[d];
        map.box[d] = static_cast<uint16_t>(box[d]);
        map.step[d] = static_cast<uint8_t>(step[d]);
        if (d == 0) continue;
        if (stride[d - 1] % 16 != 0 || stride[d - 1] >= uint64_t{1} << 40) return CUDA_ERROR_INVALID_VALUE;
        map.stride[d - 1] = stride[d - 1];
    }
    if (map.row_bytes() % 16 != 0 || (map.swizzle != 0 && map.row_bytes() != map.swizzle))
        return CUDA_ERROR_INVALID_VALUE;
    std::memset(out, 0, sizeof *out);
    std::memcpy(out, &map, sizeof map);
    return CUDA_SUCCESS;
}
