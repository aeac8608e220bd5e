/* Which algorithm computes the products of a class of shapes, one of cublasLt's, or for weights in NF4 the way there
 * (cuda/linear.cu): the fastest of those offered, measured
 * when the class is first met, and kept on disk by card, driver and version of cublasLt, so that the bits of a result
 * stay the same from run to run on a machine.
 *
 * The file, $XDG_CACHE_HOME/nibble/matmul-HASH.txt: a line that names card and versions, then a line for each class. It
 * is read when a class is met that the process does not know, and written whole each time one is added; processes that
 * measure at the same time wait for each other (flock) and take what the first has found. A file that is damaged costs
 * its lines' choices, no more: an algorithm is taken only if cublasLt offers it.
 *
 * A run that may be resumed keeps the same file beside its checkpoints, which goes before the cache: what the cache
 * knows when the run first asks is copied there, what is measured later is added, and ranks that see one folder share
 * it. So a run computes with the algorithms that it was begun with, on whichever machine of the same card, driver and
 * version it goes on. */
#ifndef NIB_CUDA_MATMUL_CHOICE_H
#define NIB_CUDA_MATMUL_CHOICE_H

#include "cuda/c_headers.h"

#define NIB_MATMUL_MOST_OFFERED 8

/* Sizes are rounded up to an eighth of the next lower power of two: documents of all lengths are met, and neighbours
 * share a choice. No padding, so that it can be compared by its bytes. */
typedef struct {
    int64_t M, N, K;
    int32_t transpose_a, transpose_b;
    int32_t wide; /* 0: bf16 to bf16, 1: bf16 to fp32, 2: e4m3 to bf16 */
    int32_t a_alignment, b_alignment, c_alignment;
    int32_t nf4, room; /* b in NF4, so many columns beside it */
} nib_matmul_class;

/* size as it stands in a class. */
int64_t nib_matmul_class_size(int64_t size);

typedef struct nib_matmul_choices nib_matmul_choices;

/* `identity` names what a choice is good for: one line. Freed by the caller. NULL: no memory. */
nib_matmul_choices *nib_matmul_choices_create(const char *identity);
void nib_matmul_choices_free(nib_matmul_choices *choices);

/* From now on choices are those of a run that keeps its own in `folder`; what the process has chosen before is looked
 * up again. A warning, if there are choices of other identities alone. NIB_ERROR_MEMORY. */
nib_status nib_matmul_choices_follow(nib_matmul_choices *choices, const char *folder);

/* Measures all `offered` algorithms. microseconds [offered]; one that fails is HUGE_VALF. */
typedef nib_status (*nib_matmul_measure)(void *user, int offered, float *microseconds);

/* Does this process know the class, so that nothing will be measured for it? */
bool nib_matmul_is_known(nib_matmul_choices *choices, const nib_matmul_class *shape);

/* *chosen: which of the offered algorithms, named by their hashes, is this class's: that of the table, or measured now,
 * said in a line of the log, and added. name [offered]: what that line calls them; NULL: by number. While it measures
 * no other choice can be made. */
nib_status nib_matmul_choose(nib_matmul_choices *choices, const nib_matmul_class *shape, int offered,
                             const uint64_t *hash, const char *const *name, nib_matmul_measure measure, void *user,
                             int *chosen);

/* FNV-1a (Fowler, Noll, Vo). */
uint64_t nib_matmul_hash(const void *bytes, size_t count);

#endif
