/* Fibers: one CUDA thread of the emulator is one fiber, and a switch between two costs some ten nanoseconds.
 *
 * On x86-64 the switch saves the callee-saved registers by hand; elsewhere ucontext does it. AddressSanitizer is told
 * of every switch, as it keeps books about the stack in use.
 */
#ifndef NIB_EMULATOR_FIBER_H
#define NIB_EMULATOR_FIBER_H

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace nib_emulator
{

/* Where something that may run is, or stopped running. The stack belongs to the caller. */
struct Context {
#if defined(__x86_64__)
    void *stack_pointer = nullptr;
#else
    ucontext_t machine;
#endif
    void *stack = nullptr; /* nullptr: an OS thread's own stack */
    size_t stack_size = 0;
    void *fake_stack = nullptr; /* AddressSanitizer's */
};

/* Makes `context` begin at entry() on the given stack when it is first switched to. entry must never return. */
void prepare_context(Context &context, void *stack, size_t size, void (*entry)());

/* Saves the running context in `from` and continues `to`; returns when something switches back to `from`. */
void switch_context(Context &from, Context &to);

} // namespace nib_emulator

#endif
