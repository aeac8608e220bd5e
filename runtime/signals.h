/* Requests to stop. None of them has a handler: one would run on the stack of whatever thread the system picks, and the
 * single-precision products that oneDNN compiles (jit_avx512_common_gemm_f32) move the stack pointer to a buffer on the
 * heap, below which the frame of a handler overwrites what it meets. So signals are blocked in every thread and taken
 * where it is safe. */
#ifndef NIB_SIGNALS_H
#define NIB_SIGNALS_H

#include "base/status.h"

#include <stdbool.h>

/* From here on a thread waits for signals: the first SIGINT, SIGTERM or SIGUSR1 asks for a stop at the next step
 * boundary; a second one ends the program at once. SIGUSR2, which launchers pass on, asks for nothing. SIGPIPE ends
 * nothing: what nobody reads is lost. Before any other thread is started, since threads inherit what is blocked.
 * NIB_ERROR_MEMORY: no thread. */
nib_status nib_signals_watch(void);
/* The end is settled: a SIGTERM, which a launcher sends to all once the first rank has ended, changes nothing any more.
 */
void nib_signals_settled(void);
bool nib_signals_stop_requested(void);
int nib_signals_last(void); /* number of the signal that asked, 0: none */

/* For a program that talks with a user: a SIGINT that is held ends nothing, and waits until it is taken. Held for the
 * calling thread and those that it starts meanwhile; a program that has threads holds while it starts them. */
void nib_interrupt_hold(bool held);
bool nib_interrupt_take(void); /* whether one had come; it is gone then */

#endif
