/* Weights for benchmarks and plans of models that are not at hand: the shapes are real, the values are made up.
 *
 * Matrices are uniform with a standard deviation of 0.02, which is transformers' initial one; norms are 1, biases 0.
 * The same values come again with every call, so a matrix repeats itself at the distance of a piece.
 */
#ifndef NIB_RANDOM_WEIGHTS_H
#define NIB_RANDOM_WEIGHTS_H

#include "base/bf16.h"

#include <stddef.h>
#include <stdint.h>

/* n values of the tensor with this Hugging Face name. */
void nib_random_weights(const char *name, nib_bf16 *out, int64_t n);
/* Codes of NF4 values, or of their absmax in double quantisation with the two constants below. */
void nib_random_codes(uint8_t *codes, size_t bytes);

/* absmax = dynamic map [-1, 1] * nested absmax + offset lies in 0.04 to 0.08: about the same deviation of weights. */
#define NIB_RANDOM_NESTED_ABSMAX 0.02f
#define NIB_RANDOM_NESTED_OFFSET 0.06f

#endif
