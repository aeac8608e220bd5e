/* libFuzzer: any bytes as a GGUF file; all metadata and every tensor of what is accepted is read. */
#include "formats/gguf.h"
#include "formats/tensor_set.h"
#include "memory_file.h"

static uint64_t sum; /* keeps the reads alive */

static void read_array(const nib_gguf *gguf, const char *key)
{
    nib_gguf_type type;
    uint64_t count;
    if (!nib_gguf_array(gguf, key, &type, &count)) abort();
    for (uint64_t i = 0; i < count; i++) {
        if (type == NIB_GGUF_STRING) {
            nib_gguf_string string = nib_gguf_array_string(gguf, key, i);
            for (uint64_t j = 0; j < string.length; j++) sum += (unsigned char)string.data[j];
        } else {
            sum += (uint64_t)nib_gguf_array_int(gguf, key, i);
            sum += nib_gguf_array_double(gguf, key, i) > 0;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    nib_tensor_set *set;
    if (nib_tensor_set_open(memory_file(bytes, length), &set) != NIB_OK) return 0;
    const nib_gguf *gguf = nib_tensor_set_gguf(set);
    for (size_t i = 0; gguf != NULL && i < nib_gguf_key_count(gguf); i++) {
        nib_gguf_type type;
        int64_t integer;
        double real;
        bool flag;
        const char *key = nib_gguf_key_at(gguf, i, &type);
        sum += nib_gguf_int(gguf, key, &integer) + nib_gguf_double(gguf, key, &real) + nib_gguf_bool(gguf, key, &flag);
        sum += nib_gguf_text(gguf, key) != NULL;
        if (type == NIB_GGUF_ARRAY) read_array(gguf, key);
    }
    for (size_t i = 0; i < nib_tensor_set_count(set); i++) {
        const nib_tensor_view *tensor = nib_tensor_set_at(set, i);
        float *values = malloc((size_t)tensor->count * sizeof *values + 1);
        if (values == NULL) abort();
        (void)nib_tensor_read_float(tensor, 0, tensor->count, values);
        free(values);
    }
    nib_tensor_set_close(set);
    return 0;
}
