/* What a model is: the fields of a Hugging Face config.json, or of a GGUF's metadata, that the forward pass reads. A
 * family is a setting of these fields, never a copy of the forward pass. */
#ifndef NIB_MODEL_CONFIG_H
#define NIB_MODEL_CONFIG_H

#include "base/buffer.h"
#include "formats/gguf.h"
#include "model/ops.h"

#define NIB_MAX_HEAD_DIM 256 /* checked by the readers */

typedef enum { NIB_ROPE_DEFAULT, NIB_ROPE_LINEAR, NIB_ROPE_LLAMA3 } nib_rope_kind;

typedef struct {
    char family[32]; /* "llama", "mistral" */
    int64_t vocabulary, hidden, layers, heads, kv_heads, head_dim, feed_forward;
    int64_t max_positions;
    float norm_epsilon;
    nib_activation activation;
    bool attention_bias, output_bias, mlp_bias; /* q, k, v; o; gate, up, down */
    bool tied_head;
    nib_rope_kind rope;
    nib_rotary_layout rotary_layout;
    double rope_theta, rope_factor, rope_low_frequency, rope_high_frequency;
    int64_t rope_original_positions;
    int32_t bos, eos[8]; /* -1: none; eos: end of text and of turn */
    int eos_count;
} nib_model_config;

/* From FOLDER/config.json (old rope_theta + rope_scaling or new rope_parameters), or a GGUF's metadata. An architecture
 * or a field value that Nibble does not compute is refused (NIB_ERROR_DATA), never ignored. */
nib_status nib_model_config_read(const char *path, nib_model_config *config);
nib_status nib_model_config_from_gguf(const char *path, const nib_gguf *gguf, nib_model_config *config);
/* config.json as transformers reads it; nf4: with the quantization_config of bitsandbytes (double quantised). */
nib_status nib_model_config_write(const nib_model_config *config, bool nf4, nib_buffer *json);
/* How many keys of attention cost as much as all linear layers of a token, in a LoRA step: two products of each weight
 * against the three and a half of each key (forward; gradients of queries, keys, values and, again, the scores). For
 * the balance of packs alone: it is right to a factor, whatever the machine. */
int64_t nib_model_token_keys(const nib_model_config *config);
/* fp32 [head_dim / 2], with the scaling of the family (Llama 3: "rope_type": "llama3"). */
void nib_rope_frequencies(const nib_model_config *config, float *frequency);

#endif
