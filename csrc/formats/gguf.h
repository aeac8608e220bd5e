/* GGUF metadata (ggml's gguf.md, versions 2 and 3). Tensors are reached through formats/tensor_set.h. */
#ifndef NIB_GGUF_H
#define NIB_GGUF_H

#include "base/file.h"
#include "base/memory.h"

typedef enum {
    NIB_GGUF_U8,
    NIB_GGUF_I8,
    NIB_GGUF_U16,
    NIB_GGUF_I16,
    NIB_GGUF_U32,
    NIB_GGUF_I32,
    NIB_GGUF_F32,
    NIB_GGUF_BOOL,
    NIB_GGUF_STRING,
    NIB_GGUF_ARRAY,
    NIB_GGUF_U64,
    NIB_GGUF_I64,
    NIB_GGUF_F64
} nib_gguf_type;

typedef struct nib_gguf nib_gguf;
typedef struct {
    const char *data; /* not NUL-terminated; may hold any bytes */
    uint64_t length;
} nib_gguf_string;

/* Parses header, metadata and tensor table of a mapped file, which must outlive it. */
nib_status nib_gguf_parse(const nib_file *file, nib_gguf **gguf);
void nib_gguf_free(nib_gguf *gguf);

/* Each false if the key is absent or of another type (integers of any width and sign are widened). Strings are
 * NUL-terminated copies owned by the gguf. */
bool nib_gguf_int(const nib_gguf *gguf, const char *key, int64_t *value);
bool nib_gguf_double(const nib_gguf *gguf, const char *key, double *value);
bool nib_gguf_bool(const nib_gguf *gguf, const char *key, bool *value);
const char *nib_gguf_text(const nib_gguf *gguf, const char *key); /* NULL if absent */
/* Arrays: element type and count; false if absent or no array. */
bool nib_gguf_array(const nib_gguf *gguf, const char *key, nib_gguf_type *type, uint64_t *count);
/* Element of an array of strings / numbers (index < count). Sequential access is O(1). */
nib_gguf_string nib_gguf_array_string(const nib_gguf *gguf, const char *key, uint64_t index);
int64_t nib_gguf_array_int(const nib_gguf *gguf, const char *key, uint64_t index);
double nib_gguf_array_double(const nib_gguf *gguf, const char *key, uint64_t index);
/* Keys in file order, for `inspect`. */
size_t nib_gguf_key_count(const nib_gguf *gguf);
const char *nib_gguf_key_at(const nib_gguf *gguf, size_t index, nib_gguf_type *type);

#endif
