/* NF4 weights as bitsandbytes stores them in a checkpoint (QuantState.as_dict(packed=True) in its functional.py):
 * beside the packed codes NAME lie NAME.absmax, NAME.quant_map, NAME.quant_state.bitsandbytes__nf4 (a JSON object as
 * bytes), and, double quantised, NAME.nested_absmax and NAME.nested_quant_map.
 *
 * The value of element i of the flattened matrix is map[nibble i] * scale[i / 64], where byte j of the codes holds
 * element 2j in its high and 2j + 1 in its low nibble, and scale[b] is absmax[b], or, double quantised,
 * nested_map[absmax[b]] * nested_absmax[b / 256] + nested_offset. Dettmers et al., "QLoRA", 2023.
 */
#ifndef NIB_BNB_NF4_H
#define NIB_BNB_NF4_H

#include "formats/tensor_set.h"

#define NIB_BNB_NF4_BLOCK        64
#define NIB_BNB_NF4_NESTED_BLOCK 256

/* Views belong to the set. Their data need not be aligned for their type: read floats with nib_tensor_read_float. */
typedef struct {
    int64_t rows, columns;                /* of the matrix */
    nib_dtype dtype;                      /* it was quantised from: BF16, F16 or F32 */
    const nib_tensor_view *codes;         /* U8, ceil(rows * columns / 2) bytes */
    const nib_tensor_view *map;           /* [16] F32, finite */
    const nib_tensor_view *absmax;        /* [ceil(rows * columns / 64)] F32; double quantised: U8 */
    const nib_tensor_view *nested_absmax; /* [ceil(blocks / 256)] F32; NULL: not double quantised */
    const nib_tensor_view *nested_map;    /* [256] F32, finite; NULL: not double quantised */
    float nested_offset;
    int tensors; /* of the set that make up this weight */
} nib_bnb_nf4;

/* Finds and checks the parts of weight `name`. NIB_ERROR_DATA, naming the part, if one is missing, does not fit, or is
 * of a kind that is not supported (fp4, other block sizes). The values of absmax and of the maps are the caller's to
 * compare. */
nib_status nib_bnb_nf4_find(const nib_tensor_set *set, const char *name, nib_bnb_nf4 *weight);

#endif
