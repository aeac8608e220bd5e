/* Rows to tokens and masks.
 *
 * A conversation is rendered as a whole, and once more up to each assistant turn with the generation prompt: what the
 * whole holds beyond that prompt, up to and including the token that ends the turn, is supervised. So masks come from
 * what the template does, not from markers in it, and the model is trained on exactly what it will have to write.
 *
 *   text    ... <|im_start|>assistant\n | net <|im_end|> | \n
 *   mask    0 ........................0 | 1 ......... 1  | 0 (cut at the end of the row: nobody needs it)
 *
 * Ids are those of the whole text encoded at once. A token that straddles the border before a turn starts in the prompt
 * and is not supervised. The end of a turn is the first special token behind the assistant's content (the last of the
 * turn, if it is made of tool calls); if there is none the row is refused, since a model trained on it would never
 * stop.
 *
 * Templates that rewrite the past (reasoning of earlier turns removed): an earlier turn that does not stand in the
 * whole as it was generated becomes a sample of its own, of the conversation up to it. Where the generation prompt
 * opens something that the finished turn does not hold (an empty <think>), the turn begins where both part.
 *
 * strftime_now in a template sees a fixed day, so that the same data always gives the same tokens.
 */
#ifndef NIB_ROW_ENCODER_H
#define NIB_ROW_ENCODER_H

#include "data/dataset.h"
#include "data/row_format.h"

typedef struct {
    const int32_t *ids;        /* [length] */
    const uint8_t *supervised; /* [length] */
    size_t length;
    size_t prompt_length;      /* tokens before the last assistant turn; 0: the row has no such turn */
    const nib_json *reference; /* that turn's text, or NULL */
    float weight;              /* of the row */
} nib_draft;

/* Hash of a sample's ids: equal ones have equal fingerprints, others (but for chance, 2^-64) not. */
uint64_t nib_draft_fingerprint(const nib_draft *draft);

enum { NIB_MAX_TERMINATORS = 8 };
/* A line is at most 64 MiB; its JSON may not take more than this, whatever it is made of. */
#define NIB_MAX_ROW_MEMORY ((size_t)2 << 30)

typedef struct {
    const nib_data_options *options;
    nib_status (*sink)(void *context, const nib_draft *draft); /* takes every sample */
    void *sink_context;
    float weight; /* of the row at hand */
    int32_t terminator[NIB_MAX_TERMINATORS];
    int terminators;
    /* scratch, kept between rows */
    nib_buffer whole, turn, prompt;
    nib_token_list tokens, part;
    uint8_t *mask;
    size_t mask_capacity;
} nib_row_encoder;

/* Gives the samples of one line of JSON to the sink. where: "file:line" for messages. Fails as nib_dataset_load does,
 * or as the sink does. */
nib_status nib_row_encode_line(nib_row_encoder *encoder, const char *where, const char *line, size_t length);
nib_status nib_row_encode(nib_row_encoder *encoder, const char *where, nib_parsed_row *row);
void nib_row_encoder_free(nib_row_encoder *encoder);

#endif
