/* Tensors of a checkpoint in the memory that their own pointers name. */
#ifndef NIB_TEST_CHECKPOINT_MEMORY_H
#define NIB_TEST_CHECKPOINT_MEMORY_H

#include "checkpoint/checkpoint.h"

#include <string.h>

static float *values_of(const nib_checkpoint_tensor *tensor, nib_checkpoint_kind kind)
{
    return kind == NIB_CHECKPOINT_MASTER  ? tensor->master
           : kind == NIB_CHECKPOINT_FIRST ? tensor->first_moment
                                          : tensor->second_moment;
}

static nib_status fetch_values(void *context, int i, nib_checkpoint_kind kind, float *host)
{
    const nib_checkpoint_tensor *tensor = (const nib_checkpoint_tensor *)context + i;
    memcpy(host, values_of(tensor, kind), (size_t)(tensor->rows * tensor->columns) * sizeof *host);
    return NIB_OK;
}

static nib_status store_values(void *context, int i, nib_checkpoint_kind kind, const float *host)
{
    const nib_checkpoint_tensor *tensor = (const nib_checkpoint_tensor *)context + i;
    memcpy(values_of(tensor, kind), host, (size_t)(tensor->rows * tensor->columns) * sizeof *host);
    return NIB_OK;
}

static nib_checkpoint_carrier carrier_of(nib_checkpoint_tensor *tensors)
{
    return (nib_checkpoint_carrier){tensors, fetch_values, store_values};
}

#endif
