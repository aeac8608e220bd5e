/* The GPUs that `plan` knows by name. */
#ifndef NIB_RUNTIME_CARDS_H
#define NIB_RUNTIME_CARDS_H

#include "base/status.h"

#include <stdbool.h>

/* Figures of the vendors' data sheets, dense, without sparsity. */
typedef struct {
    const char *name;
    int capability;   /* 10 * major + minor */
    double memory;    /* bytes that a program can have */
    double matrix;    /* bf16 products with fp32 sums, operations a second */
    double bandwidth; /* of memory, bytes a second */
    double link;      /* to the other cards of a node, bytes a second each way */
} nib_card;

/* By name, in any case, spaces and dashes ignored: "h200", "RTX 4090". NIB_ERROR_USAGE: unknown, with the known
 * ones; NIB_ERROR_DEVICE: too old for Nibble, with the reason. */
nib_status nib_card_find(const char *name, const nib_card **card);

#endif
