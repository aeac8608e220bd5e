/* Seconds of the sum of gradients over all ranks, one slot each, under any launcher: bench_gradient_sum VALUES */
#include "cpu/backend.h"
#include "gradient_sum.h"
#include "train.h"

#include <stdio.h>
#include <stdlib.h>

#define ROUNDS 7

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static nib_status measure(nib_collectives *c, nib_ops *ops, int64_t n, double *time)
{
    nib_gradient_tree tree;
    void *gradient;
    NIB_TRY(nib_gradient_tree_create(ops, n, c->size, nib_slot_range_of_rank(c->size, c->size, c->rank), &tree));
    NIB_TRY(ops->allocate(ops, "gradients", (size_t)n * sizeof(float), &gradient));
    NIB_TRY(ops->zero(ops, gradient, (size_t)n * sizeof(float)));
    for (int i = 0; i < ROUNDS; i++) {
        NIB_TRY(nib_gradient_tree_add(&tree, c->rank, gradient));
        NIB_TRY(c->barrier(c));
        double begun = nib_train_clock();
        NIB_TRY(nib_gradient_sum(c, &tree, gradient, NULL));
        NIB_TRY(c->barrier(c));
        time[i] = nib_train_clock() - begun;
    }
    ops->release(ops, gradient, (size_t)n * sizeof(float));
    nib_gradient_tree_free(&tree);
    return NIB_OK;
}

int main(int argc, char **argv)
{
    nib_ranks ranks;
    nib_collectives *c = NULL;
    nib_ops *ops = NULL;
    double time[ROUNDS];
    if (argc != 2) return 64;
    nib_status status = nib_ranks_read(&ranks);
    if (status == NIB_OK) status = nib_collectives_open(&ranks, &c);
    if (status == NIB_OK) status = nib_cpu_backend_create((size_t)1 << 20, &ops);
    if (status == NIB_OK) status = measure(c, ops, atoll(argv[1]), time);
    if (status == NIB_OK) {
        qsort(time, ROUNDS, sizeof *time, compare);
        if (c->rank == 0) printf("%.6f\n", time[ROUNDS / 2]);
    } else {
        fprintf(stderr, "%s\n", nib_error_message());
    }
    if (ops != NULL) ops->close(ops);
    if (c != NULL) (void)c->close(c, status);
    return nib_exit_code(status);
}
