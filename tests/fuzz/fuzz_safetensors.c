/* libFuzzer: any bytes as a safetensors file; every tensor of what is accepted is read whole. */
#include "formats/bnb_nf4.h"
#include "memory_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    nib_tensor_set *set;
    if (nib_tensor_set_open(memory_file(bytes, length), &set) != NIB_OK) return 0;
    uint64_t total = 0;
    for (size_t i = 0; i < nib_tensor_set_count(set); i++) {
        const nib_tensor_view *tensor = nib_tensor_set_at(set, i);
        nib_bnb_nf4 weight;
        if (nib_tensor_set_find(set, tensor->name) != tensor) abort();
        total += tensor->bytes;
        float *values = malloc((size_t)tensor->count * sizeof *values + 1);
        if (values == NULL) abort();
        (void)nib_tensor_read_float(tensor, 0, tensor->count, values);
        (void)nib_bnb_nf4_find(set, tensor->name, &weight);
        free(values);
    }
    if (nib_tensor_set_gguf(set) == NULL && total > length) abort();
    nib_tensor_set_close(set);
    return 0;
}
