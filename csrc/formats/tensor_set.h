/* A set of named tensors on disk: one safetensors file, a Hugging Face folder of shards with an index, or a GGUF file.
 *
 * Files are memory-mapped; a tensor's bytes are checked to lie inside the file when the set is opened, and are read
 * only when asked for. nib_tensor_read_* convert piecewise, so that no more than the tensor in work is in memory.
 */
#ifndef NIB_TENSOR_SET_H
#define NIB_TENSOR_SET_H

#include "base/bf16.h"
#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"

#define NIB_TENSOR_MAX_RANK 8

typedef enum {
    NIB_DTYPE_F32,
    NIB_DTYPE_F16,
    NIB_DTYPE_BF16,
    NIB_DTYPE_F64,
    NIB_DTYPE_U8,
    NIB_DTYPE_I8,
    NIB_DTYPE_I32,
    NIB_DTYPE_I64,
    /* ggml block types, in gguf files only */
    NIB_DTYPE_Q4_0,
    NIB_DTYPE_Q4_1,
    NIB_DTYPE_Q5_0,
    NIB_DTYPE_Q5_1,
    NIB_DTYPE_Q8_0,
    NIB_DTYPE_Q2_K,
    NIB_DTYPE_Q3_K,
    NIB_DTYPE_Q4_K,
    NIB_DTYPE_Q5_K,
    NIB_DTYPE_Q6_K,
    NIB_DTYPE_IQ4_NL,
    NIB_DTYPE_IQ4_XS,
    NIB_DTYPE_COUNT
} nib_dtype;

const char *nib_dtype_name(nib_dtype dtype);
/* Elements in a block (1 for plain types) and bytes of a block. */
int64_t nib_dtype_block(nib_dtype dtype);
int64_t nib_dtype_block_bytes(nib_dtype dtype);

typedef struct {
    const char *name;
    nib_dtype dtype;
    int rank;
    int64_t shape[NIB_TENSOR_MAX_RANK]; /* row-major, slowest first (a GGUF's order is reversed on reading) */
    int64_t count;                      /* elements */
    const uint8_t *data;                /* bytes, inside the mapping */
    uint64_t bytes;
    const nib_file *file; /* where it lies, for messages and nib_file_release */
    uint64_t offset;      /* of data in file */
} nib_tensor_view;

typedef struct nib_tensor_set nib_tensor_set;

/* path: a safetensors file, a folder with model.safetensors, adapter_model.safetensors or
 * model.safetensors.index.json, or a GGUF file.
 * Fails with NIB_ERROR_DATA (file, offset, tensor, found, expected). *set is NULL on failure. */
nib_status nib_tensor_set_open(const char *path, nib_tensor_set **set);
void nib_tensor_set_close(nib_tensor_set *set);

size_t nib_tensor_set_count(const nib_tensor_set *set);
const nib_tensor_view *nib_tensor_set_at(const nib_tensor_set *set, size_t index);       /* in file order */
const nib_tensor_view *nib_tensor_set_find(const nib_tensor_set *set, const char *name); /* NULL if absent */
/* A safetensors file's __metadata__: an object of strings; NULL if absent or for other formats. Lives in the set. */
const nib_json *nib_tensor_set_metadata(const nib_tensor_set *set);

/* The GGUF behind the set; NULL if it is none (formats/gguf.h reads its metadata). */
struct nib_gguf;
const struct nib_gguf *nib_tensor_set_gguf(const nib_tensor_set *set);

/* Converts elements first .. first+count of a floating or block tensor. Block types: first and count are multiples of
 * nib_dtype_block. The bf16 form rounds the fp32 value to nearest even. Thread-safe. */
nib_status nib_tensor_read_float(const nib_tensor_view *tensor, int64_t first, int64_t count, float *out);
nib_status nib_tensor_read_bf16(const nib_tensor_view *tensor, int64_t first, int64_t count, nib_bf16 *out);
/* Fails unless the tensor has exactly this shape (rank sizes follow). */
nib_status nib_tensor_expect_shape(const nib_tensor_view *tensor, int rank, ...);

#endif
