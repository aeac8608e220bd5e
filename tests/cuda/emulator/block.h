/* One thread block of the emulator: its threads as fibers, in an order that nobody may rely on.
 *
 * The scheduler picks a random warp that can run and runs its lanes in a random order, each until it blocks; a warp may
 * run far ahead of the others, up to the next barrier. Warps meet in warp-wide operations (meet), threads at barriers.
 * What could not go on, on a real chip, is found when no lane can run: the report says who waits where. A block that
 * fails is abandoned: its fibers are never resumed.
 *
 * A block runs on one OS thread from begin to end, so the running one is a thread-local variable.
 */
#ifndef NIB_EMULATOR_BLOCK_H
#define NIB_EMULATOR_BLOCK_H

#include "counters.h"
#include "fiber.h"
#include "hopper.h"
#include "include/site.h"
#include "include/vector_types.h"
#include "memory.h"
#include "race.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace nib_emulator
{

constexpr int warp_size = 32;
constexpr int max_named_barriers = 16;

/* What a launch is. `kernel` runs once in every thread. */
struct Launch {
    std::string name;
    dim3 grid, block;
    size_t shared_bytes = 0;
    uint64_t seed = 0;
    int architecture = 90; /* of the device */
    std::function<void()> kernel;
};

/* Random numbers of the schedule: xorshift64*, Vigna, 2016. */
struct Random {
    uint64_t state = 1;
    uint32_t next()
    {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return static_cast<uint32_t>((state * 0x2545F4914F6CDD1Dull) >> 32);
    }
    uint32_t below(uint32_t n) { return static_cast<uint32_t>((uint64_t{next()} * n) >> 32); }
};

/* A copy from global to shared memory that was issued and has not landed. */
struct AsyncCopy {
    void *shared;
    const void *global; /* read when it lands; nullptr: `bytes` were read, or zeroed, when it was issued */
    uint8_t bytes[16];
};

struct Lane {
    enum State : uint8_t { ready, waiting, finished };
    Context context;
    uint3 thread;
    State state;
    const char *waits_for; /* the operation, if waiting */
    Site waits_at;
    Site passed;                                   /* the last synchronisation it came to */
    int votes[3];                                  /* of the last barrier: and, or, count of the predicates */
    std::vector<AsyncCopy> open;                   /* since the last commit */
    std::vector<std::vector<AsyncCopy>> committed; /* oldest first */
};

/* The end of a warp-wide operation: reads and writes the arguments of the lanes in `arrived`, which lie on their
 * stacks; lanes that are absent have nullptr. */
using Completion = void (*)(uint32_t arrived, void *const argument[warp_size]);

/* Lanes on their way into one warp-wide operation. */
struct Meeting {
    const char *name = nullptr; /* nullptr: free */
    Site site{};
    uint32_t mask = 0, arrived = 0;
    bool aligned = false; /* every lane of the warp must take part */
    Completion complete = nullptr;
    void *argument[warp_size] = {};
};

struct Warp {
    uint32_t ready = 0, exists = 0, finished = 0; /* masks of lanes */
    std::vector<Meeting> meetings;
};

/* The 128 threads of a warp group on their way into one operation of all of them. */
using GroupCompletion = void (*)(unsigned group, void *const argument[group_size]);
struct GroupMeeting {
    const char *name = nullptr;
    Site site{};
    unsigned arrived = 0;
    void *argument[group_size] = {};
};

/* bar.sync and bar.arrive, 0 is __syncthreads. */
struct Barrier {
    unsigned arrived = 0, expected = 0;
    int reduction[3] = {}; /* of the predicates: and, or, count */
    Site site{};
    std::vector<unsigned> waiting;
    Known arrived_knew; /* threads that only arrived */
};

class Block
{
  public:
    static thread_local Block *current; /* the one that runs on this OS thread, or nullptr */

    Block();
    ~Block();
    Block(const Block &) = delete;
    Block &operator=(const Block &) = delete;

    /* Runs one block to its end; "" or what went wrong, with kernel, block, thread and place. */
    std::string run(const Launch &launch, uint3 index);

    /* From inside a kernel: */
    uint8_t *shared() { return shared_; }
    size_t shared_bytes() const { return launch_->shared_bytes; }
    bool is_shared(const void *address, size_t bytes) const;
    Lane &lane() { return lanes_[running_]; }
    unsigned lane_index() const { return running_ % warp_size; }
    unsigned warp_index() const { return running_ / warp_size; }
    unsigned threads() const { return threads_; }
    unsigned thread_index() const { return running_; }
    int architecture() const { return launch_->architecture; }
    Hopper &hopper() { return hopper_; }
    Random &random() { return random_; }
    Counters &counters() { return counters_; }
    Races &races() { return races_; }
    /* The buffer that holds all these bytes, or nullptr: one of those found last, or found now. */
    const Buffer *buffer_of(const void *address, size_t bytes);

    /* Blocks until all lanes in `mask` that have not ended are here too; the last one to come runs `complete`. */
    void meet(const char *name, Site site, uint32_t mask, bool aligned, void *argument, Completion complete);
    /* The same of a warp group, whose threads must all come to one place in the source. */
    void meet_group(const char *name, Site site, void *argument, GroupCompletion complete);
    /* The lane that elect.sync picks of the running warp. */
    unsigned elected_lane() const;
    /* Blocks until `expected` threads are at barrier `id` (0: all that have not ended, from one place in the source).
     * Returns the reductions of `predicate` over them: and, or, count. With wait = false only arrives. */
    struct Votes {
        int all, any, count;
    };
    Votes barrier(const char *name, Site site, unsigned id, unsigned expected, int predicate, bool wait);
    /* The running thread's access: a plain one, anywhere; to shared memory, which must not race. */
    void watch(const void *address, size_t bytes, Access kind);
    void share(size_t byte, size_t bytes, Access kind);
    /* Whether the running thread's own copies to some of these bytes have not landed. */
    bool on_its_way(const void *address, size_t bytes);
    /* Lets others run and comes back. */
    void yield();
    /* Blocks until wake() names this thread. */
    void wait(const char *name, Site site);
    void wake(unsigned thread);
    /* Ends the block: states what happened, in which thread. */
    [[noreturn]] void fail(Site site, const char *format, ...) __attribute__((format(printf, 3, 4)));
    /* The same from outside of its threads: a copy that lands. */
    void note(Site site, const std::string &what);
    /* Ends the block from a signal handler's trampoline: see fault.cpp. */
    [[noreturn]] void abandon(const std::string &what);
    bool address_in_stack(const void *address) const;
    bool beyond_shared(const void *address, long *offset) const;

  private:
    [[noreturn]] void fail_race(const char *what, size_t byte, size_t bytes, int other);
    static void run_lane();
    void prepare(const Launch &launch, uint3 index);
    void schedule();
    void run_warp(Warp &warp, unsigned number);
    void finish_lane();
    bool close_meeting(Warp &warp, unsigned number, Meeting &meeting);
    void release_barrier(Barrier &barrier);
    void suspend(const char *name, Site site);
    std::string who() const;
    std::string deadlock() const;
    void check_end();

    const Launch *launch_ = nullptr;
    uint3 index_{};
    unsigned threads_ = 0, running_ = 0, alive_ = 0;
    std::vector<Lane> lanes_;
    std::vector<Warp> warps_;
    std::vector<GroupMeeting> groups_;
    Hopper hopper_;
    Races races_;
    Barrier barriers_[max_named_barriers];
    Random random_;
    Context scheduler_;
    bool failed_ = false;
    std::string failure_;
    uint8_t *stacks_ = nullptr;
    unsigned stacks_made_ = 0;
    uint8_t *shared_ = nullptr;
    Counters counters_;
    Buffer found_[8] = {};
    unsigned next_found_ = 0;
};

/* Fails unless all bytes lie in one buffer of the device. */
void check_global(const char *name, Site site, const void *address, size_t bytes);

} // namespace nib_emulator

#endif
