/* Barriers of the block, and the warp's shuffles, votes and reductions. */
#include "block.h"
#include "include/emulated_device.h"

namespace nib_emulator
{

void sync_threads(Site site) { Block::current->barrier("__syncthreads", site, 0, 0, 1, true); }

int sync_threads_vote(const char *name, Site site, int predicate)
{
    Block::Votes votes = Block::current->barrier(name, site, 0, 0, predicate, true);
    switch (name[14]) { /* after "__syncthreads_" */
    case 'a':
        return votes.all;
    case 'o':
        return votes.any;
    default:
        return votes.count;
    }
}

void sync_warp(Site site, unsigned mask)
{
    unsigned first = Block::current->warp_index() * warp_size;
    Block::current->meet("__syncwarp", site, mask, false, &first, [](uint32_t arrived, void *const all[warp_size]) {
        std::vector<unsigned> threads;
        for (unsigned lane = 0; lane < warp_size; lane++)
            if (arrived >> lane & 1) threads.push_back(*static_cast<unsigned *>(all[lane]) + lane);
        Block::current->races().join(threads);
    });
}

void pause() { Block::current->yield(); }
void *shared_memory() { return Block::current->shared(); }

struct ShuffleArgument {
    uint64_t value, result;
    unsigned source;
};

/* What a lane reads from one that is not there is garbage: NaN. */
static void exchange(uint32_t arrived, void *const argument[warp_size])
{
    for (unsigned lane = 0; lane < warp_size; lane++) {
        if ((arrived >> lane & 1) == 0) continue;
        ShuffleArgument *mine = static_cast<ShuffleArgument *>(argument[lane]);
        bool there = arrived >> mine->source & 1;
        mine->result = there ? static_cast<ShuffleArgument *>(argument[mine->source])->value : ~uint64_t{0};
    }
}

/* PTX, shfl.sync: a segment of `width` lanes; a source outside it means the lane's own value. */
uint64_t shuffle(const char *name, Site site, unsigned mask, uint64_t value, Shuffle kind, unsigned operand, int width)
{
    Block &block = *Block::current;
    if (width < 1 || width > warp_size || (width & (width - 1)) != 0)
        block.fail(site, "%s: width %d, expected a power of two up to 32", name, width);
    unsigned lane = block.lane_index(), size = static_cast<unsigned>(width);
    unsigned first = lane & ~(size - 1), source = lane;
    switch (kind) {
    case Shuffle::index:
        source = first + operand % size;
        break;
    case Shuffle::up:
        if (lane - first >= operand) source = lane - operand;
        break;
    case Shuffle::down:
        if (lane - first + operand < size) source = lane + operand;
        break;
    case Shuffle::exclusive_or:
        if ((lane ^ operand) < first + size) source = lane ^ operand;
        break;
    }
    ShuffleArgument argument{value, 0, source};
    block.meet(name, site, mask, false, &argument, exchange);
    return argument.result;
}

struct BallotArgument {
    bool predicate;
    unsigned result;
};

unsigned ballot(const char *name, Site site, unsigned mask, bool predicate)
{
    BallotArgument argument{predicate, 0};
    Block::current->meet(name, site, mask, false, &argument, [](uint32_t arrived, void *const all[warp_size]) {
        unsigned bits = 0;
        for (unsigned lane = 0; lane < warp_size; lane++)
            if (arrived >> lane & 1 && static_cast<BallotArgument *>(all[lane])->predicate) bits |= 1u << lane;
        for (unsigned lane = 0; lane < warp_size; lane++)
            if (arrived >> lane & 1) static_cast<BallotArgument *>(all[lane])->result = bits;
    });
    return argument.result;
}

struct ReduceArgument {
    unsigned value;
    Reduction kind;
    bool is_signed;
    unsigned result;
};

static unsigned combine(const ReduceArgument &how, unsigned a, unsigned b)
{
    bool a_less = how.is_signed ? static_cast<int>(a) < static_cast<int>(b) : a < b;
    switch (how.kind) {
    case Reduction::add:
        return a + b;
    case Reduction::minimum:
        return a_less ? a : b;
    case Reduction::maximum:
        return a_less ? b : a;
    case Reduction::and_bits:
        return a & b;
    case Reduction::or_bits:
        return a | b;
    case Reduction::xor_bits:
        return a ^ b;
    }
    return 0;
}

unsigned reduce(const char *name, Site site, unsigned mask, unsigned value, Reduction kind, bool is_signed)
{
    ReduceArgument argument{value, kind, is_signed, 0};
    Block::current->meet(name, site, mask, false, &argument, [](uint32_t arrived, void *const all[warp_size]) {
        const ReduceArgument *first = nullptr;
        unsigned result = 0;
        for (unsigned lane = 0; lane < warp_size; lane++) {
            if ((arrived >> lane & 1) == 0) continue;
            const ReduceArgument *mine = static_cast<ReduceArgument *>(all[lane]);
            result = first == nullptr ? mine->value : combine(*first, result, mine->value);
            if (first == nullptr) first = mine;
        }
        for (unsigned lane = 0; lane < warp_size; lane++)
            if (arrived >> lane & 1) static_cast<ReduceArgument *>(all[lane])->result = result;
    });
    return argument.result;
}

} // namespace nib_emulator
