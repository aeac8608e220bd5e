/* The inside of nib_model: what layout.c places, forward.c fills and backward.c reads; private to csrc/model. */
#ifndef NIB_MODEL_INTERNAL_H
#define NIB_MODEL_INTERNAL_H

#include "model/base_shards.h"
#include "model/key_value_cache.h"
#include "model/lora_config.h"
#include "model/model.h"
#include "model/recording.h"
#include "model/weight_source.h"

typedef struct {
    nib_linear qkv;                     /* q, k, v: [T, C] to [T, (NH + 2 NKV) HD] */
    nib_linear output;                  /* o: [T, NH HD] to [T, C] */
    nib_linear gate_up;                 /* gate, up: [T, C] to [T, 2 F] */
    nib_linear down;                    /* down: [T, F] to [T, C] */
    float *attention_norm, *ffn_norm;   /* [C] */
    float *q_norm, *k_norm;             /* [HD], of a model whose queries and keys are normed (config.h) */
    float *dattention_norm, *dffn_norm; /* gradients of the norms, full fine-tuning only, else NULL */
    float *dq_norm, *dk_norm;
    char *record;                     /* of a divided base: the window that its NF4 weights point into */
    int64_t gradients, gradients_end; /* its first value among all gradients, and that behind its last */
} nib_layer;

/* What a layer's backward pass reads. Layers share a buffer where the recompute policy drops it. */
typedef struct {
    nib_matrix residual;                           /* [T, C] before the attention norm */
    nib_matrix middle;                             /* [T, C] before the feed-forward norm */
    nib_matrix qkv;                                /* [T, (NH + 2 NKV) HD] after rotary; before qk_norm, if any */
    nib_matrix attention;                          /* [T, NH HD] */
    float *lse;                                    /* [NH, T] */
    nib_matrix gate_up;                            /* [T, 2 F]; its backward pass overwrites it with the gradient */
    nib_matrix u_qkv, u_output, u_gate_up, u_down; /* [T, ranks of the linear] */
} nib_layer_saves;

typedef struct {
    int64_t T, N;            /* capacity */
    int64_t tokens, targets; /* of the micro-batch that was uploaded last */
    nib_recompute recompute;
    bool backward;
    int64_t room; /* columns behind each row of what linears read, for the backend (nib_linear_room): normed, attention,
                     h; backward: dx, dqkv, gate_up */
    int32_t *batch;                     /* the arrays of a micro-batch, uploaded as one */
    int32_t *token, *position, *end;    /* [T] */
    int32_t *token_row;                 /* [T] row of each token among those that are trained, or -1; NULL: none is */
    int32_t *target_row, *target_label; /* [N] */
    float *target_weight, *nll;         /* [N] */
    const uint64_t *dropout_key;        /* [layers][4][NIB_LINEAR_MAX_PARTS]; NULL: no dropout */
    float *rotary;                      /* [T, HD] */
    nib_layer_saves *layer;             /* host [layers + 1]; of the last only the residual: the output of all layers */
    nib_matrix normed;                  /* [T, C] output of a norm */
    nib_matrix qk;                      /* [T, (NH + NKV) HD] qk_norm: a layer's queries and keys, normed and rotated */
    nib_matrix delta;              /* [T, C] what a block adds to the residual; backward: gradient of a norm's output */
    nib_matrix h;                  /* [T, F] */
    nib_matrix dx;                 /* [T, C] gradient of the residual stream */
    nib_matrix dattention;         /* [T, NH HD] */
    nib_matrix dqkv;               /* [T, (NH + 2 NKV) HD] */
    nib_matrix dh;                 /* [T, F] */
    const nib_cache_access *cache; /* generation: keys and values are stored and seen there; else NULL */
} nib_activations;

/* Rows of the embedding that are trained as a whole, PEFT's trainable_token_indices (token_rows.c). count 0: none. */
typedef struct {
    int64_t count;
    const int32_t *token;     /* host [count] */
    int32_t *device_token;    /* [count] the same */
    int32_t *of_vocabulary;   /* host [V]: the row of a token, -1 for most */
    float *master, *gradient; /* fp32 [count, C] */
} nib_token_rows;

/* The seven linears of a layer, as checkpoints and adapters name them. */
#define NIB_MODULES 7
typedef struct {
    const char *name; /* "self_attn.q_proj" */
    size_t linear;    /* offset of the nib_linear in nib_layer */
    int part;
    bool bias;
    int64_t rows, columns;
} nib_module;

enum {
    NIB_ARENA_BASE,
    NIB_ARENA_WINDOWS,
    NIB_ARENA_ADAPTER,
    NIB_ARENA_GRADIENTS,
    NIB_ARENA_OPTIMIZER,
    NIB_ARENA_ACTIVATIONS,
    NIB_ARENAS
};

struct nib_model {
    nib_ops *ops;
    nib_model_options options;
    nib_model_config config;
    nib_weight_source source; /* open until the weights are loaded; with stream_layers until the model is closed */
    nib_lora_config *lora;    /* NULL: no adapter */
    nib_arena arena[NIB_ARENAS];
    nib_memory_class memory[NIB_ARENAS + 1];
    nib_pool pool; /* names and layers */

    nib_matrix embedding, head;      /* [V, C]; the same memory if tied */
    float *dembedding, *dhead;       /* fp32 [V, C], full fine-tuning only */
    float *final_norm, *dfinal_norm; /* [C] */
    nib_token_rows token_rows;
    float *frequency;  /* [HD / 2] */
    float *nested_map; /* [256] bitsandbytes' dynamic map */
    nib_layer *layers;
    int64_t streamed; /* with stream_layers: the layer whose weights lie where all layers' do; -1: none */
    nib_base_shards shards;

    nib_parameter *parameters;
    size_t parameter_count, parameter_capacity;
    int64_t parameter_elements, held_elements; /* of all; of the rows whose optimizer state is here */
    float *gradients;                          /* [parameter_elements] */
    float *masters;                            /* [held_elements] */
    float *moment_maps;                        /* [2][256] of moments of 8 bits */
    nib_clip *clip;
    nib_adamw_factors *factors; /* [2] */

    nib_activations activations;
    nib_recordings recordings; /* of training's steps */
    nib_gradient_watch watch;  /* of the step that is made */
    char base_hash[65];
};

nib_module nib_model_module(const nib_model_config *config, int index);
nib_linear_part *nib_layer_part(nib_layer *layer, const nib_module *module);
/* "model.layers.3.self_attn.q_proj", in name. */
void nib_module_name(char name[128], int64_t layer, const nib_module *module);

/* layout.c: places weights, parameters and activations in the arenas (or counts them). */
nib_status nib_model_layout(nib_model *model);
nib_status nib_model_layout_activations(nib_model *model, int64_t T, int64_t N, nib_recompute recompute, bool backward);
/* base_shards.c. place: parts and windows for records as long as were placed so far (again once arenas have blocks).
 * piece_of: of the bytes at `to` among layer l's NF4 weights. use_layer: what is asked of the ops from now on finds the
 * weights of layer l; those of layer `ahead`, the next to be used (there may be none), begin to come. settle: nothing
 * is on its way any more. */
nib_status nib_base_place(nib_model *model);
nib_base_piece nib_base_piece_of(const nib_model *model, int64_t l, const void *to, size_t bytes);
nib_status nib_base_use_layer(nib_model *model, int64_t l, int64_t ahead);
nib_status nib_base_settle(nib_model *model);
/* load.c: reads the base weights into place; those of a layer that is streamed when it is used. */
nib_status nib_model_load(nib_model *model);
nib_status nib_model_load_streamed(nib_model *model, int64_t l);
/* adapter.c: initial values of the adapter: A uniform and B zero, or a folder's. */
nib_status nib_adapter_initialize(nib_model *model);
nib_status nib_adapter_load(nib_model *model, const char *folder);

/* token_rows.c. find: which rows, from the adapter's configuration. initialize: the table of tokens and, in a fresh
 * adapter, the rows' first values, which are the embedding's own. refresh: the rows' values into the embedding. of:
 * the row of each of the batch's tokens, host [tokens]; -1: none. The gradients: of a tied head once the loss is found,
 * of the embedding once dx is that of its output. */
nib_status nib_token_rows_find(nib_model *model);
nib_status nib_token_rows_initialize(nib_model *model, bool fresh);
nib_status nib_token_rows_refresh(nib_model *model);
void nib_token_rows_of(const nib_model *model, const nib_micro_batch *batch, int64_t tokens, int32_t *row);
nib_status nib_token_rows_backward_head(nib_model *model, nib_targets targets, float gradient_scale);
nib_status nib_token_rows_backward(nib_model *model);

/* dora.c. initialize: a fresh adapter's magnitudes, which are the
 * norms of the base's rows, so that it changes nothing yet. refresh: norms and gains. */
nib_status nib_dora_initialize(nib_model *model);
nib_status nib_dora_refresh(nib_model *model);

/* forward.c. A size as it is trained with, filled up to a multiple of ops->shape_step. */
int64_t nib_forward_filled(const nib_model *model, int64_t size);
/* The most that a micro-batch takes, in elements of 4 bytes. */
int64_t nib_forward_batch_elements(const nib_model *model, int64_t T, int64_t N);
/* Uploads the batch for inference. */
nib_status nib_forward_upload(nib_model *model, const nib_micro_batch *batch);
/* Uploads it for a training step: filled up with tokens that see only themselves and targets of weight 0, weights times
 * the gradient's scale, with the keys of its dropout. */
nib_status nib_forward_upload_filled(nib_model *model, const nib_micro_batch *batch, nib_step_options options);
/* Computes the residual stream of what was uploaded, up to layer[layers].residual and, in normed, its norm. */
nib_status nib_forward(nib_model *model);
/* Parts of a layer that backward computes again. delta: what is still to be added to the residual, or NULL. */
nib_status nib_forward_attention(nib_model *model, int64_t l, nib_tree tree, const nib_matrix *delta);
nib_status nib_forward_gate_up(nib_model *model, int64_t l, const nib_matrix *delta);
/* A layer's queries, keys and values as attention takes them, rotated. With qk_norm the queries and keys lie in
 * activations.qk, which all layers share, so backward makes them again. */
typedef struct {
    nib_matrix q, k, v;
} nib_heads;
nib_heads nib_forward_heads_of(const nib_model *model, int64_t l);
/* Makes them from the layer's qkv. */
nib_status nib_forward_heads(nib_model *model, int64_t l);
/* A matrix with the room behind its rows. */
nib_matrix nib_forward_with_room(const nib_model *model, nib_matrix matrix);
nib_tree nib_forward_tree(const nib_model *model);
nib_targets nib_forward_targets(const nib_model *model);
nib_attention_shape nib_forward_attention_shape(const nib_model *model);
/* linear: 0 qkv, 1 output, 2 gate_up, 3 down. */
nib_dropout nib_forward_dropout(const nib_model *model, int64_t l, int linear);

#endif
