/* What a block of sm_90a has besides its warps: barriers that count bytes (mbarrier), copies of tensor tiles that an
 * engine makes while threads go on (TMA), products of a warp group under way (wgmma), and registers that warp groups
 * hand to each other (setmaxnreg). The instructions are functions of emulated_hopper.h; here is what they leave behind.
 *
 * Late on purpose: a copy lands when no thread can run, or by a rare chance; a product reaches its registers at the
 * wait of each thread. Until then the destination holds NaN.
 */
#ifndef NIB_EMULATOR_HOPPER_H
#define NIB_EMULATOR_HOPPER_H

#include "include/cuda.h"
#include "include/site.h"
#include "race.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace nib_emulator
{

class Block;

constexpr unsigned group_size = 128; /* threads of a warp group */
constexpr unsigned granule = 16;     /* bytes of shared memory whose writer is remembered */

struct TransactionBarrier {
    unsigned count;   /* arrivals of a phase */
    unsigned pending; /* arrivals that this phase still misses */
    int64_t bytes;    /* expected and not there; below 0 while a copy has landed before it was expected */
    unsigned phase;
    unsigned owner; /* the thread that initialised it */
    bool visible;   /* to the copy engine: its owner has fenced */
    Site site;
    std::vector<unsigned> waiting;
    unsigned index;        /* among the block's */
    Known arrived, passed; /* what the threads and copies of this phase, and of all before, knew */
};

/* A copy between global and shared memory that was issued and has not landed. */
struct BulkCopy {
    enum Kind { tensor_load, linear_load, tensor_store } kind;
    CUtensorMap map;
    int coordinate[5];
    uint8_t *shared;
    const uint8_t *global; /* of linear_load */
    unsigned bytes;
    unsigned barrier; /* byte of shared memory; of loads */
    unsigned thread, group;
    Site site;
    Known known; /* to the thread */
};

/* Where an operand of a product lies, by its descriptor. */
struct SharedOperand {
    uint64_t descriptor;
    bool mn_major; /* consecutive elements along m or n, not along k */
    unsigned rows; /* m or n */
};

/* A wgmma of a warp group from issue to the last thread's wait. */
struct GroupProduct {
    const char *name;
    Site site;
    unsigned n;
    std::vector<float> result; /* [64, n] */
    float *registers[group_size];
    bool superseded = false; /* a later product under way took over its sums */
    unsigned left = group_size;
    std::vector<SharedOperand> operands;
    std::vector<std::vector<uint16_t>> contents; /* of operands, at issue */
};

/* What one thread has under way. */
struct AsyncWork {
    uint16_t fences = 0; /* fence.proxy.async so far */
    unsigned store_groups = 0;
    bool products_fenced = false;
    std::vector<std::shared_ptr<GroupProduct>> open;
    std::vector<std::vector<std::shared_ptr<GroupProduct>>> committed; /* oldest first */
};

struct RegisterRequest {
    unsigned group, registers;
    std::vector<unsigned> waiting;
};

class Hopper
{
  public:
    void prepare(unsigned threads, size_t shared_bytes);

    AsyncWork &work(unsigned thread) { return work_[thread]; }
    std::map<unsigned, TransactionBarrier> barriers; /* by their byte of shared memory */
    std::vector<BulkCopy> copies;
    std::vector<std::vector<std::shared_ptr<GroupProduct>>> flying; /* products by warp group, oldest first */
    unsigned free_registers = 0;
    std::vector<unsigned> registers; /* of a thread, by warp group */
    std::vector<RegisterRequest> requests;

    /* A thread wrote these bytes of shared memory; the copy engine and wgmma see them after its fence. */
    void wrote(unsigned thread, size_t byte, size_t bytes);
    void fence(unsigned thread);
    void engine_wrote(size_t byte, size_t bytes);
    /* The thread that wrote some of these bytes and has not fenced since, or -1. */
    int unfenced_writer(size_t byte, size_t bytes) const;

    /* Lands one copy, by `choice`; wakes who waits for it. */
    void land(Block &block, unsigned choice);
    void land(Block &block, std::vector<BulkCopy>::iterator copy);
    /* "" or what thread left behind when it ended. */
    std::string left_by(unsigned thread) const;
    std::string left_by_block() const;
    /* For a deadlock's message: who waits for which barrier or for how many registers. */
    std::string describe_waits() const;

  private:
    struct Writer {
        uint16_t thread; /* + 1; 0: none */
        uint16_t fences; /* that it had made */
    };
    std::vector<AsyncWork> work_;
    std::vector<Writer> writers_; /* by granule */
};

/* For the instructions: the block that runs; fails unless the device is of sm_90. */
Block &hopper_block(const char *name, Site site);
/* Counts arrivals and bytes in, and ends the phase if none is missing. */
void advance(Block &block, TransactionBarrier &barrier, unsigned arrivals, int64_t bytes);
/* The barrier there; fails if there is none or it was overwritten. */
TransactionBarrier &find_barrier(const char *name, Site site, const uint64_t *barrier);
/* Copies a box between shared and global memory: the engine's work. */
void move_tensor(const CUtensorMap &map, const int *coordinate, uint8_t *shared, const uint8_t *shared_base,
                 bool store);

} // namespace nib_emulator

#endif
