/* Seconds of MPI's own sum over all ranks, which bench_gradient_sum.c is held against: bench_all_reduce VALUES */
#include <mpi.h>

#include <stdio.h>
#include <stdlib.h>

#define ROUNDS 7

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    int rank, n = argc == 2 ? atoi(argv[1]) : 0;
    double time[ROUNDS];
    float *values = calloc((size_t)n + 1, sizeof *values);
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    for (int i = 0; i < ROUNDS; i++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double begun = MPI_Wtime();
        MPI_Allreduce(MPI_IN_PLACE, values, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        MPI_Barrier(MPI_COMM_WORLD);
        time[i] = MPI_Wtime() - begun;
    }
    qsort(time, ROUNDS, sizeof *time, compare);
    if (rank == 0) printf("%.6f\n", time[ROUNDS / 2]);
    MPI_Finalize();
    free(values);
    return 0;
}
