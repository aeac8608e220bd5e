/* Loads, stores and asynchronous copies: checked, counted, and late. */
#include "block.h"
#include "include/emulated_intrinsics.h"
#include "memory.h"

namespace nib_emulator
{

const Buffer *Block::buffer_of(const void *address, size_t bytes)
{
    for (const Buffer &buffer : found_)
        if (buffer.holds(address, bytes)) return &buffer;
    Buffer &next = found_[++next_found_ % 8];
    return find_buffer(address, &next) && next.holds(address, bytes) ? &next : nullptr;
}

void check_global(const char *name, Site site, const void *address, size_t bytes)
{
    if (Block::current->buffer_of(address, bytes) == nullptr)
        Block::current->fail(site, "%s of %zu bytes at %s", name, bytes, describe_address(address).c_str());
}

void check_access(const char *name, Site site, const void *address, unsigned bytes, bool writes)
{
    Block &block = *Block::current;
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
        block.fail(site, "%s of %u bytes is misaligned: %s", name, bytes, describe_address(address).c_str());
    if (block.is_shared(address, bytes)) {
        size_t byte = static_cast<size_t>(static_cast<const uint8_t *>(address) - block.shared());
        if (writes) block.hopper().wrote(block.thread_index(), byte, bytes);
        return;
    }
    if (block.address_in_stack(address)) return;
    long offset;
    if (block.beyond_shared(address, &offset))
        block.fail(site, "%s at byte %ld of shared memory, %zu bytes were asked for", name, offset,
                   block.shared_bytes());
    check_global(name, site, address, bytes);
    (writes ? block.counters().global_written : block.counters().global_read) += bytes;
}

/* ---- cp.async ---- */

/* The destination is poisoned until the copy lands, which is when this thread waits for it. The source is read now or
 * then, by chance. */
void copy_async(Site site, void *shared, const void *global, bool valid)
{
    Block &block = *Block::current;
    if (!block.is_shared(shared, 16) || reinterpret_cast<uintptr_t>(shared) % 16 != 0)
        block.fail(site, "cp_async_16: the destination is misaligned or not in the block's shared memory");
    AsyncCopy copy{shared, nullptr, {}};
    if (valid) {
        check_access("cp_async_16", site, global, 16, false);
        if (block.random().below(2) == 0)
            copy.global = global;
        else
            std::memcpy(copy.bytes, global, 16);
    }
    poison(shared, 16);
    block.share(static_cast<size_t>(static_cast<uint8_t *>(shared) - block.shared()), 16, Access::write);
    block.lane().open.push_back(copy);
    block.counters().async_copies++;
}

void commit_copies()
{
    Lane &lane = Block::current->lane();
    lane.committed.push_back(std::move(lane.open));
    lane.open.clear();
}

void wait_copies(unsigned pending)
{
    Block &block = *Block::current;
    auto &groups = block.lane().committed;
    while (groups.size() > pending) {
        for (const AsyncCopy &copy : groups.front()) {
            block.share(static_cast<size_t>(static_cast<uint8_t *>(copy.shared) - block.shared()), 16, Access::write);
            std::memcpy(copy.shared, copy.global != nullptr ? copy.global : copy.bytes, 16);
        }
        groups.erase(groups.begin());
    }
}

} // namespace nib_emulator
