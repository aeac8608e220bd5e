/* A row of the conformance list. */
#ifndef NIB_CUDA_CONFORMANCE_CUH
#define NIB_CUDA_CONFORMANCE_CUH

#include "cuda/conformance.h"
#include "cuda/intrinsics.cuh"

enum { CONFORMANCE_WORDS = 1024 }; /* of `in` and of `out`, at most */

/* One block of one dimension reads words and writes words; `expected` computes the same on the host, without the
 * instruction. */
struct conformance_row {
    const char *name;
    int oldest; /* architecture that has it: 80, 89, 90 */
    void (*kernel)(const uint32_t *in, uint32_t *out);
    void (*expected)(const uint32_t *in, uint32_t *out);
    void (*fill)(uint32_t *in); /* [CONFORMANCE_WORDS]; NULL: random words */
    int threads, shared, outputs;
    float allowed; /* 0: the same bits. Else words are floats, and this is the relative difference */
};

struct conformance_list {
    const conformance_row *row;
    int rows;
};
extern const conformance_list conformance_matrix, conformance_memory, conformance_warp, conformance_number;

/* Reproducible random words, and integers from -6 to 6, whose products add up exactly in any order. */
uint32_t conformance_word(uint32_t i);
inline int conformance_small(uint32_t i) { return (int)(conformance_word(i) % 13) - 6; }

inline float float_of(uint32_t word)
{
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}
inline uint32_t word_of(float value)
{
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    return word;
}

#endif
