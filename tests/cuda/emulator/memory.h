/* Memory of the emulated device, and of pinned host buffers.
 *
 * Every buffer is filled with NaN (in bf16, fp16, fp32, fp64, and e4m3; -1 as an integer), lies between sentinels,
 * which are looked at after every kernel and when it is freed, and between pages that nobody may touch. Device memory
 * can be read and written only while a kernel or a copy runs: host code that follows a device pointer dies with a
 * message.
 */
#ifndef NIB_EMULATOR_MEMORY_H
#define NIB_EMULATOR_MEMORY_H

#include <cstddef>
#include <cstdint>
#include <string>

namespace nib_emulator
{

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

void poison(void *to, size_t bytes);
/* A pattern that is NaN in every type of 16 bits and more, and differs from poison. */
void fill_sentinels(void *to, size_t bytes);
/* Offset of the first byte that is no longer the sentinel; `bytes` if none. */
size_t first_damage(const void *sentinels, size_t bytes);

enum class Space { device, pinned };
struct Buffer {
    uint8_t *begin;
    size_t bytes;
    Space space;
    bool holds(const void *address, size_t count) const
    {
        const uint8_t *at = static_cast<const uint8_t *>(address);
        return at >= begin && at + count <= begin + bytes;
    }
};

/* nullptr if the device's memory, or the host's, is used up. Zero bytes are allowed. */
void *allocate(Space space, size_t bytes);
/* False if `begin` is not what allocate returned. Throws away what was written; *damage says which sentinel was hit. */
bool release(Space space, void *begin, std::string *damage);
/* The buffer that `address` lies in; false if none. */
bool find_buffer(const void *address, Buffer *buffer);
/* "" or which buffer, or which piece of one, was written beyond its bounds. */
std::string check_sentinels();
/* The `gap` bytes behind a piece of a buffer are sentinels from now on, those of pieces that lay there before are none
 * any more. "" or which of them was hit. */
std::string watch_piece(uint8_t *piece, size_t bytes, size_t gap);
/* Addresses of all buffers, each used once: a pointer to what was freed never points into another buffer. */
constexpr size_t space_bytes = size_t{1} << 40;
extern uint8_t *device_space; /* where they begin, once there was a buffer */
inline bool is_device_space(const void *address)
{
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(device_space) < space_bytes;
}
/* For a message: "12 bytes behind a buffer of 4096 bytes". */
std::string describe_address(const void *address);

/* Device memory may be touched between these; they nest. */
void open_device_memory();
void close_device_memory();

size_t device_memory_used();
size_t device_memory_peak();
size_t device_memory_capacity();
void set_device_memory_capacity(size_t bytes);
size_t buffers_alive(Space space);
void release_all();

} // namespace nib_emulator

#endif
