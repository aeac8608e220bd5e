/* nibble bench ops: each op at the shapes of a model, on any backend, against what bounds it there, measured in the
 * same run: a plain matrix product with as many operations, or a copy of as many bytes. One row of a table an op, one
 * file a group of ops. */
#ifndef NIB_BENCH_OPS_H
#define NIB_BENCH_OPS_H

#include "base/arena.h"
#include "model/ops.h"

/* T tokens, in documents of `document` tokens; the other dims as in ops.h. */
typedef struct {
    int64_t T, document, C, V, NH, NKV, HD, F, R;
    int64_t layers; /* of the model: how many parameters its adapter has */
} nib_ops_bench_shape;

typedef struct {
    nib_ops *ops;
    bool cpu; /* calls are done on return; fp32 is measured too; plain products are oneDNN's own */
    nib_ops_bench_shape shape;
    nib_arena memory; /* the backend's, for operands; given back after each op */
    double seconds;   /* that each op is repeated for; the best time counts, since all disturbance is upwards */
    bool json;
    int results;             /* printed so far */
    double bytes_per_second; /* of a copy, read and written bytes together */
} nib_ops_bench;

typedef struct {
    const char *op;
    nib_status (*run)(nib_ops_bench *bench);
} nib_ops_bench_row;

/* End with a row without a name. */
extern const nib_ops_bench_row nib_bench_ops_product[]; /* bench_ops_product.c */
extern const nib_ops_bench_row nib_bench_ops_linear[];  /* bench_ops_linear.c */
extern const nib_ops_bench_row nib_bench_ops_layer[];   /* bench_ops_layer.c */

/* What is timed: one call, which may be repeated any number of times. */
typedef nib_status (*nib_ops_bench_call)(nib_ops_bench *bench, void *user);
/* best, mean: seconds of a call. */
typedef struct {
    double best, mean;
} nib_ops_bench_seconds;
nib_status nib_ops_bench_time(nib_ops_bench *bench, nib_ops_bench_call call, void *user,
                              nib_ops_bench_seconds *seconds);

/* Times `call` and prints it against a product [M, K] x [K, N] in `dtype` (flops = 2 M N K), or against a copy of
 * `bytes` (read and written together). shape: a text for the reader, "T 2048, 576 -> 960, bf16". */
nib_status nib_ops_bench_product(nib_ops_bench *bench, const char *op, const char *shape, nib_ops_bench_call call,
                                 void *user, int64_t M, int64_t N, int64_t K, nib_dtype dtype);
nib_status nib_ops_bench_copy(nib_ops_bench *bench, const char *op, const char *shape, nib_ops_bench_call call,
                              void *user, double bytes);

/* From bench->memory: a dense matrix of small random values; n random bytes; a copy of host memory. */
nib_status nib_ops_bench_matrix(nib_ops_bench *bench, int64_t rows, int64_t columns, nib_dtype dtype, nib_matrix *m);
nib_status nib_ops_bench_bytes(nib_ops_bench *bench, int64_t n, uint8_t **bytes);
nib_status nib_ops_bench_upload(nib_ops_bench *bench, const void *host, size_t bytes, void *pointer_to_pointer);

/* Parameters of the model's adapter: LoRA of rank R on its seven linears. */
int64_t nib_ops_bench_parameters(nib_ops_bench_shape shape);

/* Beyond this many rows or columns a product's rate no longer changes. */
enum { NIB_OPS_BENCH_MOST = 16384 };
/* Seconds of a plain product [M, K] x [K, N] on this backend (bench_ops_product.c). What is beyond NIB_OPS_BENCH_MOST
 * is reckoned, not measured. */
nib_status nib_ops_bench_plain_product(nib_ops_bench *bench, int64_t M, int64_t N, int64_t K, nib_dtype dtype,
                                       double *seconds);

#endif
