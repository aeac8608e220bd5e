#include "optim/slot_order.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

nib_slot_range nib_slot_range_of_rank(int slots, int ranks, int rank)
{
    return (nib_slot_range){(int)((int64_t)slots * rank / ranks), (int)((int64_t)slots * (rank + 1) / ranks)};
}

nib_slot_order nib_slot_order_begin(int slots) { return (nib_slot_order){.slots = slots}; }

int nib_slot_order_push(nib_slot_order *order, nib_slot_node node)
{
    int joined = 0;
    for (;; node.level++, node.index /= 2) {
        bool right_half = node.index % 2 != 0;
        const nib_slot_node *before = order->depth > 0 ? &order->node[order->depth - 1] : NULL;
        bool root = node.index == 0 && 1LL << node.level >= order->slots;
        if (right_half && before != NULL && before->level == node.level && before->index == node.index - 1) {
            order->depth--;
            joined++;
        } else if (right_half || root || (node.index + 1LL) << node.level < order->slots) {
            break; /* the other half is another's, or still to come, or there is none */
        }
    }
    order->node[order->depth++] = node;
    return joined;
}

nib_slot_order nib_slot_order_of_range(int slots, nib_slot_range range, int *most)
{
    nib_slot_order order = nib_slot_order_begin(slots);
    *most = 0;
    for (int slot = range.first; slot < range.end; slot++) {
        if (order.depth > *most) *most = order.depth;
        nib_slot_order_push(&order, (nib_slot_node){0, slot});
    }
    return order;
}
