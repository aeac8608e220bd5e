/* Which of how many processes this one is, as its launcher states it in the environment. */
#ifndef NIB_RANKS_H
#define NIB_RANKS_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

#define NIB_MAX_RANKS 4096

typedef struct {
    const char *launcher;       /* "torchrun", "nibble-launch", "mpirun", "srun"; "" for a process on its own */
    int rank, size;             /* 0 <= rank < size */
    int local_rank, local_size; /* on this node */
    bool mpi;                   /* started by Open MPI without an address: MPI carries the collectives */
    int attempt;                /* of a job that its launcher restarts; ranks of an earlier one are refused */
    char address[256];          /* where rank 0 listens; "" for one process, and under MPI */
    int port, ports;            /* rank 0 listens on the first of `ports` ports from `port` on that is free */
    uint8_t token[32];          /* what ranks prove to each other that they know: the SHA-256 of the job's token */
} nib_ranks;

/* Reads, the first that is there:
 *   torchrun, nibble-launch  RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
 *   mpirun (Open MPI)        OMPI_COMM_WORLD_RANK _SIZE _LOCAL_RANK _LOCAL_SIZE
 *   srun                     SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID, the first host of SLURM_STEP_NODELIST
 * With mpirun and srun, MASTER_ADDR and MASTER_PORT may be set too. The token is NIBBLE_JOB_TOKEN, or made of the
 * launcher's job number, which keeps strays out but is no secret. Values that are not numbers, out of range or
 * missing are NIB_ERROR_USAGE and named. */
nib_status nib_ranks_read(nib_ranks *ranks);

/* The ranks of a machine compute with a share of its processors each, where neither their launcher nor OMP_NUM_THREADS
 * has said otherwise. Before the first backend is opened. */
void nib_ranks_share_processors(const nib_ranks *ranks);

#endif
