/* ggml's block quantisations to fp32, bit for bit as its own reference (ggml-quants.c, gguf-py's quants.py). */
#ifndef NIB_GGML_BLOCKS_H
#define NIB_GGML_BLOCKS_H

#include "formats/tensor_set.h"

/* data: count elements in whole blocks. false if dtype is no block type. */
bool nib_ggml_dequantize(nib_dtype dtype, const uint8_t *data, int64_t count, float *out);

#endif
