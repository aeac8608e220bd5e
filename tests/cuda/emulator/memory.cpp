#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <sys/mman.h>

namespace nib_emulator
{

constexpr size_t page = 4096;
constexpr size_t alignment = 256;     /* of cudaMalloc */
constexpr uint16_t sentinel = 0xFFA5; /* NaN in bf16 and fp16; two of them in fp32, four in fp64 */

void poison(void *to, size_t bytes) { std::memset(to, 0xFF, bytes); }

void fill_sentinels(void *to, size_t bytes)
{
    uint8_t *at = static_cast<uint8_t *>(to);
    for (size_t i = 0; i < bytes; i++)
        at[i] = static_cast<uint8_t>(reinterpret_cast<uintptr_t>(at + i) % 2 == 0 ? sentinel : sentinel >> 8);
}

size_t first_damage(const void *sentinels, size_t bytes)
{
    const uint8_t *at = static_cast<const uint8_t *>(sentinels);
    for (size_t i = 0; i < bytes; i++)
        if (at[i] != static_cast<uint8_t>(reinterpret_cast<uintptr_t>(at + i) % 2 == 0 ? sentinel : sentinel >> 8))
            return i;
    return bytes;
}

uint8_t *device_space;

/* [guard page | sentinels | the buffer | sentinels to the page's end | guard page]; pages between the guards. */
struct Mapping {
    Buffer buffer;
    uint8_t *base;
    size_t bytes; /* with the guards */

    uint8_t *open_begin() const { return base + page; }
    size_t open_bytes() const { return bytes - 2 * page; }
    size_t front() const { return static_cast<size_t>(buffer.begin - open_begin()); }
    size_t back() const { return open_bytes() - front() - buffer.bytes; }
};

/* Behind a piece of `piece` bytes. */
struct Gap {
    size_t bytes, piece;
};

struct Registry {
    std::shared_mutex lock;
    std::map<const uint8_t *, Mapping> mappings; /* by begin of the buffer */
    std::map<uint8_t *, Gap> gaps;               /* by begin */
    size_t next = 0;                             /* byte of the space */
    size_t used = 0, peak = 0, capacity = size_t{2} << 30, alive[2] = {};
    int open = 0;
};

static Registry &registry()
{
    static Registry *instance = new Registry; /* never destroyed: buffers may be freed while the program ends */
    return *instance;
}

static std::string damage_of(const Mapping &m)
{
    char text[200] = "";
    size_t front = first_damage(m.open_begin(), m.front());
    size_t back = first_damage(m.buffer.begin + m.buffer.bytes, m.back());
    if (front < m.front())
        std::snprintf(text, sizeof text, "%zu bytes before a buffer of %zu bytes were written", m.front() - front,
                      m.buffer.bytes);
    else if (back < m.back())
        std::snprintf(text, sizeof text, "byte %zu of a buffer of %zu bytes was written", m.buffer.bytes + back,
                      m.buffer.bytes);
    return text;
}

static void protect(const Mapping &m, int how)
{
    if (mprotect(m.open_begin(), m.open_bytes(), how) != 0) {
        std::perror("emulator: mprotect");
        std::abort();
    }
}

void *allocate(Space space, size_t bytes)
{
    Registry &all = registry();
    std::unique_lock guard(all.lock);
    if (space == Space::device && all.used + bytes > all.capacity) return nullptr;
    Mapping m;
    m.bytes = round_up(alignment + bytes + alignment, page) + 2 * page;
    if (device_space == nullptr) {
        void *begin = mmap(nullptr, space_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (begin == MAP_FAILED) return nullptr;
        device_space = static_cast<uint8_t *>(begin);
    }
    if (m.bytes > space_bytes - all.next) return nullptr;
    m.base = device_space + all.next;
    all.next += m.bytes;
    madvise(m.base, m.bytes, MADV_HUGEPAGE); /* opened and closed at every launch: that costs by the page */
    /* As close to the page behind it as alignment and a sentinel allow. */
    uint8_t *end = m.base + m.bytes - page;
    m.buffer = {end - round_up(bytes + alignment / 2, alignment), bytes, space};
    protect(m, PROT_READ | PROT_WRITE);
    fill_sentinels(m.open_begin(), m.front());
    poison(m.buffer.begin, bytes);
    fill_sentinels(m.buffer.begin + bytes, m.back());
    if (space == Space::device) {
        if (all.open == 0) protect(m, PROT_NONE);
        all.used += bytes;
        all.peak = std::max(all.peak, all.used);
    }
    all.alive[static_cast<int>(space)]++;
    all.mappings[m.buffer.begin] = m;
    return m.buffer.begin;
}

static std::string damage_of(const std::pair<uint8_t *const, Gap> &entry)
{
    const auto &[begin, gap] = entry;
    const size_t at = first_damage(begin, gap.bytes);
    if (at == gap.bytes) return "";
    return "byte " + std::to_string(gap.piece + at) + " of a piece of " + std::to_string(gap.piece) +
           " bytes of scratch was written";
}

/* Forgets the gaps that lie in these bytes, or reach into them. */
static std::string drop_gaps(Registry &all, const uint8_t *begin, const uint8_t *end)
{
    std::string damage;
    auto next = all.gaps.begin();
    while (next != all.gaps.end())
        if (next->first < end && begin < next->first + next->second.bytes) {
            if (damage.empty()) damage = damage_of(*next);
            next = all.gaps.erase(next);
        } else {
            ++next;
        }
    return damage;
}

std::string watch_piece(uint8_t *piece, size_t bytes, size_t gap)
{
    Registry &all = registry();
    std::unique_lock guard(all.lock);
    std::string damage = drop_gaps(all, piece, piece + bytes + gap);
    fill_sentinels(piece + bytes, gap);
    all.gaps[piece + bytes] = {gap, bytes};
    return damage;
}

static void unmap(Registry &all, const Mapping &m)
{
    if (m.buffer.space == Space::device) all.used -= m.buffer.bytes;
    all.alive[static_cast<int>(m.buffer.space)]--;
    mmap(m.base, m.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

bool release(Space space, void *begin, std::string *damage)
{
    Registry &all = registry();
    std::unique_lock guard(all.lock);
    auto found = all.mappings.find(static_cast<uint8_t *>(begin));
    if (found == all.mappings.end() || found->second.buffer.space != space) return false;
    protect(found->second, PROT_READ | PROT_WRITE);
    *damage = damage_of(found->second);
    const std::string piece = drop_gaps(all, found->second.open_begin(), found->second.base + found->second.bytes);
    if (damage->empty()) *damage = piece;
    unmap(all, found->second);
    all.mappings.erase(found);
    return true;
}

void release_all()
{
    Registry &all = registry();
    std::unique_lock guard(all.lock);
    for (const auto &entry : all.mappings) unmap(all, entry.second);
    all.mappings.clear();
    all.gaps.clear();
}

/* The mapping, guards included, that holds the address, or nullptr. */
static const Mapping *find_mapping(const Registry &all, const void *address)
{
    const uint8_t *at = static_cast<const uint8_t *>(address);
    auto next = all.mappings.upper_bound(at);
    if (next != all.mappings.end() && at >= next->second.base) return &next->second;
    if (next == all.mappings.begin()) return nullptr;
    const Mapping &m = std::prev(next)->second;
    return at < m.base + m.bytes ? &m : nullptr;
}

bool find_buffer(const void *address, Buffer *buffer)
{
    Registry &all = registry();
    std::shared_lock guard(all.lock);
    const Mapping *m = find_mapping(all, address);
    const uint8_t *at = static_cast<const uint8_t *>(address);
    if (m == nullptr || at < m->buffer.begin || at >= m->buffer.begin + m->buffer.bytes) return false;
    *buffer = m->buffer;
    return true;
}

std::string check_sentinels()
{
    Registry &all = registry();
    std::shared_lock guard(all.lock);
    for (const auto &entry : all.mappings) {
        std::string damage = damage_of(entry.second);
        if (!damage.empty()) return damage;
    }
    for (const auto &entry : all.gaps) {
        std::string damage = damage_of(entry);
        if (!damage.empty()) return damage;
    }
    return "";
}

std::string describe_address(const void *address)
{
    char text[200];
    Registry &all = registry();
    std::shared_lock guard(all.lock);
    const Mapping *m = find_mapping(all, address);
    const uint8_t *at = static_cast<const uint8_t *>(address);
    if (m == nullptr) {
        std::snprintf(text, sizeof text, "%p, which is no memory of the device", address);
        return text;
    }
    const char *space = m->buffer.space == Space::device ? "device" : "pinned";
    if (at < m->buffer.begin)
        std::snprintf(text, sizeof text, "%td bytes before a %s buffer of %zu bytes", m->buffer.begin - at, space,
                      m->buffer.bytes);
    else
        std::snprintf(text, sizeof text, "byte %td of a %s buffer of %zu bytes", at - m->buffer.begin, space,
                      m->buffer.bytes);
    return text;
}

static void protect_device(Registry &all, int how)
{
    for (const auto &entry : all.mappings)
        if (entry.second.buffer.space == Space::device) protect(entry.second, how);
}

void open_device_memory()
{
    Registry &all = registry();
    std::unique_lock guard(all.lock);
    if (all.open++ == 0) protect_device(all, PROT_READ | PROT_WRITE);
}

void close_device_memory()
{
    Registry &all = registry();
    std::unique_lock guard(all.lock);
    if (--all.open == 0) protect_device(all, PROT_NONE);
}

size_t device_memory_used() { return registry().used; }
size_t device_memory_peak() { return registry().peak; }
size_t device_memory_capacity() { return registry().capacity; }
void set_device_memory_capacity(size_t bytes) { registry().capacity = bytes; }
size_t buffers_alive(Space space) { return registry().alive[static_cast<int>(space)]; }

} // namespace nib_emulator
