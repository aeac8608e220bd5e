/* Tensors of a checkpoint in the memory that their own pointers name. */
#ifndef NIB_TEST_CHECKPOINT_MEMORY_H
#define NIB_TEST_CHECKPOINT_MEMORY_H

#include "checkpoint/checkpoint.h"

#include <string.h>

static size_t bytes_of(const nib_checkpoint_tensor *tensor, nib_checkpoint_kind kind)
{
    return nib_checkpoint_bytes(tensor->moments_8bit, kind, tensor->rows * tensor->columns);
}

static nib_status fetch_values(void *context, int i, nib_checkpoint_kind kind, void *host)
{
    const nib_checkpoint_tensor *tensor = (const nib_checkpoint_tensor *)context + i;
    memcpy(host, tensor->values[kind], bytes_of(tensor, kind));
    return NIB_OK;
}

static nib_status store_values(void *context, int i, nib_checkpoint_kind kind, const void *host)
{
    const nib_checkpoint_tensor *tensor = (const nib_checkpoint_tensor *)context + i;
    memcpy(tensor->values[kind], host, bytes_of(tensor, kind));
    return NIB_OK;
}

static nib_checkpoint_carrier carrier_of(nib_checkpoint_tensor *tensors)
{
    return (nib_checkpoint_carrier){tensors, fetch_values, store_values};
}

#endif
