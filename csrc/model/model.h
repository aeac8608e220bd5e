/* A model in a backend's memory: base weights, LoRA adapter, activations; forward and backward.
 *
 * Usage: open (reads or builds the NF4 cache), reserve (activations for a number of tokens), then steps. Memory comes
 * from named arenas only. With a backend in rehearsal (ops.h) nothing but headers is read: the same allocations and
 * steps are counted without being made.
 */
#ifndef NIB_MODEL_H
#define NIB_MODEL_H

#include "base/buffer.h"
#include "data/pack.h"
#include "model/config.h"
#include "model/shards.h"

typedef enum { NIB_QUANT_NONE, NIB_QUANT_NF4 } nib_quantization;
/* What the backward pass computes again rather than keeps. No choice changes a bit of the result. */
typedef enum { NIB_RECOMPUTE_NONE, NIB_RECOMPUTE_GATE_UP, NIB_RECOMPUTE_LAYER } nib_recompute;

/* The LoRA part of a config, or of an adapter_config.json. rank 0: no adapter. */
typedef struct {
    int64_t rank;
    double alpha, dropout;
    bool rslora; /* scale alpha / sqrt(r) instead of alpha / r (Kalajdzievski, 2023) */
    bool dora;   /* rows scaled to trained magnitudes (Liu et al., 2024; ops.h) */
    bool all_linear;
    const char *const *targets; /* module names: "q_proj", ... if not all_linear */
    int target_count;
    const int32_t
        *tokens; /* [token_count] rows of the embedding that are trained too: PEFT's trainable_token_indices */
    int64_t token_count;
    const char *init_adapter; /* folder to continue from, or NULL */
} nib_lora_options;

typedef struct {
    const char *path; /* M of cli.md: folder or .gguf */
    bool random;      /* path needs nothing but a config.json: weights are made up (model/random_weights.h) */
    nib_quantization quantization;
    nib_dtype compute;        /* NIB_DTYPE_F32 or NIB_DTYPE_BF16 */
    bool fp8;                 /* products with the NF4 base in 8-bit floating point; the rest is bf16 */
    nib_lora_options lora;    /* for training */
    const char *adapter;      /* for inference: folder of a PEFT adapter, or NULL */
    bool full;                /* full fine-tuning: every weight trained (quantization none, no LoRA) */
    bool train;               /* gradients and optimizer moments are allocated */
    bool stream_layers;       /* inference: one layer's weights are held at a time, read from the files in every pass */
    bool moments_8bit;        /* AdamW's moments have 8 bits (ops.h), but for tensors of few values */
    uint64_t seed;            /* of A's initial values */
    const char *cache_folder; /* NULL: the default place for NF4 caches */
    const nib_shards *shard_base;      /* ranks that divide the NF4 base (base_shards.h); NULL: all of it here */
    const nib_shards *shard_optimizer; /* ranks that divide masters and moments, of a full fine-tune; NULL: likewise */
} nib_model_options;

/* Moments of a tensor of fewer values have 32 bits in any case, as in bitsandbytes (min_8bit_size). */
#define NIB_LEAST_FOR_8BIT 4096

/* One trained tensor. All pointers are the backend's memory. */
typedef struct {
    const char *name; /* as PEFT names it: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight; or, in full
                         fine-tuning, as Hugging Face does: model.layers.0.self_attn.q_proj.weight */
    int64_t rows, columns;
    int64_t first_row, held_rows; /* kept here of master and moments: all, or this rank's share (shard_optimizer) */
    float *gradient;              /* fp32 [rows * columns] */
    float *master;                /* fp32 [held_rows * columns] */
    bool moments_8bit;            /* which of the two that follow there are */
    float *first_moment, *second_moment; /* fp32 [held_rows * columns] */
    nib_moments_8bit moments;            /* of held_rows * columns values; ranks divide a tensor between blocks */
    nib_matrix
        copy; /* whole, in the activation type, refreshed by nib_model_refresh; in fp32, undivided, master's memory */
} nib_parameter;

/* The first row that rank r of those which divide an optimizer's state keeps of a tensor, r = ranks: rows. No block of
 * NIB_MOMENT_BLOCK values lies on two ranks. */
int64_t nib_parameter_row_of_rank(int64_t rows, int64_t columns, int ranks, int r);

typedef struct nib_model nib_model;

nib_status nib_model_open(nib_ops *ops, const nib_model_options *options, nib_model **model);
void nib_model_close(nib_model *model);

const nib_model_config *nib_model_get_config(const nib_model *model);
/* All parameters' gradients are one array, in this order: *parameters is the model's own. */
int nib_model_parameters(const nib_model *model, nib_parameter **parameters);
/* Where the global norm of the parameters' gradients is kept, and what an update of them is made with, [2]: the
 * backend's memory. */
nib_clip *nib_model_clip(nib_model *model);
nib_adamw_factors *nib_model_factors(nib_model *model);
/* Makes an update of the parameters: calls it, or replays what it asked the ops for when it was called for this
 * max_norm before (recording.h). So it has to ask for the same each time, and never to wait. */
nib_status nib_model_update(nib_model *model, double max_norm, nib_status (*update)(void *user), void *user);
/* Copies masters into the activation type, those of all ranks where they divide them; after every optimizer step and
 * after loading. */
nib_status nib_model_refresh(nib_model *model);
/* SHA-256 of every byte of the base (weight_hash.h), as hex; "" if the model is not trained. */
const char *nib_model_base_hash(const nib_model *model);

/* Activations for micro-batches of up to T tokens and N targets under a recompute policy; again for other sizes. */
nib_status nib_model_reserve(nib_model *model, int64_t T, int64_t N, nib_recompute recompute, bool backward);

/* Who wants to know which gradients are complete, to send them off while the others are computed: values begin ..
 * begin + n - 1 of all as one array get nothing more from ops that are asked for later. Layer by layer, from the last
 * down; what belongs to no layer is complete when the pass is. */
typedef struct {
    nib_status (*done)(void *user, int64_t begin, int64_t n); /* NULL: nobody */
    void *user;
} nib_gradient_watch;

typedef struct {
    float gradient_scale;     /* 1 / weight of all supervised tokens of the step */
    uint64_t dropout_key;     /* of seed, step and micro-batch */
    nib_gradient_watch watch; /* such a step is not recorded: what is done between its ops is not the model's */
} nib_step_options;
/* Forward and backward of one micro-batch: gradients of gradient_scale * sum(weight * nll) are added to the
 * parameters' gradients; nll (host, [batch->N]) is filled in when ops->synchronize has returned. */
nib_status nib_model_train_batch(nib_model *model, const nib_micro_batch *batch, nib_step_options options, float *nll);
/* Forward only. */
nib_status nib_model_score_batch(nib_model *model, const nib_micro_batch *batch, float *nll);
/* Takes part in a pass of the other ranks, for which this one has no micro-batch: of a divided base, each makes as many
 * passes as any. backward: it is a training pass; watch is told of each layer's gradients, complete before, where the
 * others' pass completes theirs. */
nib_status nib_model_accompany(nib_model *model, bool backward, nib_gradient_watch watch);
/* Forward only: logits of every packed token, host fp32 [T, V]. For tests and the merge check. */
nib_status nib_model_logits(nib_model *model, const nib_micro_batch *batch, float *logits);

/* Adapter files: adapter_config.json and adapter_model.safetensors, with PEFT's names, fp32, written durably. */
nib_status nib_model_save_adapter(const nib_model *model, const char *folder, const char *base_name);

/* Memory by class: the arenas that are not empty, and the most scratch that any op has taken so far. */
typedef struct {
    const char *name;
    size_t bytes;
} nib_memory_class;
int nib_model_memory(const nib_model *model, const nib_memory_class **classes);

#endif
