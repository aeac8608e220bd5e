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

static void push(nib_gradient_tree *tree, int slot)
{
    if (slot == tree->range.first) tree->order.depth = 0;
    tree->joined = nib_slot_order_push(&tree->order, (nib_slot_node){0, slot});
}

/* to = the slot given last and what it is joined with. */
static nib_status join(nib_gradient_tree *tree, float *gradient, int64_t begin, int64_t n, float *to)
{
    const float *left[NIB_SLOT_NODES];
    const int uppermost = tree->order.depth + tree->joined - 2;
    for (int i = 0; i < tree->joined; i++) left[i] = tree->partial[uppermost - i] + begin;
    return tree->ops->tree_sum(tree->ops, gradient + begin, tree->joined, left, n, to + begin);
}

nib_status nib_gradient_tree_add(nib_gradient_tree *tree, int slot, float *gradient)
{
    push(tree, slot);
    if (slot + 1 == tree->range.end) return nib_gradient_tree_finish(tree, gradient, 0, tree->n);
    return join(tree, gradient, 0, tree->n, tree->partial[tree->order.depth - 1]);
}

void nib_gradient_tree_last(nib_gradient_tree *tree) { push(tree, tree->range.end - 1); }

nib_status nib_gradient_tree_finish(nib_gradient_tree *tree, float *gradient, int64_t begin, int64_t n)
{
    return tree->joined == 0 ? NIB_OK : join(tree, gradient, begin, n, gradient);
}
