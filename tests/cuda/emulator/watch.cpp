/* Plain loads and stores of the kernels, which no function of ours makes: their sources are compiled with g++'s
 * -fsanitize=thread, which calls these functions before every access; none of that sanitizer's own code is linked.
 * An access to memory of the device has to lie in a buffer; one to shared memory must not race, and not meet the
 * thread's own asynchronous copies before they have landed, whose place among its accesses nothing says. */
#include "block.h"

#include "memory.h"

#include <algorithm>

namespace nib_emulator
{

void Block::watch(const void *address, size_t bytes, Access kind)
{
    size_t byte = static_cast<size_t>(static_cast<const uint8_t *>(address) - shared_);
    if (byte < launch_->shared_bytes) {
        if (byte + bytes > launch_->shared_bytes)
            fail(lane().passed, "behind this line: %zu bytes at byte %zu of shared memory, %zu bytes were asked for",
                 bytes, byte, launch_->shared_bytes);
        if (on_its_way(address, bytes))
            fail(lane().passed,
                 "behind this line: %zu bytes at byte %zu of shared memory, which an own cp_async_16 brings that this "
                 "thread has not waited for",
                 bytes, byte);
        share(byte, bytes, kind);
        if (kind != Access::read) hopper_.wrote(running_, byte, bytes);
    } else if (is_device_space(address)) {
        check_global(kind == Access::read ? "a read behind this line" : "a write behind this line", lane().passed,
                     address, bytes);
    }
}

bool Block::on_its_way(const void *address, size_t bytes)
{
    const uint8_t *begin = static_cast<const uint8_t *>(address);
    const auto meets = [&](const AsyncCopy &copy) {
        const uint8_t *to = static_cast<const uint8_t *>(copy.shared);
        return begin < to + sizeof copy.bytes && to < begin + bytes;
    };
    const Lane &own = lane();
    return std::any_of(own.open.begin(), own.open.end(), meets) ||
           std::any_of(own.committed.begin(), own.committed.end(), [&](const std::vector<AsyncCopy> &group) {
               return std::any_of(group.begin(), group.end(), meets);
           });
}

void Block::share(size_t byte, size_t bytes, Access kind)
{
    int other = races_.access(running_, byte, bytes, kind);
    if (other >= 0) fail_race(kind == Access::read ? "reads" : "writes", byte, bytes, other);
}

void Block::fail_race(const char *what, size_t byte, size_t bytes, int other)
{
    if (other >= static_cast<int>(threads_))
        fail(lane().passed, "race behind this line: %s %zu bytes at byte %zu of shared memory beside a tensor copy",
             what, bytes, byte);
    Site site = lanes_[static_cast<size_t>(other)].passed;
    fail(lane().passed,
         "race behind this line: %s %zu bytes at byte %zu of shared memory, no barrier orders that and what thread %d "
         "did, which is now behind %s:%d",
         what, bytes, byte, other, site.file == nullptr ? "its begin" : site.file, site.line);
}

} // namespace nib_emulator

/* With another sanitizer no source calls these, and g++ knows them by other types. */
#if !defined __SANITIZE_ADDRESS__

using nib_emulator::Access;

static inline void watch(const volatile void *address, size_t bytes, Access kind)
{
    nib_emulator::Block *block = nib_emulator::Block::current;
    if (block != nullptr) block->watch(const_cast<const void *>(address), bytes, kind);
}

extern "C" {
#define NIB_WATCH(BYTES)                                                                                               \
    void __tsan_read##BYTES(void *address) { watch(address, BYTES, Access::read); }                                    \
    void __tsan_write##BYTES(void *address) { watch(address, BYTES, Access::write); }                                  \
    void __tsan_unaligned_read##BYTES(void *address) { watch(address, BYTES, Access::read); }                          \
    void __tsan_unaligned_write##BYTES(void *address) { watch(address, BYTES, Access::write); }
NIB_WATCH(1)
NIB_WATCH(2)
NIB_WATCH(4)
NIB_WATCH(8)
NIB_WATCH(16)
#undef NIB_WATCH
void __tsan_read_range(void *address, size_t bytes) { watch(address, bytes, Access::read); }
void __tsan_write_range(void *address, size_t bytes) { watch(address, bytes, Access::write); }
void __tsan_vptr_update(void **address, void *) { watch(address, sizeof *address, Access::write); }
void __tsan_init() {}
void __tsan_atomic_thread_fence(int order) { __atomic_thread_fence(order); }

/* Atomics: the order in which they take place is nobody's, they race with plain accesses alone. */
#define NIB_WATCH_ATOMIC(BITS, TYPE)                                                                                   \
    TYPE __tsan_atomic##BITS##_load(const volatile TYPE *at, int)                                                      \
    {                                                                                                                  \
        watch(at, sizeof *at, Access::atomic);                                                                         \
        return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                                                  \
    }                                                                                                                  \
    void __tsan_atomic##BITS##_store(volatile TYPE *at, TYPE value, int)                                               \
    {                                                                                                                  \
        watch(at, sizeof *at, Access::atomic);                                                                         \
        __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                                                 \
    }                                                                                                                  \
    int __tsan_atomic##BITS##_compare_exchange_strong(volatile TYPE *at, TYPE *expected, TYPE value, int, int)         \
    {                                                                                                                  \
        watch(at, sizeof *at, Access::atomic);                                                                         \
        return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);            \
    }
NIB_WATCH_ATOMIC(8, uint8_t)
NIB_WATCH_ATOMIC(32, uint32_t)
NIB_WATCH_ATOMIC(64, uint64_t)
#undef NIB_WATCH_ATOMIC
}

#endif
