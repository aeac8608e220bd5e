#include "optim/gradient_tree.h"

/* Levels on which a partial sum ever waits: one for each bit of the largest slot index. */
static int level_count(int slots)
{
    int levels = 0;
    while (slots - 1 >= 1 << levels) levels++;
    return levels;
}

size_t nib_gradient_tree_bytes(int64_t n, int slots) { return (size_t)level_count(slots) * (size_t)n * sizeof(float); }

nib_status nib_gradient_tree_create(nib_ops *ops, int64_t n, int slots, nib_gradient_tree *tree)
{
    *tree = (nib_gradient_tree){.ops = ops, .n = n};
    for (int levels = level_count(slots); tree->levels < levels; tree->levels++) {
        void *block;
        nib_status status = ops->allocate(ops, "gradient slots", (size_t)n * sizeof(float), &block);
        if (status != NIB_OK) {
            nib_gradient_tree_free(tree);
            return status;
        }
        tree->partial[tree->levels] = block;
    }
    return NIB_OK;
}

void nib_gradient_tree_free(nib_gradient_tree *tree)
{
    for (int level = 0; level < tree->levels; level++)
        tree->ops->release(tree->ops, tree->partial[level], (size_t)tree->n * sizeof(float));
    *tree = (nib_gradient_tree){0};
}

static nib_matrix as_row(float *values, int64_t n)
{
    return (nib_matrix){.data = values, .rows = 1, .columns = n, .stride = n, .dtype = NIB_DTYPE_F32};
}

nib_status nib_gradient_tree_add(nib_gradient_tree *tree, int slot, int slots, float *gradient)
{
    nib_ops *ops = tree->ops;
    bool last = slot + 1 == slots;
    int level = 0;
    /* Below the lowest zero bit of slot, pairs are complete; after the last slot, all that waits is merged. */
    for (; last ? slot >> level != 0 : (slot >> level & 1) != 0; level++)
        if (slot >> level & 1) NIB_TRY(ops->accumulate(ops, gradient, tree->partial[level], tree->n));
    if (last) return NIB_OK;
    NIB_TRY(ops->convert(ops, as_row(gradient, tree->n), as_row(tree->partial[level], tree->n)));
    return ops->zero(ops, gradient, (size_t)tree->n * sizeof(float));
}
