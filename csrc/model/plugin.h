/* A backend in a shared library beside the program, so that the program starts on a machine without that backend's own
 * libraries (CUDA's). The library takes csrc's functions from the program that loads it; it exports one object, a
 * nib_plugin named NIB_PLUGIN_SYMBOL. */
#ifndef NIB_PLUGIN_H
#define NIB_PLUGIN_H

#include "model/ops.h"

#define NIB_PLUGIN_SYMBOL "nib_plugin_entry"

/* An instruction that kernels build on, held against a scalar computation of the same. */
typedef enum {
    NIB_INSTRUCTION_AGREES,
    NIB_INSTRUCTION_ABSENT, /* this device does not have it */
    NIB_INSTRUCTION_DISAGREES
} nib_instruction_verdict;

typedef struct {
    const char *name; /* "mma.m16n8k16.bf16" */
    nib_instruction_verdict verdict;
    char difference[128]; /* "" if there is none */
} nib_instruction_line;

typedef struct {
    const char *build; /* version and commit: the program's own, since the table of ops changes freely */
    /* The backend of this process's device (of `local_rank`, where a machine has several); gives itself back by
     * ops->close. NIB_ERROR_DEVICE says why there is none. */
    nib_status (*create)(int local_rank, nib_ops **ops);
    /* One line: what the device of `local_rank` is. NIB_ERROR_DEVICE as create. */
    nib_status (*describe)(int local_rank, char *text, size_t bytes);
    /* One line: the versions of the libraries that the backend computes with. */
    void (*libraries)(char *text, size_t bytes);
    /* For `nibble doctor`: how many instructions there are to check, and the check of instruction i on a device. */
    int (*instructions)(void);
    nib_status (*check_instruction)(nib_ops *ops, int i, nib_instruction_line *line);
} nib_plugin;

#endif
