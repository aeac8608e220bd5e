/* NF4 weights as transformers and bitsandbytes store them in safetensors: beside NAME (packed codes, U8) lie
 * NAME.absmax, NAME.quant_map, NAME.quant_state.bitsandbytes__nf4 (JSON) and, double quantised, NAME.nested_absmax and
 * NAME.nested_quant_map. */
#ifndef NIB_BNB_NF4_H
#define NIB_BNB_NF4_H

#include "formats/tensor_set.h"

typedef struct {
    int64_t rows, columns;
    int64_t blocks, nested_blocks;        /* of 64 and 256 */
    const nib_tensor_view *codes;         /* (rows * columns + 1) / 2 bytes */
    const nib_tensor_view *absmax;        /* fp32 [blocks], or uint8 [blocks] if double */
    const nib_tensor_view *nested_absmax; /* fp32 [nested_blocks]; NULL: single quantised */
    const nib_tensor_view *nested_map;    /* fp32 [256]; NULL: single quantised */
    float nested_offset;
    int tensors; /* how many tensors of the set belong to this weight */
} nib_bnb_nf4;

/* Finds and checks the parts of a weight. Fails with NIB_ERROR_DATA naming the part; other block sizes and types than
 * NF4's are refused. */
nib_status nib_bnb_nf4_find(const nib_tensor_set *set, const char *name, nib_bnb_nf4 *parts);

#endif
