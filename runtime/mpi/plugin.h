/* What libnibble_mpi.so offers the program: collectives over MPI. */
#ifndef NIB_MPI_PLUGIN_H
#define NIB_MPI_PLUGIN_H

#include "collectives.h"

#define NIB_MPI_SYMBOL "nib_mpi"

typedef struct {
    const char *build; /* version and commit: the program's own, since the table of collectives changes freely */
    nib_status (*open)(const nib_ranks *ranks, nib_collectives **collectives);
} nib_mpi_plugin;

#endif
