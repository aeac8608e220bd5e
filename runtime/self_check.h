/* The program holds a device against itself, since that device may be the first that a kernel meets: every op on random
 * data of awkward shapes, by the fast kernels, by their plain siblings (ops->use_plain), and by the CPU's portable ops
 * in fp32, which are the reference.
 *
 * A difference is |found - expected| / (root mean square of the expected values + |expected|), the largest over all
 * values of all results of a case. Inputs are values that bf16 holds, the same ones everywhere.
 */
#ifndef NIB_RUNTIME_SELF_CHECK_H
#define NIB_RUNTIME_SELF_CHECK_H

#include "model/ops.h"

/* SHORT: under two seconds on a GPU, before a run; FULL: with larger shapes, under a minute. Beside what ops take as
 * scratch they need 0.5 and 37 MiB of the device: as much as the largest case. */
typedef enum { NIB_CHECK_SHORT, NIB_CHECK_FULL } nib_check_size;

typedef enum {
    NIB_CHECK_AGREES,
    NIB_CHECK_PLAIN,    /* the fast kernel disagrees, its sibling does not: it is switched off */
    NIB_CHECK_DISAGREES /* none agrees */
} nib_check_verdict;

typedef struct {
    const char *op;    /* "attention_forward" */
    char shape[96];    /* "T 70, 4 heads of 64, 2 of keys" */
    const char *which; /* the result with the largest difference: "dk" */
    double fast;       /* its difference, as a share of what is allowed decides which is largest */
    double plain;      /* that of the plain kernels; NaN: the op has only one kind */
    double allowed;
    nib_check_verdict verdict;
    uint32_t off; /* choices that were switched off for it */
} nib_check_line;

typedef void (*nib_check_report)(void *user, const nib_check_line *line);

/* Checks every op of `ops`, which is left with the plain kernels of *off (bits of ops->choice) in use. `reference` has
 * its plain kernels in use afterwards. report (may be NULL) hears of each case in turn. *refused: there are cases in
 * which nothing agrees. An op that fails instead of computing is an error, named with its shape. */
nib_status nib_self_check(nib_ops *ops, nib_ops *reference, nib_check_size size, nib_check_report report, void *user,
                          uint32_t *off, bool *refused);

#endif
