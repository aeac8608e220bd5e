/* Decoders: a chain of steps from the texts of tokens to text. */
#ifndef NIB_DECODER_H
#define NIB_DECODER_H

#include "base/buffer.h"
#include "base/status.h"

#include <stdint.h>

typedef enum {
    NIB_DECODE_BYTE_LEVEL,    /* GPT-2's alphabet into bytes, all tokens together */
    NIB_DECODE_REPLACE,       /* one text for another in each token */
    NIB_DECODE_BYTE_FALLBACK, /* runs of <0xXX> into the bytes; bytes that form no text into U+FFFD each */
    NIB_DECODE_FUSE,          /* all tokens into one */
    NIB_DECODE_STRIP,         /* up to so many of a character off each token's ends */
    NIB_DECODE_METASPACE      /* the replacement into spaces, one less at the start if it was prepended */
} nib_decoder_kind;

typedef struct {
    nib_decoder_kind kind;
    char *pattern, *content;
    uint32_t left, right; /* strip */
    bool prepended;       /* metaspace */
} nib_decoder_step;

#define NIB_DECODER_STEPS 8
typedef struct {
    nib_decoder_step steps[NIB_DECODER_STEPS];
    size_t count; /* 0: tokens joined with a space */
} nib_decoder;
void nib_decoder_free(nib_decoder *decoder);

typedef struct {
    const char *text;
    size_t length;
} nib_piece;
/* Appends the decoded text. */
nib_status nib_decode(const nib_decoder *decoder, const nib_piece *pieces, size_t count, nib_buffer *text);

#endif
