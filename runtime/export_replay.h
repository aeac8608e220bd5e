/* What an export has written, held against the answers that training saved beside the adapter (export/replay.h). Prints
 * what it found on standard output; NIB_ERROR_DATA names the first difference. */
#ifndef NIB_EXPORT_REPLAY_H
#define NIB_EXPORT_REPLAY_H

#include "open.h"

/* In nats: how much likelier another token may be before it is no near tie. The first is what the order of sums and
 * another processor's instructions do in bf16; on one machine the bits are the same. The second is what rounding merged
 * weights to bf16 does: in SmolLM2 it moves the next token's distribution by a divergence of 3e-4, typically 0.025 nats
 * (the root of twice that) of a likely token; this is ten times as much. */
#define NIB_NEAR_TIE        0.05
#define NIB_NEAR_TIE_MERGED 0.25

/* adapter: the folder that may hold the saved answers. text: tokenizer and template as they were written, which have to
 * render the saved message to the saved ids. model: what was written; it is opened as in training. */
nib_status nib_export_replay(const char *adapter, const nib_text *text, nib_model_options model, nib_device device);

/* A merged model, 16-bit. If training had an NF4 base, `parts`, the base with the adapter, have to answer as in
 * training on that base, and the merged model as they do on the 16-bit base; how far that is from the training is
 * printed. */
nib_status nib_export_replay_merged(const char *adapter, const nib_text *text, nib_model_options parts,
                                    nib_model_options merged, nib_device device);

#endif
