/* What a case of the self-check is made of: operands, which are the same on every backend, and results to compare.
 * Private to runtime/self_check*.c. */
#ifndef NIB_RUNTIME_SELF_CHECK_CASE_H
#define NIB_RUNTIME_SELF_CHECK_CASE_H

#include "self_check.h"

enum { NIB_CHECK_SIZES = 7, NIB_CHECK_RESULTS = 12 };

/* One case on one backend. */
typedef struct {
    nib_ops *ops;
    nib_dtype dtype; /* of activations */
    nib_arena memory;
    struct {
        const char *name;
        float *values; /* [n] */
        int64_t n;
        double allowed;
    } result[NIB_CHECK_RESULTS];
    int results;
} nib_check_run;

typedef struct {
    const char *op;
    const char *shape; /* printf's format for the sizes, in order: "T %lld, C %lld" */
    nib_status (*run)(nib_check_run *run, const int64_t *size);
    bool two;            /* the op has fast and plain kernels */
    bool full;           /* only in the full form */
    const char *without; /* the choice that stands in the way of the fast kernel that is meant: plain here, or NULL */
    int64_t size[NIB_CHECK_SIZES];
} nib_check_case;

/* End with a case without an op. */
extern const nib_check_case nib_check_elementwise[]; /* self_check_elementwise.c */
extern const nib_check_case nib_check_products[];    /* self_check_products.c */

/* What bf16 costs: a result is rounded once or twice (2^-8 each), and so are the values that it is made of, which are
 * up to three times its size. A wrong mask, scale or element is off by a whole term. */
#define NIB_CHECK_BF16 (1.0 / 32)
/* fp32 on both sides, sums of some hundreds of terms in another order. */
#define NIB_CHECK_FP32 1e-4
/* The same operations in the same order. */
#define NIB_CHECK_BITS 0.0

/* Operands, in run->memory. Random values lie in (-1, 1) and are the stream of `seed`. A matrix of activations has gaps
 * between its rows, which hold NaN. */
nib_status nib_check_matrix(nib_check_run *run, uint64_t seed, int64_t rows, int64_t columns, nib_matrix *matrix);
nib_status nib_check_empty(nib_check_run *run, int64_t rows, int64_t columns, nib_matrix *matrix); /* NaN */
nib_status nib_check_floats(nib_check_run *run, uint64_t seed, int64_t n, float **values);
nib_status nib_check_empty_floats(nib_check_run *run, int64_t n, float **values); /* NaN */
nib_status nib_check_upload(nib_check_run *run, const void *host, size_t bytes, void *pointer_to_pointer);
float nib_check_uniform(uint64_t seed, uint64_t index); /* in (-1, 1), held by bf16 */

/* Takes a result down. name: a literal. Fails with NIB_ERROR_INTERNAL if a gap was written. */
nib_status nib_check_keep(nib_check_run *run, const char *name, nib_matrix matrix, double allowed);
nib_status nib_check_keep_floats(nib_check_run *run, const char *name, const float *values, int64_t n, double allowed);
nib_status nib_check_keep_bytes(nib_check_run *run, const char *name, const uint8_t *values, int64_t n);
nib_status nib_check_keep_value(nib_check_run *run, const char *name, double value, double allowed);

#endif
