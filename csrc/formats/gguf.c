/* Reading GGUF (ggml's gguf.md): a header, typed metadata, a table of tensors, aligned data. Every length comes from
 * the file and is held against what is left of it. */
#include "formats/gguf.h"
#include "formats/tensor_set_internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_KEYS    4096 /* real files have under a hundred; they are compared pairwise */
#define MAX_TENSORS 1000000
#define MAX_NESTING 4 /* of arrays in arrays, which the format allows and no known writer makes */

typedef struct {
    const char *key;
    nib_gguf_type type, element;          /* element: of an array */
    uint64_t count;                       /* of an array */
    uint64_t offset;                      /* of the value, or of the first element, in the file */
    char *text;                           /* NUL-terminated copy of a string */
    uint64_t cursor_index, cursor_offset; /* where sequential access to an array of strings stands */
} gguf_entry;

struct nib_gguf {
    const nib_file *file;
    gguf_entry *entries;
    size_t entry_count;
    nib_tensor_view *tensors;
    size_t tensor_count;
    nib_pool pool;
};

typedef struct {
    const nib_file *file;
    uint64_t at;
} reader;

static nib_status take(reader *r, uint64_t bytes, const uint8_t **data, const char *what)
{
    if (bytes > r->file->size - r->at)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %llu: %s needs %llu bytes, %llu are left; is the file truncated?",
                        r->file->path, (unsigned long long)r->at, what, (unsigned long long)bytes,
                        (unsigned long long)(r->file->size - r->at));
    *data = r->file->data + r->at;
    r->at += bytes;
    return NIB_OK;
}

static nib_status read_u32(reader *r, uint32_t *value, const char *what)
{
    const uint8_t *data = NULL;
    NIB_TRY(take(r, 4, &data, what));
    memcpy(value, data, 4);
    return NIB_OK;
}

static nib_status read_u64(reader *r, uint64_t *value, const char *what)
{
    const uint8_t *data = NULL;
    NIB_TRY(take(r, 8, &data, what));
    memcpy(value, data, 8);
    return NIB_OK;
}

static nib_status read_string(reader *r, nib_gguf_string *string, const char *what)
{
    const uint8_t *data = NULL;
    NIB_TRY(read_u64(r, &string->length, what));
    NIB_TRY(take(r, string->length, &data, what));
    string->data = (const char *)data;
    return NIB_OK;
}

/* Bytes of a fixed-size type; 0 for strings, arrays and unknown types. */
static uint64_t type_bytes(nib_gguf_type type)
{
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return (unsigned)type < sizeof bytes ? bytes[type] : 0;
}

/* Type and count of an array; r stands at its first element then. */
static nib_status read_array_head(reader *r, const char *key, nib_gguf_type *element, uint64_t *count)
{
    uint32_t type;
    uint64_t start = r->at;
    NIB_TRY(read_u32(r, &type, key));
    NIB_TRY(read_u64(r, count, key));
    *element = (nib_gguf_type)type;
    if (type <= NIB_GGUF_F64) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %llu: array \"%s\" has elements of type %u, expected 0 to 12",
                    r->file->path, (unsigned long long)start, key, type);
}

/* Passes over an array's elements. Each takes 8 bytes or more, or is checked as a whole, so that no count of the file's
 * choosing makes this long. */
static nib_status skip_elements(reader *r, const char *key, nib_gguf_type element, uint64_t count, int depth)
{
    const uint8_t *data = NULL;
    uint64_t bytes;
    if (element == NIB_GGUF_ARRAY && depth == MAX_NESTING)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %llu: array \"%s\" is nested more than %d deep", r->file->path,
                        (unsigned long long)r->at, key, MAX_NESTING);
    if (element == NIB_GGUF_STRING || element == NIB_GGUF_ARRAY) {
        for (uint64_t i = 0; i < count; i++) {
            nib_gguf_string string;
            nib_gguf_type inner;
            uint64_t inner_count;
            if (element == NIB_GGUF_STRING) {
                NIB_TRY(read_string(r, &string, key));
                continue;
            }
            NIB_TRY(read_array_head(r, key, &inner, &inner_count));
            NIB_TRY(skip_elements(r, key, inner, inner_count, depth + 1));
        }
        return NIB_OK;
    }
    if (__builtin_mul_overflow(count, type_bytes(element), &bytes))
        return NIB_FAIL(NIB_ERROR_DATA, "%s: array \"%s\" overflows", r->file->path, key);
    return take(r, bytes, &data, key);
}

static nib_status skip_value(reader *r, gguf_entry *entry)
{
    const uint8_t *data = NULL;
    nib_gguf_string string;
    entry->offset = r->at;
    if (entry->type == NIB_GGUF_STRING) return read_string(r, &string, entry->key);
    if (entry->type == NIB_GGUF_ARRAY) {
        NIB_TRY(read_array_head(r, entry->key, &entry->element, &entry->count));
        entry->offset = entry->cursor_offset = r->at;
        return skip_elements(r, entry->key, entry->element, entry->count, 1);
    }
    NIB_TRY(take(r, type_bytes(entry->type), &data, entry->key));
    if (entry->type == NIB_GGUF_BOOL && *data > 1)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %llu: key \"%s\" is a bool of value %u, expected 0 or 1",
                        r->file->path, (unsigned long long)entry->offset, entry->key, *data);
    return NIB_OK;
}

static const gguf_entry *find(const nib_gguf *gguf, const char *key)
{
    for (size_t i = 0; i < gguf->entry_count; i++)
        if (strcmp(gguf->entries[i].key, key) == 0) return &gguf->entries[i];
    return NULL;
}

static nib_status read_metadata(nib_gguf *gguf, reader *r, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        nib_gguf_string key;
        uint32_t type;
        uint64_t start = r->at;
        gguf_entry *entry = &gguf->entries[gguf->entry_count];
        NIB_TRY(read_string(r, &key, "a metadata key"));
        NIB_TRY(read_u32(r, &type, "a metadata type"));
        if (key.length == 0 || key.length > 65535 || memchr(key.data, 0, key.length) != NULL)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %llu: a metadata key is empty, too long or holds a NUL",
                            r->file->path, (unsigned long long)start);
        if (type > NIB_GGUF_F64)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %llu: key \"%.*s\" has type %u, expected 0 to 12", r->file->path,
                            (unsigned long long)start, (int)key.length, key.data, type);
        entry->key = nib_pool_copy(&gguf->pool, key.data, key.length);
        if (entry->key == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its metadata", r->file->path);
        if (find(gguf, entry->key) != NULL)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %llu: key \"%s\" occurs twice", r->file->path,
                            (unsigned long long)start, entry->key);
        entry->type = (nib_gguf_type)type;
        NIB_TRY(skip_value(r, entry));
        if (entry->type == NIB_GGUF_STRING) {
            entry->text =
                nib_pool_copy(&gguf->pool, (const char *)r->file->data + entry->offset + 8, r->at - entry->offset - 8);
            if (entry->text == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its metadata", r->file->path);
        }
        gguf->entry_count++;
    }
    return NIB_OK;
}

static bool dtype_of(uint32_t type, nib_dtype *dtype)
{
    static const struct {
        uint32_t type;
        nib_dtype dtype;
    } types[] = {{0, NIB_DTYPE_F32},     {1, NIB_DTYPE_F16},     {2, NIB_DTYPE_Q4_0},  {3, NIB_DTYPE_Q4_1},
                 {6, NIB_DTYPE_Q5_0},    {7, NIB_DTYPE_Q5_1},    {8, NIB_DTYPE_Q8_0},  {10, NIB_DTYPE_Q2_K},
                 {11, NIB_DTYPE_Q3_K},   {12, NIB_DTYPE_Q4_K},   {13, NIB_DTYPE_Q5_K}, {14, NIB_DTYPE_Q6_K},
                 {20, NIB_DTYPE_IQ4_NL}, {23, NIB_DTYPE_IQ4_XS}, {24, NIB_DTYPE_I8},   {26, NIB_DTYPE_I32},
                 {27, NIB_DTYPE_I64},    {28, NIB_DTYPE_F64},    {30, NIB_DTYPE_BF16}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].type == type) {
            *dtype = types[i].dtype;
            return true;
        }
    return false;
}

static nib_status read_tensor(nib_gguf *gguf, reader *r, nib_tensor_view *view)
{
    nib_gguf_string name;
    uint32_t rank, type;
    uint64_t sizes[4], start = r->at;
    const char *path = r->file->path;
    NIB_TRY(read_string(r, &name, "a tensor name"));
    NIB_TRY(read_u32(r, &rank, "a tensor's rank"));
    if (name.length == 0 || name.length > 1024 || memchr(name.data, 0, name.length) != NULL)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %llu: a tensor name is empty, too long or holds a NUL", path,
                        (unsigned long long)start);
    if (rank > 4)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %llu: tensor \"%.*s\" has %u dimensions, expected at most 4", path,
                        (unsigned long long)start, (int)name.length, name.data, rank);
    *view = (nib_tensor_view){.file = r->file, .count = 1, .rank = (int)rank};
    for (uint32_t i = 0; i < rank; i++) {
        NIB_TRY(read_u64(r, &sizes[i], "a tensor's size"));
        if (sizes[i] > INT64_MAX || __builtin_mul_overflow(view->count, (int64_t)sizes[i], &view->count))
            return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %llu: the shape of tensor \"%.*s\" overflows", path,
                            (unsigned long long)start, (int)name.length, name.data);
    }
    for (uint32_t i = 0; i < rank; i++) view->shape[i] = (int64_t)sizes[rank - 1 - i];
    NIB_TRY(read_u32(r, &type, "a tensor's type"));
    NIB_TRY(read_u64(r, &view->offset, "a tensor's offset"));
    if (!dtype_of(type, &view->dtype))
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: tensor \"%.*s\" has type %u, which Nibble does not read; expected one of "
                        "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K-Q6_K IQ4_NL IQ4_XS",
                        path, (int)name.length, name.data, type);
    view->name = nib_pool_copy(&gguf->pool, name.data, name.length);
    if (view->name == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its tensors", path);
    int64_t block = nib_dtype_block(view->dtype), bytes;
    int64_t row = rank > 0 ? view->shape[rank - 1] : 1;
    if (row % block != 0 || __builtin_mul_overflow(view->count / block, nib_dtype_block_bytes(view->dtype), &bytes))
        return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\": rows of %lld are no multiple of %s's block of %lld", path,
                        view->name, (long long)row, nib_dtype_name(view->dtype), (long long)block);
    view->bytes = (uint64_t)bytes;
    return NIB_OK;
}

/* Turns offsets into the data section into offsets and pointers into the file. As ggml demands, tensors follow each
 * other in the table's order, each at the next multiple of the alignment. */
static nib_status place_tensors(nib_gguf *gguf, uint64_t data_start, uint64_t alignment)
{
    const nib_file *file = gguf->file;
    uint64_t expected = 0;
    for (size_t i = 0; i < gguf->tensor_count; i++) {
        nib_tensor_view *view = &gguf->tensors[i];
        if (view->offset != expected)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" is at offset %llu of the data, expected %llu",
                            file->path, view->name, (unsigned long long)view->offset, (unsigned long long)expected);
        if (data_start > file->size || view->offset > file->size - data_start ||
            view->bytes > file->size - data_start - view->offset)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s: tensor \"%s\" (%llu bytes at %llu) lies beyond the end of the file (%llu "
                            "bytes); is it truncated?",
                            file->path, view->name, (unsigned long long)view->bytes,
                            (unsigned long long)(data_start + view->offset), (unsigned long long)file->size);
        expected += (view->bytes + alignment - 1) / alignment * alignment;
        view->offset += data_start;
        view->data = file->data + view->offset;
    }
    return NIB_OK;
}

static nib_status parse(nib_gguf *gguf)
{
    reader r = {.file = gguf->file};
    const uint8_t *magic = NULL;
    uint32_t version;
    uint64_t tensors, keys;
    const char *path = gguf->file->path;
    NIB_TRY(take(&r, 4, &magic, "the magic"));
    if (memcmp(magic, "GGUF", 4) != 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: starts with %02x %02x %02x %02x, expected \"GGUF\"", path, magic[0],
                        magic[1], magic[2], magic[3]);
    NIB_TRY(read_u32(&r, &version, "the version"));
    if (version != 2 && version != 3)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: GGUF version %u, expected 2 or 3%s", path, version,
                        version == 0x03000000 ? " (a big-endian file)" : "");
    NIB_TRY(read_u64(&r, &tensors, "the number of tensors"));
    NIB_TRY(read_u64(&r, &keys, "the number of metadata keys"));
    /* A key takes at least 13 bytes and a tensor 24, which bounds what is allocated. */
    if (keys > MAX_KEYS || keys > r.file->size / 13 || tensors > MAX_TENSORS || tensors > r.file->size / 24)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: %llu metadata keys and %llu tensors do not fit a file of %llu bytes; is it truncated?",
                        path, (unsigned long long)keys, (unsigned long long)tensors, (unsigned long long)r.file->size);
    gguf->entries = nib_calloc(keys, sizeof *gguf->entries);
    gguf->tensors = nib_calloc(tensors, sizeof *gguf->tensors);
    if (gguf->entries == NULL || gguf->tensors == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its tables", path);
    NIB_TRY(read_metadata(gguf, &r, keys));
    for (; gguf->tensor_count < tensors; gguf->tensor_count++)
        NIB_TRY(read_tensor(gguf, &r, &gguf->tensors[gguf->tensor_count]));
    int64_t alignment = 32;
    if (find(gguf, "general.alignment") != NULL &&
        (!nib_gguf_int(gguf, "general.alignment", &alignment) || alignment < 1 || alignment > 1 << 20 ||
         (alignment & (alignment - 1)) != 0))
        return NIB_FAIL(NIB_ERROR_DATA, "%s: general.alignment is no power of two from 1 to 1048576", path);
    uint64_t step = (uint64_t)alignment;
    return place_tensors(gguf, (r.at + step - 1) / step * step, step);
}

nib_status nib_gguf_parse(const nib_file *file, nib_gguf **out)
{
    *out = NULL;
    nib_gguf *gguf = nib_calloc(1, sizeof *gguf);
    if (gguf == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to open it", file->path);
    gguf->file = file;
    nib_status status = parse(gguf);
    if (status == NIB_OK)
        *out = gguf;
    else
        nib_gguf_free(gguf);
    return status;
}

void nib_gguf_free(nib_gguf *gguf)
{
    if (gguf == NULL) return;
    nib_free(gguf->entries);
    nib_free(gguf->tensors);
    nib_pool_free(&gguf->pool);
    nib_free(gguf);
}

nib_status nib_gguf_open_set(nib_tensor_set *set, const char *path)
{
    nib_file *file;
    NIB_TRY(nib_tensor_set_add_file(set, path, &file));
    NIB_TRY(nib_gguf_parse(file, &set->gguf));
    for (size_t i = 0; i < set->gguf->tensor_count; i++) NIB_TRY(nib_tensor_set_add(set, &set->gguf->tensors[i]));
    return NIB_OK;
}

/* Number at data as both an integer and a double; false for other types. */
static bool number(nib_gguf_type type, const uint8_t *data, int64_t *integer, double *real)
{
    uint64_t bits = 0;
    memcpy(&bits, data, type_bytes(type));
    switch (type) {
    case NIB_GGUF_U8:
    case NIB_GGUF_U16:
    case NIB_GGUF_U32:
    case NIB_GGUF_BOOL:
        *integer = (int64_t)bits;
        break;
    case NIB_GGUF_I8:
        *integer = (int8_t)bits;
        break;
    case NIB_GGUF_I16:
        *integer = (int16_t)bits;
        break;
    case NIB_GGUF_I32:
        *integer = (int32_t)bits;
        break;
    case NIB_GGUF_I64:
        *integer = (int64_t)bits;
        break;
    case NIB_GGUF_U64:
        if (bits > INT64_MAX) return false;
        *integer = (int64_t)bits;
        break;
    case NIB_GGUF_F32: {
        float x;
        memcpy(&x, data, 4);
        *real = x;
        return true;
    }
    case NIB_GGUF_F64:
        memcpy(real, data, 8);
        return true;
    default:
        return false;
    }
    *real = (double)*integer;
    return true;
}

static bool is_real(nib_gguf_type type) { return type == NIB_GGUF_F32 || type == NIB_GGUF_F64; }

bool nib_gguf_int(const nib_gguf *gguf, const char *key, int64_t *value)
{
    const gguf_entry *entry = find(gguf, key);
    double real;
    if (entry == NULL || is_real(entry->type) || entry->type == NIB_GGUF_BOOL) return false;
    return number(entry->type, gguf->file->data + entry->offset, value, &real);
}

bool nib_gguf_double(const nib_gguf *gguf, const char *key, double *value)
{
    const gguf_entry *entry = find(gguf, key);
    int64_t integer;
    return entry != NULL && is_real(entry->type) &&
           number(entry->type, gguf->file->data + entry->offset, &integer, value);
}

bool nib_gguf_bool(const nib_gguf *gguf, const char *key, bool *value)
{
    const gguf_entry *entry = find(gguf, key);
    if (entry == NULL || entry->type != NIB_GGUF_BOOL) return false;
    *value = gguf->file->data[entry->offset] != 0;
    return true;
}

const char *nib_gguf_text(const nib_gguf *gguf, const char *key)
{
    const gguf_entry *entry = find(gguf, key);
    return entry == NULL ? NULL : entry->text;
}

bool nib_gguf_array(const nib_gguf *gguf, const char *key, nib_gguf_type *type, uint64_t *count)
{
    const gguf_entry *entry = find(gguf, key);
    if (entry == NULL || entry->type != NIB_GGUF_ARRAY) return false;
    *type = entry->element;
    *count = entry->count;
    return true;
}

nib_gguf_string nib_gguf_array_string(const nib_gguf *gguf, const char *key, uint64_t index)
{
    gguf_entry *entry = (gguf_entry *)(uintptr_t)find(gguf, key); /* only its cursor changes */
    if (entry == NULL || entry->element != NIB_GGUF_STRING || index >= entry->count) return (nib_gguf_string){"", 0};
    if (index < entry->cursor_index) {
        entry->cursor_index = 0;
        entry->cursor_offset = entry->offset;
    }
    for (;; entry->cursor_index++) { /* lengths were checked when the file was parsed */
        uint64_t length;
        memcpy(&length, gguf->file->data + entry->cursor_offset, 8);
        if (entry->cursor_index == index)
            return (nib_gguf_string){(const char *)gguf->file->data + entry->cursor_offset + 8, length};
        entry->cursor_offset += 8 + length;
    }
}

static bool array_number(const nib_gguf *gguf, const char *key, uint64_t index, int64_t *integer, double *real)
{
    const gguf_entry *entry = find(gguf, key);
    if (entry == NULL || entry->type != NIB_GGUF_ARRAY || index >= entry->count || type_bytes(entry->element) == 0)
        return false;
    return number(entry->element, gguf->file->data + entry->offset + index * type_bytes(entry->element), integer, real);
}

int64_t nib_gguf_array_int(const nib_gguf *gguf, const char *key, uint64_t index)
{
    int64_t integer = 0;
    double real;
    array_number(gguf, key, index, &integer, &real);
    return integer;
}

double nib_gguf_array_double(const nib_gguf *gguf, const char *key, uint64_t index)
{
    int64_t integer;
    double real = 0;
    array_number(gguf, key, index, &integer, &real);
    return real;
}

size_t nib_gguf_key_count(const nib_gguf *gguf) { return gguf->entry_count; }

const char *nib_gguf_key_at(const nib_gguf *gguf, size_t index, nib_gguf_type *type)
{
    *type = gguf->entries[index].type;
    return gguf->entries[index].key;
}
