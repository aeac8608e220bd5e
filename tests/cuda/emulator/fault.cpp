#include "fault.h"

#include "block.h"
#include "memory.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <unistd.h>

namespace nib_emulator
{

constexpr size_t stack_bytes = 128 << 10;

/* The signal's own stack (the lane's may be what overflowed), and the one on which the report is written. */
struct Stacks {
    alignas(64) char signal[stack_bytes];
    alignas(64) char report[stack_bytes];
};
static thread_local Stacks *stacks;
static thread_local const void *fault_address;
static thread_local int fault_signal;

/* Where the faulting lane goes on; its own stack is left as it is. */
static void report()
{
    Block &block = *Block::current;
    const void *address = fault_address;
    long offset;
    std::string what;
    if (fault_signal == SIGFPE)
        what = "division by zero";
    else if (address == nullptr)
        what = "a null pointer was followed, or a vector of 16 bytes was read or written where it is not aligned";
    else if (block.beyond_shared(address, &offset))
        what = "touched byte " + std::to_string(offset) + " of shared memory, " + std::to_string(block.shared_bytes()) +
               " bytes were asked for";
    else if (block.address_in_stack(address))
        what = "stack overflow: a thread's local arrays are too large for the emulator";
    else
        what = "touched " + describe_address(address);
    block.abandon(what);
}

static struct sigaction previous_actions[NSIG]; /* what there was before: a test framework's, or the default */

static void handle(int signal, siginfo_t *info, void *context)
{
    if (Block::current == nullptr) {
        char text[300];
        int length = std::snprintf(text, sizeof text, "emulator: host code touched %s\n",
                                   describe_address(info->si_addr).c_str());
        if (length > 0 && write(STDERR_FILENO, text, static_cast<size_t>(length)) < 0) _exit(2);
        sigaction(signal, &previous_actions[signal], nullptr);
        return; /* and the fault comes again */
    }
    fault_address = info->si_addr;
    fault_signal = signal;
#if defined(__x86_64__)
    greg_t *registers = static_cast<ucontext_t *>(context)->uc_mcontext.gregs;
    registers[REG_RSP] = reinterpret_cast<greg_t>(stacks->report + stack_bytes - 64) - 8; /* as after a call */
    registers[REG_RIP] = reinterpret_cast<greg_t>(report);
#else
    (void)context;
    report();
#endif
}

/* Test frameworks put their own handlers in place for every test: each launch looks again. */
void handle_faults()
{
    for (int signal : {SIGSEGV, SIGBUS, SIGFPE}) {
        struct sigaction ours = {}, there;
        sigaction(signal, nullptr, &there);
        if ((there.sa_flags & SA_SIGINFO) != 0 && there.sa_sigaction == handle) continue;
        previous_actions[signal] = there;
        ours.sa_sigaction = handle;
        ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigemptyset(&ours.sa_mask);
        sigaction(signal, &ours, nullptr);
    }
}

void prepare_thread_for_faults()
{
    if (stacks != nullptr) return;
    stacks = static_cast<Stacks *>(std::aligned_alloc(64, sizeof(Stacks)));
    if (stacks == nullptr) std::abort();
    stack_t alternative{};
    alternative.ss_sp = stacks->signal;
    alternative.ss_size = stack_bytes;
    sigaltstack(&alternative, nullptr);
}

} // namespace nib_emulator
