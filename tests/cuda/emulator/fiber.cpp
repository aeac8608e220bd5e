#include "fiber.h"

#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace nib_emulator
{

#if defined(__SANITIZE_ADDRESS__)
struct Stack {
    void *bottom;
    size_t size;
};

/* Asked for once: for a process's first thread, glibc reads all of /proc/self/maps. */
static Stack own_stack()
{
    Stack stack;
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack.bottom, &stack.size);
    pthread_attr_destroy(&attributes);
    return stack;
}

static void before_switch(Context &from, const Context &to)
{
    static thread_local const Stack own = own_stack();
    const Stack stack = to.stack == nullptr ? own : Stack{to.stack, to.stack_size};
    __sanitizer_start_switch_fiber(&from.fake_stack, stack.bottom, stack.size);
}
static void after_switch(void *fake_stack) { __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr); }
static void clean_stack(void *stack, size_t size) { __asan_unpoison_memory_region(stack, size); }
#else
static void before_switch(Context &, const Context &) {}
static void after_switch(void *) {}
static void clean_stack(void *, size_t) {}
#endif

#if defined(__x86_64__)

/* Pushes what the System V ABI says a callee keeps, stores the stack pointer, takes the other one, pops, returns. */
extern "C" void nib_emulator_switch(void **save, void *load);
asm(R"(
    .text
    .type nib_emulator_switch, @function
nib_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size nib_emulator_switch, . - nib_emulator_switch

    .type nib_emulator_begin, @function
nib_emulator_begin:
    movq %rbx, %rdi
    call nib_emulator_enter
    ud2
    .size nib_emulator_begin, . - nib_emulator_begin
)");
extern "C" void nib_emulator_begin();

/* The first C++ that runs on a new stack; begin took the entry from where the switch popped rbx. */
extern "C" __attribute__((visibility("hidden"), used)) void nib_emulator_enter(void (*entry)())
{
    after_switch(nullptr);
    entry();
}

void prepare_context(Context &context, void *stack, size_t size, void (*entry)())
{
    clean_stack(stack, size);
    context.stack = stack;
    context.stack_size = size;
    uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t{63};
    void **slot = reinterpret_cast<void **>(top);
    *--slot = reinterpret_cast<void *>(nib_emulator_begin);
    for (int i = 0; i < 6; i++) *--slot = nullptr;
    slot[4] = reinterpret_cast<void *>(entry); /* rbx */
    context.stack_pointer = slot;
}

void switch_context(Context &from, Context &to)
{
    before_switch(from, to);
    nib_emulator_switch(&from.stack_pointer, to.stack_pointer);
    after_switch(from.fake_stack);
}

#else

void prepare_context(Context &context, void *stack, size_t size, void (*entry)())
{
    clean_stack(stack, size);
    context.stack = stack;
    context.stack_size = size;
    getcontext(&context.machine);
    context.machine.uc_stack.ss_sp = stack;
    context.machine.uc_stack.ss_size = size;
    context.machine.uc_link = nullptr;
    makecontext(&context.machine, entry, 0);
}

void switch_context(Context &from, Context &to)
{
    before_switch(from, to);
    swapcontext(&from.machine, &to.machine);
    after_switch(from.fake_stack);
}

#endif

} // namespace nib_emulator
