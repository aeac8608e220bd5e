#include "optim/gradient_tree.h"

size_t nib_gradient_tree_bytes(int64_t n, int slots, nib_slot_range range)
{
    int most;
    nib_slot_order_of_range(slots, range, &most);
    return (size_t)most * (size_t)n * sizeof(float);
}

nib_status nib_gradient_tree_create(nib_ops *ops, int64_t n, int slots, nib_slot_range range, nib_gradient_tree *tree)
{
    int most;
    *tree = (nib_gradient_tree){.ops = ops, .n = n, .range = range, .order = nib_slot_order_begin(slots)};
    for (nib_slot_order_of_range(slots, range, &most); tree->held < most; tree->held++) {
        void *block;
        nib_status status = ops->allocate(ops, "gradient slots", (size_t)n * sizeof(float), &block);
        if (status != NIB_OK) {
            nib_gradient_tree_free(tree);
            return status;
        }
        tree->partial[tree->held] = block;
    }
    return NIB_OK;
}

void nib_gradient_tree_free(nib_gradient_tree *tree)
{
    for (int i = 0; i < tree->held; i++)
        tree->ops->release(tree->ops, tree->partial[i], (size_t)tree->n * sizeof(float));
    *tree = (nib_gradient_tree){0};
}

nib_status nib_gradient_tree_add(nib_gradient_tree *tree, int slot, float *gradient)
{
    const float *left[NIB_SLOT_NODES];
    if (slot == tree->range.first) tree->order.depth = 0;
    int before = tree->order.depth, joined = nib_slot_order_push(&tree->order, (nib_slot_node){0, slot});
    const bool last = slot + 1 == tree->range.end;
    if (last && joined == 0) return NIB_OK;
    for (int i = 0; i < joined; i++) left[i] = tree->partial[before - 1 - i];
    return tree->ops->tree_sum(tree->ops, gradient, joined, left, tree->n,
                               last ? gradient : tree->partial[tree->order.depth - 1]);
}
