/* A run's configuration: one JSON file, read by a table with one row a key, so that defaults, ranges, the resolved copy
 * in the run folder and the list printed at the start cannot disagree. */
#ifndef NIB_RUNTIME_CONFIG_H
#define NIB_RUNTIME_CONFIG_H

#include "base/buffer.h"
#include "data/dataset.h"
#include "device.h"
#include "model/model.h"
#include "optim/schedule.h"

#define NIB_CONFIG_UNSET (-1) /* of an integer that the file leaves null */

typedef struct {
    nib_data_source *source; /* [count] */
    int count;
} nib_source_list;

typedef struct {
    const char **name; /* [count] */
    int count;
    bool all_linear;
} nib_target_list;

/* Rows of the embedding that are trained with the adapter: tokens by id or text, or all of the data that look
 * untrained. Which ids they are is found when the data is open (token_choice.h). */
typedef struct {
    const char *text; /* NULL: the id */
    int32_t id;
} nib_token_item;

typedef struct {
    bool untrained;
    nib_token_item *item; /* [count] */
    int count;
    int32_t *id; /* [ids] */
    int64_t ids;
} nib_token_choice;

/* Strings live in the config; paths are absolute. */
typedef struct {
    const char *model, *tokenizer, *output; /* tokenizer NULL: the model's */
    int device;                             /* nib_device */
    int quantization;                       /* nib_quantization */
    bool has_lora;                          /* false: "lora": null, a full fine-tune */
    struct {
        int64_t r;
        double alpha, dropout;
        nib_target_list targets;
        bool rslora, dora;
        nib_token_choice tokens;
        const char *init_adapter;
    } lora;
    struct {
        nib_source_list train, eval;
        int64_t max_length;
        int over_long; /* nib_over_long */
        bool shuffle, pack, share_prefixes;
        int train_on; /* 0: assistant, 1: all */
        const char *chat_template;
    } data;
    struct {
        double epochs;
        int64_t max_steps, batch_size, micro_batch_tokens, slots, warmup_steps, seed;
        double learning_rate, warmup_ratio, weight_decay, beta1, beta2, epsilon, max_grad_norm;
        int scheduler; /* nib_scheduler */
        int optimizer; /* 0: adamw, 1: adamw_8bit */
        int compute;   /* 0: bf16, 1: fp32, 2: fp8 */
    } train;
    struct {
        int64_t every_steps, patience, generate;
    } evaluate;
    struct {
        int64_t every_steps, keep;
    } checkpoint;
    struct {
        bool shard_base, shard_optimizer;
    } parallel;
    nib_pool pool; /* holds every string and list above */
} nib_config;

/* Reads the file, then applies `count` overrides "a.b=value" (value: JSON, or else a string). Relative paths are those
 * of the config file's folder, ~/ is the home folder. NIB_ERROR_CONFIG names file and line: not JSON, an unknown key
 * (and the nearest valid one, or what another engine's name is called here), a duplicate, a wrong type, a value out of
 * range, a missing "model", "output" or "data.train". *config is zeroed on failure. */
nib_status nib_config_read(const char *path, const char *const *overrides, int count, nib_config *config);
void nib_config_free(nib_config *config);

/* The resolved configuration as JSON text, every key present. */
nib_status nib_config_write(const nib_config *config, nib_buffer *text);
/* Logs one line a section with its values. */
void nib_config_log(const nib_config *config);
/* Appends "key: was X, now Y" lines for keys that a resumed run may not change (all but device, output,
 * checkpoint.* and parallel.*; and the folders that files lie in). */
void nib_config_differences(const nib_config *was, const nib_config *now, nib_buffer *lines);

nib_lora_options nib_config_lora(const nib_config *config);
nib_model_options nib_config_model(const nib_config *config, bool train);

#endif
