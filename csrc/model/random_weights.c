#include "model/random_weights.h"
#include "base/random.h"

#include <stdbool.h>
#include <string.h>

void nib_random_weights(const char *name, nib_bf16 *out, int64_t n)
{
    const float largest = 0.02f * 1.7320508f; /* of a uniform distribution with standard deviation 0.02 */
    bool norm = strstr(name, "norm.weight") != NULL, bias = strstr(name, ".bias") != NULL;
    uint32_t word[4];
    for (int64_t i = 0; i < n; i++) {
        if (i % 4 == 0) nib_philox(0, 1, (uint64_t)i, word);
        float value = norm ? 1.0f : bias ? 0.0f : (2.0f * nib_uniform(word[i % 4]) - 1.0f) * largest;
        out[i] = nib_bf16_from_float(value);
    }
}

void nib_random_codes(uint8_t *codes, size_t bytes)
{
    uint32_t word[4];
    for (size_t i = 0; i < bytes; i += sizeof word) {
        nib_philox(0, 2, i, word);
        memcpy(codes + i, word, bytes - i < sizeof word ? bytes - i : sizeof word);
    }
}
