/* mbarrier: a barrier in shared memory that counts arrivals and bytes, phase by phase (PTX ISA, "mbarrier"). Its state
 * is kept beside; in shared memory lies a mark, by which an overwritten barrier is found. */
#include "block.h"
#include "include/emulated_hopper.h"

namespace nib_emulator
{

constexpr uint64_t mark = 0xFFA5BA12FFA50000;          /* NaN as any type */
constexpr int64_t most_bytes = (int64_t{1} << 20) - 1; /* of a phase */

Block &hopper_block(const char *name, Site site)
{
    Block &block = *Block::current;
    if (block.architecture() != 90)
        block.fail(site, "%s: the device is sm_%d, this is an instruction of sm_90a alone", name, block.architecture());
    return block;
}

static unsigned byte_of(const char *name, Site site, const uint64_t *barrier)
{
    Block &block = hopper_block(name, site);
    if (!block.is_shared(barrier, 8) || reinterpret_cast<uintptr_t>(barrier) % 8 != 0)
        block.fail(site, "%s: an mbarrier is misaligned or not in the block's shared memory", name);
    return static_cast<unsigned>(reinterpret_cast<const uint8_t *>(barrier) - block.shared());
}

TransactionBarrier &find_barrier(const char *name, Site site, const uint64_t *barrier)
{
    unsigned byte = byte_of(name, site, barrier);
    Block &block = *Block::current;
    auto found = block.hopper().barriers.find(byte);
    if (found == block.hopper().barriers.end())
        block.fail(site, "%s: no mbarrier was initialised at byte %u of shared memory", name, byte);
    if (*barrier != (mark | byte))
        block.fail(site, "%s: the mbarrier at byte %u of shared memory was overwritten", name, byte);
    block.lane().passed = site;
    int owner = block.races().unknown_writer(block.thread_index(), byte, 8);
    if (owner >= 0)
        block.fail(site, "%s: no barrier lies between this and the mbarrier_init of thread %d", name, owner);
    return found->second;
}

void barrier_init(Site site, uint64_t *barrier, unsigned arrivals)
{
    unsigned byte = byte_of("mbarrier_init", site, barrier);
    Block &block = *Block::current;
    if (arrivals == 0 || arrivals >= 1u << 20)
        block.fail(site, "mbarrier_init: %u arrivals, expected 1 to 2^20 - 1", arrivals);
    if (block.hopper().barriers.count(byte) != 0)
        block.fail(site, "mbarrier_init: there is an mbarrier at byte %u already", byte);
    if (block.hopper().barriers.size() == max_watched_barriers)
        block.fail(site, "mbarrier_init: more than %u in a block", max_watched_barriers);
    block.share(byte, 8, Access::write);
    *barrier = mark | byte;
    unsigned index = static_cast<unsigned>(block.hopper().barriers.size());
    block.hopper().barriers[byte] = {arrivals, arrivals, 0, 0, block.thread_index(), false, site, {}, index, {}, {}};
}

void advance(Block &block, TransactionBarrier &barrier, unsigned arrivals, int64_t bytes)
{
    barrier.pending -= arrivals;
    barrier.bytes += bytes;
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    barrier.phase++;
    barrier.passed = barrier.arrived;
    barrier.pending = barrier.count;
    for (unsigned thread : barrier.waiting) block.wake(thread);
    barrier.waiting.clear();
}

void barrier_arrive(const char *name, Site site, uint64_t *barrier, unsigned bytes)
{
    TransactionBarrier &found = find_barrier(name, site, barrier);
    if (found.pending == 0)
        Block::current->fail(site, "%s: more than %u arrivals in a phase that still misses %lld bytes", name,
                             found.count, static_cast<long long>(found.bytes));
    if (found.bytes + bytes > most_bytes) Block::current->fail(site, "%s: more than 2^20 - 1 bytes in a phase", name);
    unsigned phase = found.phase;
    Block::current->races().release(Block::current->thread_index(), found.arrived);
    advance(*Block::current, found, 1, bytes);
    if (found.phase != phase) Block::current->yield(); /* who waited may well be faster than this thread's next line */
}

/* The phase of this parity has ended when the one under way has the other. A thread that comes back late looks again:
 * it may have missed a whole round. */
void barrier_wait(Site site, uint64_t *barrier, unsigned parity)
{
    TransactionBarrier &found = find_barrier("mbarrier_wait", site, barrier);
    if (parity > 1) Block::current->fail(site, "mbarrier_wait: parity %u", parity);
    while ((found.phase & 1) == parity) {
        found.waiting.push_back(Block::current->thread_index());
        Block::current->wait("mbarrier_wait", site);
    }
    Block::current->races().acquire(Block::current->thread_index(), found.passed);
}

void fence_async(Site site)
{
    Block &block = hopper_block("fence_proxy_async", site);
    block.hopper().fence(block.thread_index());
}

/* One lane, always the same of a warp, and nobody knows which. */
bool elect(Site site)
{
    Block &block = hopper_block("elect_one", site);
    block.meet("elect_one", site, ~0u, true, nullptr, [](uint32_t, void *const *) {});
    return block.lane_index() == block.elected_lane();
}

} // namespace nib_emulator
