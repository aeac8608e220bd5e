/* The tables and samples that nibble check prints on standard output. */
#ifndef NIB_RUNTIME_CHECK_PRINT_H
#define NIB_RUNTIME_CHECK_PRINT_H

#include "data/dataset.h"

/* One line a source: rows, samples, tokens, lengths (of samples, as percentiles), over-long and duplicate rows. */
void nib_check_print_header(void);
nib_status nib_check_print_sources(const char *role, const nib_dataset *dataset);
/* Each source's share of an epoch's draws and supervised tokens; nothing if there is one source. */
void nib_check_print_shares(const nib_dataset *dataset, const nib_mixture *mixture);
/* The tokens that end a turn; nothing if no row is a conversation. */
void nib_check_print_terminators(const nib_tokenizer *tokenizer, const nib_dataset *dataset);
/* The first sample of each source, supervised text in green on a terminal (NO_COLOR respected), else in [[ ]].
 * tokenizer NULL: ids instead of text. Long stretches are shortened and control characters of the data replaced. */
nib_status nib_check_print_masks(const nib_tokenizer *tokenizer, const nib_dataset *dataset);

#endif
