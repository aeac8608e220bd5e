/* A backend that touches no tensor. The model's own code runs against it, so that the memory which a step will take and
 * the work that it will be are counted by the code that takes and does it, not by a second description of it.
 *
 * Arenas are address space: index arrays of a micro-batch are really uploaded, nothing else is read or written. Scratch
 * counts (ops->scratch->peak) what the backend's own ops take. Generation is rehearsed up to its first token: attention
 * over a cache is not there. What a library of matrix products wants for itself is not counted.
 */
#ifndef NIB_REHEARSAL_H
#define NIB_REHEARSAL_H

#include "model/ops.h"

/* What the ops called so far would have done. A product of [M, K] and [K, N] is 2 M N K operations. */
typedef struct {
    double base_flops;        /* products with frozen or fully trained weights, forward and backward */
    double fp8_flops;         /* and those of them, not counted above, that are in 8-bit floating point */
    double fp8_elements;      /* of activations that are rounded for those */
    double lora_flops;        /* products with the factors of adapters */
    double attention_flops;   /* over the visible pairs of queries and keys alone */
    double loss_flops;        /* logits and the gradient through them */
    double elementwise_bytes; /* read and written by norms, rotary, gates, conversions, sums */
    double optimizer_bytes;
} nib_work;

/* A rehearsal of `backend`, by its ops->rehearse. *ops is freed by ops->close. NIB_ERROR_MEMORY. */
nib_status nib_rehearsal_create(nib_ops *backend, nib_ops **ops);
/* The counters of a rehearsal, which the caller may set to zero. */
nib_work *nib_rehearsal_work(nib_ops *ops);

#endif
