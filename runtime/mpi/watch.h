/* The watch over an MPI job: the control channel (tcp_control.h) of its ranks, brought up by means of MPI. */
#ifndef NIB_MPI_WATCH_H
#define NIB_MPI_WATCH_H

#include "tcp_control.h"

/* After MPI_Init, by all ranks together. NIB_ERROR_DEVICE: a rank and rank 0 do not reach each other by TCP. */
nib_status nib_mpi_watch(const nib_ranks *ranks, nib_control **control);

#endif
