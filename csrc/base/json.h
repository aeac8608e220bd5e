/* A strict JSON reader (RFC 8259) for files from outside: config, safetensors headers, tokenizer.json, JSONL rows.
 *
 * Refused, with line and column: duplicate keys, trailing bytes, invalid UTF-8, \u0000 unless allowed, lone surrogates,
 * control characters, nesting deeper than 128. Integers are exact up to 64 bits. Writing is done with cJSON, or with
 * nib_buffer_json_string where a stream is written.
 */
#ifndef NIB_JSON_H
#define NIB_JSON_H

#include "base/memory.h"
#include "base/status.h"

#include <stdint.h>

typedef enum {
    NIB_JSON_NULL,
    NIB_JSON_FALSE,
    NIB_JSON_TRUE,
    NIB_JSON_NUMBER,
    NIB_JSON_STRING,
    NIB_JSON_ARRAY,
    NIB_JSON_OBJECT
} nib_json_kind;

typedef struct nib_json nib_json;
struct nib_json {
    nib_json_kind kind;
    bool is_integer;   /* number written without fraction or exponent that fits int64 */
    uint32_t line;     /* 1-based line of the value */
    uint32_t key_line; /* 1-based line of the key, for members */
    double number;
    int64_t integer;
    const char *string; /* UTF-8, NUL-terminated */
    size_t length;      /* bytes of the string, or number of children */
    const char *key;    /* member name if the parent is an object */
    size_t key_length;
    nib_json *first; /* first child */
    nib_json *next;  /* next sibling */
};

typedef struct {
    bool comments;  /* allow // to the end of the line (our own config) */
    bool allow_nul; /* allow \u0000 inside strings (tokenizer vocabularies): use length */
    int max_depth;  /* 0: 128 */
} nib_json_options;

/* Parses text[0..length) into *root; every node lives in the pool. name is used in messages ("name:line:column: ...").
 * A byte order mark in front is passed over.
 * Fails with NIB_ERROR_DATA, also at the pool's limit (or NIB_ERROR_MEMORY if there is none). Strings do not point into
 * text. */
nib_status nib_json_parse(const char *name, const char *text, size_t length, nib_json_options options, nib_pool *pool,
                          nib_json **root);

/* Member of an object; NULL if absent or if object is NULL or no object. */
const nib_json *nib_json_get(const nib_json *object, const char *key);
bool nib_json_is(const nib_json *value, nib_json_kind kind); /* false for NULL */
/* Typed reads of an optional member: absent or null gives the fallback. Wrong type fails with NIB_ERROR_DATA, naming
 * `name`, line and key. */
nib_status nib_json_read_int(const char *name, const nib_json *object, const char *key, int64_t low, int64_t high,
                             int64_t fallback, int64_t *out);
nib_status nib_json_read_double(const char *name, const nib_json *object, const char *key, double fallback,
                                double *out);
nib_status nib_json_read_bool(const char *name, const nib_json *object, const char *key, bool fallback, bool *out);
nib_status nib_json_read_string(const char *name, const nib_json *object, const char *key, const char *fallback,
                                const char **out);
const char *nib_json_kind_name(nib_json_kind kind); /* "an object", "a string", ... */

#endif
