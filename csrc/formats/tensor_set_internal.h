/* What safetensors.c and gguf.c fill in; private to csrc/formats. */
#ifndef NIB_TENSOR_SET_INTERNAL_H
#define NIB_TENSOR_SET_INTERNAL_H

#include "base/json.h"
#include "formats/gguf.h"
#include "formats/tensor_set.h"

struct nib_tensor_set {
    nib_tensor_view *tensors;
    size_t count, capacity;
    size_t *by_name; /* [count] indices sorted by name */
    nib_file **files;
    size_t file_count, file_capacity;
    const nib_json *metadata;   /* __metadata__ of the (first) safetensors file */
    const char *index_path;     /* a sharded folder's index, and what it states: */
    const nib_json *weight_map; /* tensor name to file name */
    nib_gguf *gguf;
    nib_pool pool; /* names, JSON, nib_file objects */
};

nib_status nib_tensor_set_add(nib_tensor_set *set, const nib_tensor_view *view);
nib_status nib_tensor_set_add_file(nib_tensor_set *set, const char *path, nib_file **file);

nib_status nib_safetensors_open_file(nib_tensor_set *set, const char *path);
nib_status nib_safetensors_open_folder(nib_tensor_set *set, const char *folder);
nib_status nib_gguf_open_set(nib_tensor_set *set, const char *path);

#endif
