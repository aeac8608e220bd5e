/* What a model is: the fields of a Hugging Face config.json, or of a GGUF's metadata, that the forward pass reads. A
 * family is a setting of these fields, never a copy of the forward pass. */
#ifndef NIB_MODEL_CONFIG_H
#define NIB_MODEL_CONFIG_H

#include "base/buffer.h"
#include "formats/gguf.h"
#include "model/ops.h"

#define NIB_MAX_HEAD_DIM 256 /* checked by the readers */

typedef enum { NIB_ROPE_DEFAULT, NIB_ROPE_LINEAR, NIB_ROPE_LLAMA3, NIB_ROPE_YARN } nib_rope_kind;

typedef struct {
    char family[32]; /* "llama", "mistral", "qwen2", "qwen3" */
    int64_t vocabulary, hidden, layers, heads, kv_heads, head_dim, feed_forward;
    int64_t max_positions;
    float norm_epsilon;
    nib_activation activation;
    bool attention_bias, output_bias, mlp_bias; /* q, k, v; o; gate, up, down */
    bool qk_norm;                               /* queries and keys are normed by heads before they are rotated */
    bool tied_head;
    int64_t window; /* of attention; 0: none */
    nib_rope_kind rope;
    nib_rotary_layout rotary_layout;
    double rope_theta, rope_factor;
    double rope_low_frequency, rope_high_frequency; /* llama3: in turns over the original positions; yarn: beta_slow,
                                                       beta_fast, likewise */
    double rope_attention;                          /* yarn: what cosines and sines are multiplied by; else 1 */
    int64_t rope_original_positions;
    int32_t bos, eos[8]; /* -1: none; eos: end of text and of turn */
    int eos_count;
} nib_model_config;

/* From FOLDER/config.json (old rope_theta + rope_scaling or new rope_parameters), or a GGUF's metadata. An architecture
 * or a field value that Nibble does not compute is refused (NIB_ERROR_DATA), never ignored. */
nib_status nib_model_config_read(const char *path, nib_model_config *config);
nib_status nib_model_config_from_gguf(const char *path, const nib_gguf *gguf, nib_model_config *config);
/* Whether a GGUF of the family holds the rows of a head's halves in turn, as llama.cpp converts Llama and Mistral. */
bool nib_model_config_gguf_interleaves(const nib_model_config *config);
/* config.json as transformers reads it; nf4: with the quantization_config of bitsandbytes (double quantised). */
nib_status nib_model_config_write(const nib_model_config *config, bool nf4, nib_buffer *json);
/* How many keys of attention cost as much as all linear layers of a token, in a LoRA step: two products of each weight
 * against the three and a half of each key (forward; gradients of queries, keys, values and, again, the scores). For
 * the balance of packs alone: it is right to a factor, whatever the machine. */
int64_t nib_model_token_keys(const nib_model_config *config);
/* fp32 [head_dim / 2], with the scaling of the family (Llama 3: "rope_type": "llama3"; Peng et al., "YaRN: Efficient
 * Context Window Extension of Large Language Models", 2023). */
void nib_rope_frequencies(const nib_model_config *config, float *frequency);

#endif
