/* Template source to tokens, with the whitespace rules of trim_blocks and lstrip_blocks.
 *
 * Follows the lexer of Jinja 3.1 (jinja.palletsprojects.com, "Template Designer Documentation", Whitespace Control).
 */
#ifndef NIB_JINJA_LEXER_H
#define NIB_JINJA_LEXER_H

#include "tokenizer/jinja_value.h"

typedef enum {
    NIB_JINJA_TOKEN_TEXT, /* template text between tags */
    NIB_JINJA_TOKEN_OUTPUT_BEGIN,
    NIB_JINJA_TOKEN_OUTPUT_END,
    NIB_JINJA_TOKEN_BLOCK_BEGIN,
    NIB_JINJA_TOKEN_BLOCK_END,
    NIB_JINJA_TOKEN_NAME,
    NIB_JINJA_TOKEN_STRING, /* escapes resolved */
    NIB_JINJA_TOKEN_INTEGER,
    NIB_JINJA_TOKEN_FLOAT,
    NIB_JINJA_TOKEN_OPERATOR, /* text is one of + - * / // % ** ~ == != < <= > >= = . : | , ; ( ) [ ] { } */
    NIB_JINJA_TOKEN_END
} nib_jinja_token_kind;

typedef struct {
    nib_jinja_token_kind kind;
    uint32_t line; /* 1-based */
    const char *text;
    size_t length;
    int64_t integer;
    double number;
} nib_jinja_token;

typedef struct {
    nib_jinja_token *items; /* the last one is NIB_JINJA_TOKEN_END */
    size_t count;
} nib_jinja_tokens;

/* All memory is from the pool; tokens do not point into source. Fails with NIB_ERROR_DATA, "name:line: ...". */
nib_status nib_jinja_tokenize(const char *name, const char *source, size_t length, nib_pool *pool,
                              nib_jinja_tokens *tokens);

/* Bytes of the white space (Python's str.isspace) that text starts with, or ends with. */
size_t nib_jinja_leading_space(const char *text, size_t length);
size_t nib_jinja_trailing_space(const char *text, size_t length);
bool nib_jinja_is_space(uint32_t codepoint);

#endif
