/* The values of a checkpoint on their way between rank 0, which reads and writes it, and the ranks that keep them: all
 * of them, or each its rows (parallel.shard_optimizer). What is written is the same, however many ranks there are.
 */
#ifndef NIB_TRAIN_STATE_H
#define NIB_TRAIN_STATE_H

#include "train.h"

/* A parameter's state as a checkpoint has it; values: those that are kept here, the backend's memory. */
nib_checkpoint_tensor nib_train_state_tensor(const nib_parameter *parameter);
/* Bytes of all its rows in a checkpoint. */
size_t nib_train_state_bytes(const nib_parameter *parameter);

/* On rank 0: fetch has all rows of a tensor, store gives them to all ranks. The others call send where rank 0 fetches
 * every value, and receive where it stores them. */
nib_checkpoint_carrier nib_train_state_carrier(nib_training *training);
nib_status nib_train_state_send(nib_training *training);
nib_status nib_train_state_receive(nib_training *training);

#endif
