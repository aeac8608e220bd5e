/* One JSON object of a data file, recognised. */
#ifndef NIB_ROW_FORMAT_H
#define NIB_ROW_FORMAT_H

#include "base/json.h"

typedef enum {
    NIB_ROW_CONVERSATION, /* messages, conversations; prompt/completion and instruction/output if there is a template */
    NIB_ROW_PROMPT,       /* prompt/completion and instruction/output if there is none */
    NIB_ROW_TEXT,
    NIB_ROW_IDS
} nib_row_kind;

/* Everything lives in the pool that the JSON lives in. */
typedef struct {
    nib_row_kind kind;
    nib_json *message; /* [messages] objects with "role" and "content", an array linked by next */
    int messages;
    const nib_json *tools;               /* array or NULL */
    const nib_json *prompt, *completion; /* strings; completion also holds the text of NIB_ROW_TEXT */
    const nib_json *ids, *labels;        /* arrays of equal length */
    float weight;                        /* 1 unless the row states one */
} nib_parsed_row;

/* The object in a line. NIB_ERROR_DATA if it is none; for files as other programs write them, one array or objects over
 * several lines, the message says how to make lines of them. where: "file:line" for messages. */
nib_status nib_row_read(const char *where, const char *line, size_t length, nib_pool *pool, nib_json **row);

/* Recognises the format by the keys it needs, all of them: other keys are left alone, but a row that has the keys of
 * two formats, or of none, is NIB_ERROR_DATA and the message lists its keys. row is an object.
 *
 * With a chat template, {"prompt","completion"} and {"instruction","input"?,"output"} become one turn of the user
 * (instruction, empty line, input) and one of the assistant, since that is how an instruct model will be asked. Without
 * one the prompt is plain text; instruction and input are then each followed by an empty line. "source" is a label for
 * people: its type is checked, nothing else. */
nib_status nib_row_parse(const char *where, const nib_json *row, bool has_template, nib_pool *pool,
                         nib_parsed_row *parsed);

/* Only spaces: such lines of a file are no rows. */
bool nib_row_is_blank(const char *line, size_t length);

#endif
