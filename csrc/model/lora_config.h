/* Which linears carry an adapter, of what rank and scale: the config's "lora" part, or PEFT's adapter_config.json. */
#ifndef NIB_LORA_CONFIG_H
#define NIB_LORA_CONFIG_H

#include "base/buffer.h"
#include "model/model.h"

typedef struct nib_lora_config nib_lora_config;

/* What PEFT's files append to a module's name for DoRA's magnitudes, a vector. */
#define NIB_MAGNITUDE ".lora_magnitude_vector"

nib_status nib_lora_config_from_options(const nib_lora_options *options, nib_lora_config **config);
/* FOLDER/adapter_config.json. What Nibble does not compute (modules_to_save, trained biases, ...) is refused
 * (NIB_ERROR_DATA), never ignored. */
nib_status nib_lora_config_read(const char *folder, nib_lora_config **config);
void nib_lora_config_free(nib_lora_config *config);

/* Rank and scale of the adapter on a module ("model.layers.3.self_attn.q_proj", of layer 3), by PEFT's rules for
 * target_modules, layers_to_transform, rank_pattern and alpha_pattern. *rank 0: no adapter there. */
nib_status nib_lora_config_resolve(const nib_lora_config *config, const char *module, int64_t layer, int64_t *rank,
                                   float *scale);
/* Tokens whose embedding rows belong to the adapter, in the order of its tensor; they live in the config. */
int64_t nib_lora_config_tokens(const nib_lora_config *config, const int32_t **tokens);
/* rank, alpha, rslora and dora, those of modules that no pattern names; the rest is zero. */
nib_lora_options nib_lora_config_scale(const nib_lora_config *config);
bool nib_lora_config_dora(const nib_lora_config *config);
double nib_lora_config_dropout(const nib_lora_config *config);
void nib_lora_config_set_dropout(nib_lora_config *config, double dropout);
/* adapter_config.json as PEFT 0.21 writes it. base_name may be NULL. */
nib_status nib_lora_config_write(const nib_lora_config *config, const char *base_name, nib_buffer *json);

#endif
