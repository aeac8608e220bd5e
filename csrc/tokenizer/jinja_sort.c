#include "tokenizer/jinja_render.h"

#include <string.h>

/* Merges [low, middle) and [middle, high) by way of the spare arrays. */
static nib_status merge(nib_jinja_render *render, nib_jinja_value *const from[2], nib_jinja_value *const to[2],
                        size_t low, size_t middle, size_t high, bool reverse)
{
    size_t left = low, right = middle;
    for (size_t out = low; out < high; out++) {
        bool take_right = left == middle;
        if (left < middle && right < high) {
            int order;
            NIB_TRY(nib_jinja_charge(render, 1));
            NIB_TRY(nib_jinja_compare(render, "<", from[0][right], from[0][left], &order));
            take_right = reverse ? order > 0 : order < 0;
        }
        size_t taken = take_right ? right++ : left++;
        to[0][out] = from[0][taken];
        to[1][out] = from[1][taken];
    }
    return NIB_OK;
}

nib_status nib_jinja_sort(nib_jinja_render *render, nib_jinja_value *keys, nib_jinja_value *values, size_t count,
                          bool reverse)
{
    if (count < 2) return NIB_OK;
    nib_jinja_value *spare = nib_jinja_alloc(render, count, 2 * sizeof *spare);
    if (spare == NULL) return nib_jinja_no_memory(render);
    nib_jinja_value *arrays[2][2] = {{keys, values}, {spare, spare + count}};
    int from = 0;
    for (size_t width = 1; width < count; width *= 2, from = 1 - from) {
        for (size_t low = 0; low < count; low += 2 * width) {
            size_t middle = low + width < count ? low + width : count;
            size_t high = low + 2 * width < count ? low + 2 * width : count;
            NIB_TRY(merge(render, arrays[from], arrays[1 - from], low, middle, high, reverse));
        }
    }
    if (from == 1) {
        memcpy(keys, arrays[1][0], count * sizeof *keys);
        memcpy(values, arrays[1][1], count * sizeof *values);
    }
    return NIB_OK;
}
