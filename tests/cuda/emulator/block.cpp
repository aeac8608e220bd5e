#include "block.h"

#include "memory.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <sys/mman.h>

/* CUDA's own names, as the kernels read them. */
__constinit thread_local uint3 threadIdx{}, blockIdx{};
__constinit thread_local dim3 blockDim{}, gridDim{};

namespace nib_emulator
{

#if defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
constexpr size_t stack_bytes = 256 << 10;
#else
constexpr size_t stack_bytes = 64 << 10;
#endif
constexpr size_t page = 4096;
constexpr size_t shared_capacity = 228 << 10; /* the most that any chip has */
constexpr size_t shared_guard = 16 << 20;     /* before and behind it: reserved, never there */
constexpr unsigned max_threads = 1024;

thread_local Block *Block::current = nullptr;

static uint8_t *reserve(size_t bytes)
{
    void *block = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) {
        std::perror("emulator: mmap");
        std::abort();
    }
    return static_cast<uint8_t *>(block);
}

/* What lies around shared memory, and a page below every stack, cannot be touched. */
Block::Block()
{
    shared_ = reserve(shared_capacity + 2 * shared_guard) + shared_guard;
    mprotect(shared_, shared_capacity, PROT_READ | PROT_WRITE);
    stacks_ = reserve(max_threads * (stack_bytes + page));
}

Block::~Block()
{
    munmap(shared_ - shared_guard, shared_capacity + 2 * shared_guard);
    munmap(stacks_, max_threads * (stack_bytes + page));
}

std::string Block::run(const Launch &launch, uint3 index)
{
    prepare(launch, index);
    current = this;
    schedule();
    current = nullptr;
    if (!failed_) check_end();
    counters_.blocks++;
    return failure_;
}

void Block::prepare(const Launch &launch, uint3 index)
{
    launch_ = &launch;
    index_ = index;
    threads_ = launch.block.x * launch.block.y * launch.block.z;
    alive_ = threads_;
    failed_ = false;
    failure_.clear();
    for (Buffer &buffer : found_) buffer = Buffer{};
    uint64_t number = index.x + launch.grid.x * (index.y + uint64_t{launch.grid.y} * index.z);
    random_.state = (launch.seed ^ (number + 1) * 0x9E3779B97F4A7C15ull) | 1;
    for (int i = 0; i < 4; i++) random_.next();

    for (; stacks_made_ < threads_; stacks_made_++)
        mprotect(stacks_ + stacks_made_ * (stack_bytes + page) + page, stack_bytes, PROT_READ | PROT_WRITE);
    lanes_.resize(threads_);
    warps_.assign((threads_ + warp_size - 1) / warp_size, Warp{});
    groups_.assign(threads_ / group_size, GroupMeeting{});
    hopper_.prepare(threads_, launch.shared_bytes);
    races_.prepare(threads_, launch.shared_bytes);
    for (Barrier &barrier : barriers_) barrier = Barrier{};
    poison(shared_, launch.shared_bytes);
    fill_sentinels(shared_ + launch.shared_bytes, round_up(launch.shared_bytes, page) - launch.shared_bytes);

    for (unsigned i = 0; i < threads_; i++) {
        Lane &lane = lanes_[i];
        lane.thread = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
        lane.state = Lane::ready;
        lane.passed = {};
        lane.open.clear();
        lane.committed.clear();
        prepare_context(lane.context, stacks_ + i * (stack_bytes + page) + page, stack_bytes, run_lane);
        Warp &warp = warps_[i / warp_size];
        warp.exists |= 1u << i % warp_size;
        warp.ready |= 1u << i % warp_size;
    }
    blockIdx = index;
    blockDim = launch.block;
    gridDim = launch.grid;
}

void Block::run_lane()
{
    current->launch_->kernel();
    current->finish_lane();
}

/* A random warp among those that can run, one pass over its lanes or until it blocks. Copies are late: they land when
 * nobody can run, or, so that their order varies, now and then. */
void Block::schedule()
{
    while (alive_ > 0 && !failed_) {
        unsigned count = 0, chosen = 0;
        for (unsigned i = 0; i < warps_.size(); i++)
            if (warps_[i].ready != 0 && random_.below(++count) == 0) chosen = i;
        if (!hopper_.copies.empty() && (count == 0 || random_.below(16) == 0)) {
            hopper_.land(*this, random_.next());
            continue;
        }
        if (count == 0) {
            failed_ = true;
            failure_ = deadlock();
            return;
        }
        bool run_ahead = random_.below(4) != 0;
        do run_warp(warps_[chosen], chosen);
        while (run_ahead && warps_[chosen].ready != 0 && !failed_);
    }
}

/* The ready lanes once, in an order by a random start and an odd stride. */
void Block::run_warp(Warp &warp, unsigned number)
{
    uint32_t start = random_.next(), stride = random_.next() | 1;
    for (uint32_t i = 0; i < warp_size && !failed_; i++) {
        uint32_t lane = (start + i * stride) % warp_size;
        if ((warp.ready >> lane & 1) == 0) continue;
        running_ = number * warp_size + lane;
        threadIdx = lanes_[running_].thread;
        counters_.switches++;
        switch_context(scheduler_, lanes_[running_].context);
    }
}

void Block::yield() { switch_context(lane().context, scheduler_); }

void Block::suspend(const char *name, Site site)
{
    Lane &self = lane();
    self.state = Lane::waiting;
    self.waits_for = name;
    self.waits_at = site;
    warps_[warp_index()].ready &= ~(1u << lane_index());
    yield();
}

void Block::wait(const char *name, Site site) { suspend(name, site); }

void Block::wake(unsigned thread)
{
    lanes_[thread].state = Lane::ready;
    warps_[thread / warp_size].ready |= 1u << thread % warp_size;
}

/* A thread that ends may be the last one that others were waiting for. */
void Block::finish_lane()
{
    Warp &warp = warps_[warp_index()];
    uint32_t bit = 1u << lane_index();
    std::string left = hopper_.left_by(running_);
    if (!left.empty()) abandon(left);
    if (running_ / group_size < groups_.size() && groups_[running_ / group_size].arrived > 0)
        fail(groups_[running_ / group_size].site, "ended while others of its warp group are at %s",
             groups_[running_ / group_size].name);
    lane().state = Lane::finished;
    warp.ready &= ~bit;
    warp.finished |= bit;
    alive_--;
    for (Meeting &meeting : warp.meetings) {
        if (meeting.name == nullptr || (meeting.mask & bit) == 0) continue;
        if (meeting.aligned)
            fail(meeting.site, "ended while other lanes of its warp are at %s, which needs all 32", meeting.name);
        close_meeting(warp, warp_index(), meeting);
    }
    if (barriers_[0].arrived > 0 && barriers_[0].arrived == alive_) release_barrier(barriers_[0]);
    for (;;) yield();
}

/* ---- warps ---- */

void Block::meet(const char *name, Site site, uint32_t mask, bool aligned, void *argument, Completion complete)
{
    Warp &warp = warps_[warp_index()];
    uint32_t bit = 1u << lane_index();
    lane().passed = site;
    mask &= warp.exists;
    if ((mask & bit) == 0) fail(site, "%s: lane %u is not in its own mask 0x%08x", name, lane_index(), mask);
    if (aligned && (mask != warp.exists || warp.exists != ~0u || warp.finished != 0))
        fail(site, "%s needs all 32 lanes: lanes 0x%08x are there", name, warp.exists & ~warp.finished);

    Meeting *meeting = nullptr;
    for (Meeting &open : warp.meetings)
        if (open.name == name && open.mask == mask && open.site.line == site.line && open.site.file == site.file)
            meeting = &open;
    if (meeting == nullptr) {
        for (Meeting &open : warp.meetings)
            if (open.name == nullptr) meeting = &open;
        if (meeting == nullptr) meeting = &warp.meetings.emplace_back();
        *meeting = Meeting{};
        meeting->name = name;
        meeting->site = site;
        meeting->mask = mask;
        meeting->aligned = aligned;
        meeting->complete = complete;
    }
    meeting->arrived |= bit;
    meeting->argument[lane_index()] = argument;
    if (!close_meeting(warp, warp_index(), *meeting)) suspend(name, site);
}

/* Runs the operation if nobody is missing, and lets the lanes go on. */
bool Block::close_meeting(Warp &warp, unsigned number, Meeting &meeting)
{
    if (meeting.arrived == 0 || meeting.arrived != (meeting.mask & ~warp.finished)) return false;
    meeting.complete(meeting.arrived, meeting.argument);
    meeting.name = nullptr;
    for (unsigned lane = 0; lane < warp_size; lane++)
        if (meeting.arrived >> lane & 1) wake(number * warp_size + lane);
    return true;
}

/* ---- warp groups ---- */

void Block::meet_group(const char *name, Site site, void *argument, GroupCompletion complete)
{
    unsigned number = running_ / group_size;
    if (number >= groups_.size()) fail(site, "%s outside of a whole warp group", name);
    GroupMeeting &meeting = groups_[number];
    lane().passed = site;
    if (meeting.arrived > 0 && (meeting.site.line != site.line || meeting.site.file != site.file))
        fail(site, "divergence: is at this %s while others of its warp group are at %s (%s:%d)", name, meeting.name,
             meeting.site.file, meeting.site.line);
    for (unsigned i = 0; i < group_size; i++)
        if (lanes_[number * group_size + i].state == Lane::finished)
            fail(site, "%s needs all 128 threads of the warp group: thread %u has ended", name,
                 number * group_size + i);
    meeting.name = name;
    meeting.site = site;
    meeting.argument[running_ % group_size] = argument;
    if (++meeting.arrived < group_size) {
        suspend(name, site);
        return;
    }
    meeting.arrived = 0;
    complete(number, meeting.argument);
    for (unsigned i = 0; i < group_size; i++) wake(number * group_size + i);
}

unsigned Block::elected_lane() const
{
    return static_cast<unsigned>((launch_->seed >> 8) + 7 * warp_index()) % warp_size;
}

/* ---- barriers ---- */

Block::Votes Block::barrier(const char *name, Site site, unsigned id, unsigned expected, int predicate, bool wait)
{
    if (id >= max_named_barriers) fail(site, "%s: barrier %u of 0 to %d", name, id, max_named_barriers - 1);
    Barrier &barrier = barriers_[id];
    lane().passed = site;
    bool whole_block = id == 0 && expected == 0;
    if (!whole_block && (expected == 0 || expected % warp_size != 0))
        fail(site, "%s: barrier %u for %u threads, expected a multiple of 32", name, id, expected);
    if (barrier.arrived == 0) {
        barrier.expected = expected;
        barrier.site = site;
        barrier.reduction[0] = 1;
        barrier.reduction[1] = barrier.reduction[2] = 0;
    } else if (whole_block && (barrier.site.line != site.line || barrier.site.file != site.file)) {
        fail(site, "divergence: is at this %s while another thread is at that of %s:%d", name, barrier.site.file,
             barrier.site.line);
    } else if (barrier.expected != expected) {
        fail(site, "%s: barrier %u for %u threads while others use it for %u (%s:%d)", name, id, expected,
             barrier.expected, barrier.site.file, barrier.site.line);
    }
    barrier.reduction[0] &= predicate != 0;
    barrier.reduction[1] |= predicate != 0;
    barrier.reduction[2] += predicate != 0;
    barrier.arrived++;
    if (wait)
        barrier.waiting.push_back(running_);
    else
        races_.release(running_, barrier.arrived_knew);
    bool complete = barrier.arrived == (whole_block ? alive_ : expected);
    if (complete) release_barrier(barrier);
    if (wait && !complete) suspend(name, site);
    return {lane().votes[0], lane().votes[1], lane().votes[2]};
}

void Block::release_barrier(Barrier &barrier)
{
    if (&barrier == &barriers_[0])
        races_.begin_age();
    else
        races_.join(barrier.waiting, barrier.arrived_knew);
    barrier.arrived_knew = nullptr;
    for (unsigned thread : barrier.waiting) {
        std::copy_n(barrier.reduction, 3, lanes_[thread].votes);
        wake(thread);
    }
    barrier.waiting.clear();
    barrier.arrived = 0;
}

/* ---- what went wrong ---- */

static std::string format_list(const char *format, va_list arguments)
{
    char text[1024];
    std::vsnprintf(text, sizeof text, format, arguments);
    return text;
}

static std::string format(const char *format, ...) __attribute__((format(printf, 1, 2)));
static std::string format(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    std::string text = format_list(format, arguments);
    va_end(arguments);
    return text;
}

static std::string thread_name(uint3 t) { return format("(%u,%u,%u)", t.x, t.y, t.z); }

std::string Block::who() const
{
    return launch_->name + ", block " + thread_name(index_) + ", thread " + thread_name(lanes_[running_].thread);
}

void Block::fail(Site site, const char *text, ...)
{
    va_list arguments;
    va_start(arguments, text);
    std::string what = format_list(text, arguments);
    va_end(arguments);
    abandon(format("%s:%d: ", site.file, site.line) + what);
}

void Block::note(Site site, const std::string &what)
{
    failed_ = true;
    failure_ = launch_->name + ", block " + thread_name(index_) + format(": %s:%d: ", site.file, site.line) + what;
}

void Block::abandon(const std::string &what)
{
    failed_ = true;
    failure_ = who() + ": " + what;
    for (;;) switch_context(lane().context, scheduler_);
}

/* Who waits where, threads of one place together. */
std::string Block::deadlock() const
{
    std::map<std::string, std::vector<unsigned>> places;
    for (unsigned i = 0; i < threads_; i++)
        if (lanes_[i].state == Lane::waiting)
            places[format("%s at %s:%d", lanes_[i].waits_for, lanes_[i].waits_at.file, lanes_[i].waits_at.line)]
                .push_back(i);
    std::string text = launch_->name + ", block " + thread_name(index_) + ": deadlock:";
    for (const auto &[place, threads] : places) {
        text += format(" %zu threads (first (%u,%u,%u), last (%u,%u,%u)) wait for %s;", threads.size(),
                       lanes_[threads.front()].thread.x, lanes_[threads.front()].thread.y,
                       lanes_[threads.front()].thread.z, lanes_[threads.back()].thread.x,
                       lanes_[threads.back()].thread.y, lanes_[threads.back()].thread.z, place.c_str());
    }
    return text + hopper_.describe_waits() + format(" %u of %u threads have ended", threads_ - alive_, threads_);
}

bool Block::is_shared(const void *address, size_t bytes) const
{
    const uint8_t *at = static_cast<const uint8_t *>(address);
    return at >= shared_ && at + bytes <= shared_ + launch_->shared_bytes;
}

bool Block::beyond_shared(const void *address, long *offset) const
{
    const uint8_t *at = static_cast<const uint8_t *>(address);
    *offset = at - shared_;
    return at >= shared_ - shared_guard && at < shared_ + shared_capacity + shared_guard;
}

bool Block::address_in_stack(const void *address) const
{
    const uint8_t *at = static_cast<const uint8_t *>(address);
    return at >= stacks_ && at < stacks_ + max_threads * (stack_bytes + page);
}

void Block::check_end()
{
    failure_ = hopper_.left_by_block();
    for (unsigned id = 1; id < max_named_barriers && failure_.empty(); id++)
        if (barriers_[id].arrived > 0)
            failure_ = format("all threads ended while %u have arrived at barrier %u (%s:%d) and nobody waits for them",
                              barriers_[id].arrived, id, barriers_[id].site.file, barriers_[id].site.line);
    if (!failure_.empty()) {
        failed_ = true;
        failure_ = launch_->name + ", block " + thread_name(index_) + ": " + failure_;
        return;
    }
    size_t size = launch_->shared_bytes, slack = round_up(size, page) - size;
    size_t damaged = first_damage(shared_ + size, slack);
    if (damaged == slack) return;
    failed_ = true;
    failure_ = launch_->name + ", block " + thread_name(index_) +
               format(": a thread wrote to shared memory at byte %zu, %zu bytes were asked for", size + damaged, size);
}

} // namespace nib_emulator
