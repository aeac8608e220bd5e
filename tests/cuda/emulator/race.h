/* Which accesses to shared memory have an order, whatever the schedule: a race is found although its result is right.
 *
 * Lamport's "happens before" by vector clocks: each thread counts steps, and knows up to which step of every other
 * thread all accesses lie before its own. Barriers, __syncwarp and mbarriers hand this knowledge on; shuffles, votes
 * and the warp's matrix instructions do not, as they order no memory on a chip either. Every four bytes remember their
 * latest accesses (Serebryany & Iskhodzhanov, "ThreadSanitizer", 2009): one that is not known to the next, of which
 * either writes, is a race. A barrier of the whole block begins a new age, in which everything older is known to all.
 */
#ifndef NIB_EMULATOR_RACE_H
#define NIB_EMULATOR_RACE_H

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace nib_emulator
{

constexpr unsigned max_watched_barriers = 32; /* mbarriers of a block */

/* For each thread, and for the copies that land at each mbarrier: known up to this step. */
struct Knowledge {
    uint32_t age;
    std::vector<uint32_t> step;
};
typedef std::shared_ptr<const Knowledge> Known;

enum class Access : uint8_t { read, write, atomic };

class Races
{
  public:
    void prepare(unsigned threads, size_t shared_bytes);

    /* The thread (from `threads` on: the copies of an mbarrier) whose access to some of these bytes has no order with
     * this one, or -1. */
    int access(unsigned thread, size_t byte, size_t bytes, Access kind);
    /* The same, of a copy that `thread` issued when it knew `known`, and that lands at an mbarrier in its `phase`. */
    int land(unsigned thread, const Known &known, unsigned barrier, uint32_t phase, size_t byte, size_t bytes);
    /* Whether another thread's write there is not known to this one; nothing is remembered. */
    int unknown_writer(unsigned thread, size_t byte, size_t bytes) const;

    const Known &known(unsigned thread) const { return known_[thread]; }
    /* The whole block met. */
    void begin_age() { age_++; }
    /* These threads met: each knows what any of them does. */
    void join(const std::vector<unsigned> &threads, const Known &besides = nullptr);
    /* `into` learns what the thread knows and did so far; a thread learns what `from` holds. */
    void release(unsigned thread, Known &into);
    void acquire(unsigned thread, const Known &from);
    /* The copies that landed at an mbarrier in this phase. */
    void release_copies(unsigned barrier, uint32_t phase, Known &into);

  private:
    struct Past {
        uint32_t age, step;
        uint16_t thread;
        uint8_t bytes; /* a bit for each of the four */
        Access kind;
    };
    struct Word {
        Past past[4];
    };
    struct Actor {
        unsigned thread, self; /* as remembered; whose own accesses are in order */
        uint32_t step;
        const Knowledge *known;
        Access kind;
    };
    bool before(const Past &past, const Actor &actor) const;
    int visit(const Actor &actor, size_t byte, size_t bytes);
    void learn(Knowledge &all, const Known &more) const;
    std::shared_ptr<Knowledge> nothing() const;

    unsigned threads_ = 0;
    uint32_t age_ = 0; /* goes on from block to block */
    uint32_t victim_ = 0;
    std::vector<uint32_t> step_;
    std::vector<Known> known_;
    std::vector<Word> words_;
    Known learned_old_, learned_from_, learned_; /* of the last acquire: a warp's lanes do the same */
};

inline bool Races::before(const Past &past, const Actor &actor) const
{
    if (past.age != age_ || past.thread == actor.thread || past.thread == actor.self) return true;
    return actor.known != nullptr && actor.known->age == age_ && actor.known->step[past.thread] >= past.step;
}

/* An access that is in order before this one need not be remembered if whatever has no order with it has none with this
 * one either. A write is not given up for reads. */
inline int Races::visit(const Actor &actor, size_t byte, size_t bytes)
{
    for (size_t w = byte / 4; w <= (byte + bytes - 1) / 4; w++) {
        size_t first = w * 4 < byte ? byte % 4 : 0, last = std::min<size_t>(4, byte + bytes - w * 4);
        uint8_t mask = static_cast<uint8_t>((1u << last) - (1u << first));
        Past *place = nullptr;
        for (Past &past : words_[w].past) {
            if (past.age != age_) {
                place = &past;
                continue;
            }
            bool ordered = before(past, actor);
            if (!ordered && (past.bytes & mask) != 0 && (past.kind != actor.kind || actor.kind == Access::write))
                return past.thread;
            if (ordered && (past.bytes & ~mask) == 0 && (past.kind == Access::read || past.kind == actor.kind))
                place = &past;
        }
        for (unsigned i = 0; place == nullptr && i < 4; i++) {
            Past &past = words_[w].past[++victim_ % 4];
            if (past.kind == Access::read) place = &past;
        }
        if (place == nullptr) place = &words_[w].past[++victim_ % 4];
        *place = {age_, actor.step, static_cast<uint16_t>(actor.thread), mask, actor.kind};
    }
    return -1;
}

inline int Races::access(unsigned thread, size_t byte, size_t bytes, Access kind)
{
    return visit({thread, thread, step_[thread], known_[thread].get(), kind}, byte, bytes);
}

} // namespace nib_emulator

#endif
