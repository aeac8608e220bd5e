/* What `nibble doctor` says of the machine: lines of a name and a text, in the order of a report. */
#ifndef NIB_RUNTIME_DOCTOR_MACHINE_H
#define NIB_RUNTIME_DOCTOR_MACHINE_H

#include "base/status.h"

typedef void (*nib_doctor_fact)(void *user, const char *name, const char *text);

/* System, processor and its features, memory, room where runs and cache lie, GPUs or why there are none, NCCL, MPI. */
void nib_doctor_machine(nib_doctor_fact fact, void *user);

#endif
