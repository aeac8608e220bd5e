/* A model's weights as a Hugging Face folder holds them: an adapter merged into the weights it was trained on, W +
 * scale B A, with DoRA each row then scaled to its magnitude, into the original 16-bit weights and never into 4-bit
 * ones, whose rounding would swallow the adapter; or the weights of a full fine-tune. */
#ifndef NIB_EXPORT_MERGE_H
#define NIB_EXPORT_MERGE_H

#include "model/model.h"

typedef struct {
    long long tensors, adapted; /* written; of which changed by the adapter */
    int shards;
    nib_model_config config; /* of what was written */
} nib_merge_summary;

/* Writes FOLDER/model.safetensors, or shards of about 4 GiB with model.safetensors.index.json, in bf16 with Hugging
 * Face's names, one piece of a tensor in memory at a time. The sum is made in fp32 and rounded once. adapter may be
 * NULL: the weights alone. Every file is written durably and compared by hash; the index comes last.
 * NIB_ERROR_DATA if the base is quantised (GGUF blocks are dequantised, as training does; NF4 is refused), or the
 * adapter does not fit the model. */
nib_status nib_export_merged(const char *model, const char *adapter, const char *folder, nib_merge_summary *summary);

/* The same files from a model in memory whose every weight is trained (nib_model_options.full): its fp32 masters, each
 * rounded once to bf16, which moves a weight by 2^-8 of itself at most. */
nib_status nib_export_trained(nib_ops *ops, const nib_model *model, const char *folder, nib_merge_summary *summary);

#endif
