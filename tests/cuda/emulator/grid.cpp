#include "grid.h"

#include "fault.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>

namespace nib_emulator
{

/* One launch as all workers see it. */
struct Work {
    const Launch *launch;
    std::vector<uint32_t> order; /* of the blocks */
    std::atomic<size_t> next{0};
    std::mutex lock;
    std::string failure;
    Counters counters;
};

static void run_blocks(Work &work)
{
    static thread_local std::unique_ptr<Block> block;
    prepare_thread_for_faults();
    if (block == nullptr) block = std::make_unique<Block>();
    block->counters() = Counters{};
    dim3 grid = work.launch->grid;
    for (size_t i; (i = work.next++) < work.order.size();) {
        unsigned n = work.order[i];
        std::string failure = block->run(*work.launch, {n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y});
        if (failure.empty()) continue;
        std::lock_guard guard(work.lock);
        if (work.failure.empty()) work.failure = failure;
        work.next = work.order.size();
    }
    std::lock_guard guard(work.lock);
    work.counters.add(block->counters());
}

/* Threads that wait for a launch and help; they live as long as the program. */
class Helpers
{
  public:
    Helpers()
    {
        unsigned count = std::min(std::max(std::thread::hardware_concurrency(), 1u), 16u) - 1;
        for (unsigned i = 0; i < count; i++) std::thread([this] { serve(); }).detach();
        count_ = count;
    }
    void run(Work &work)
    {
        {
            std::lock_guard guard(lock_);
            work_ = &work;
            busy_ = count_;
            generation_++;
        }
        begin_.notify_all();
        run_blocks(work);
        std::unique_lock guard(lock_);
        end_.wait(guard, [this] { return busy_ == 0; });
    }

  private:
    void serve()
    {
        uint64_t seen = 0;
        for (;;) {
            Work *work;
            {
                std::unique_lock guard(lock_);
                begin_.wait(guard, [&] { return generation_ != seen; });
                seen = generation_;
                work = work_;
            }
            run_blocks(*work);
            std::lock_guard guard(lock_);
            if (--busy_ == 0) end_.notify_one();
        }
    }
    std::mutex lock_;
    std::condition_variable begin_, end_;
    Work *work_ = nullptr;
    uint64_t generation_ = 0;
    unsigned count_ = 0, busy_ = 0;
};

std::string run_grid(const Launch &launch, Counters &counters)
{
    handle_faults();
    Work work;
    work.launch = &launch;
    work.order.resize(size_t{launch.grid.x} * launch.grid.y * launch.grid.z);
    std::iota(work.order.begin(), work.order.end(), 0u);
    Random random{launch.seed | 1};
    for (size_t i = work.order.size(); i > 1; i--)
        std::swap(work.order[i - 1], work.order[random.below(static_cast<uint32_t>(i))]);
    if (work.order.size() == 1) {
        run_blocks(work);
    } else {
        static Helpers *helpers = new Helpers; /* never destroyed: its threads wait in it */
        helpers->run(work);
    }
    counters.add(work.counters);
    return work.failure;
}

} // namespace nib_emulator
