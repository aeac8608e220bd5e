/* The weights of a checkpoint by their Hugging Face names, whatever file they come from.
 *
 * A GGUF's names are mapped, and the rows of its Q and K, permuted there for interleaved rotary, are put back; its
 * tensors are dequantised to fp32, rounded to bf16, and from there on treated like a bf16 checkpoint.
 *
 * Values are bf16, but for those that a safetensors file holds in F32 or F16: what is computed in fp32 has them as they
 * are, as a model that transformers loads in float32 has. What is computed in bf16, quantised or merged has them
 * rounded to bf16 first, as one that it loads in bfloat16 (the usual base of QLoRA) has before bitsandbytes quantises
 * it; so a model's NF4 form is one and the same, whatever type its file or the computation has.
 */
#ifndef NIB_WEIGHT_SOURCE_H
#define NIB_WEIGHT_SOURCE_H

#include "base/sha256.h"
#include "formats/bnb_nf4.h"
#include "model/config.h"

typedef struct {
    nib_tensor_set *set;
    nib_model_config config;
    bool quantized; /* a bitsandbytes NF4 checkpoint */
    bool random;    /* no tensors: values are made up (model/random_weights.h) */
    char path[4096];
    char hash[65]; /* what nib_weight_hash has found, or "" */
} nib_weight_source;

/* path: M of cli.md. Reads the config and the tensor table, checks that every tensor that the model needs is there in
 * its shape, and that there is none besides. Fails with NIB_ERROR_DATA naming the tensor. */
nib_status nib_weight_source_open(const char *path, nib_weight_source *source);
/* A source of made-up weights, which needs nothing but the folder's config.json (or a GGUF's metadata). */
nib_status nib_weight_source_open_random(const char *path, nib_weight_source *source);
void nib_weight_source_close(nib_weight_source *source);

/* Rows first .. first + rows of a [*, columns] matrix (or a vector, as one row of `columns`) in bf16. NaN or Inf is
 * NIB_ERROR_DATA, naming the tensor. */
nib_status nib_weight_source_read(const nib_weight_source *source, const char *name, int64_t first, int64_t rows,
                                  int64_t columns, nib_bf16 *out);
/* Whether the tensor holds more than bf16 can, and the same values as they are. */
bool nib_weight_source_is_wide(const nib_weight_source *source, const char *name);
nib_status nib_weight_source_read_wide(const nib_weight_source *source, const char *name, int64_t first, int64_t rows,
                                       int64_t columns, float *out);
/* Adds names, types and shapes of all tensors to a hash. */
void nib_weight_source_hash_table(const nib_weight_source *source, nib_sha256 *hash);
/* The view behind a name; NULL if absent. */
const nib_tensor_view *nib_weight_source_find(const nib_weight_source *source, const char *name);
/* The tensor has been read, once and for all: its pages need not stay in memory. */
void nib_weight_source_release(const nib_weight_source *source, const char *name);

/* Every weight of the architecture, in a fixed order: calls visit(user, name, rows, columns, linear) with columns 0 for
 * a vector of `rows`; linear tells a weight that NF4 quantises. Stops at the first failure. */
typedef nib_status (*nib_weight_visitor)(void *user, const char *name, int64_t rows, int64_t columns, bool linear);
nib_status nib_weights_visit(const nib_model_config *config, nib_weight_visitor visit, void *user);

#endif
