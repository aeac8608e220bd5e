#include "model/config.h"
#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_CONFIG_BYTES ((size_t)16 * 1024 * 1024)
#define LIMIT            ((int64_t)1 << 24) /* no dimension of a real model is larger */

/* Architectures that this forward pass computes, by the name that config.json and GGUF give them. */
typedef struct {
    const char *name, *architecture;
    bool attention_bias; /* on q, k and v, whatever the file says */
    bool qk_norm;
    bool window_optional; /* "sliding_window" counts only where "use_sliding_window" is set */
    bool gguf_interleaves;
} family_rule;
static const family_rule families[] = {
    {"llama", "LlamaForCausalLM", false, false, false, true},
    {"mistral", "MistralForCausalLM", false, false, false, true},
    {"qwen2", "Qwen2ForCausalLM", true, false, true, false},
    {"qwen3", "Qwen3ForCausalLM", false, true, true, false},
};

static const family_rule *find_family(const char *name)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (name != NULL && strcmp(name, families[i].name) == 0) return &families[i];
    return NULL;
}

bool nib_model_config_gguf_interleaves(const nib_model_config *config)
{
    return find_family(config->family)->gguf_interleaves;
}

static nib_status read_family(const char *path, const char *name, nib_model_config *config)
{
    const family_rule *family = find_family(name);
    if (family == NULL)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: model type \"%s\" is not supported; expected llama, mistral, qwen2 or qwen3", path,
                        name == NULL ? "(none)" : name);
    snprintf(config->family, sizeof config->family, "%s", family->name);
    config->attention_bias = family->attention_bias;
    config->qk_norm = family->qk_norm;
    return NIB_OK;
}

/* Relations that the forward pass relies on. */
static nib_status check_sizes(const char *path, const nib_model_config *c)
{
    if (c->heads % c->kv_heads != 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: %lld attention heads are no multiple of %lld key/value heads", path,
                        (long long)c->heads, (long long)c->kv_heads);
    if (c->head_dim % 2 != 0 || c->head_dim > NIB_MAX_HEAD_DIM)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: head_dim is %lld, expected an even number up to %d", path,
                        (long long)c->head_dim, NIB_MAX_HEAD_DIM);
    if (!(c->norm_epsilon > 0) || !(c->rope_theta > 0) || !(c->rope_factor > 0))
        return NIB_FAIL(NIB_ERROR_DATA, "%s: norm epsilon %g, rope theta %g and factor %g must be positive", path,
                        (double)c->norm_epsilon, c->rope_theta, c->rope_factor);
    return NIB_OK;
}

/* YaRN: pairs that turn more than beta_fast times over the original positions keep their frequency, those that turn
 * less than beta_slow times are divided by factor, those between interpolated; attention is tempered. */
static nib_status read_yarn(const char *path, const nib_json *scaling, nib_model_config *c)
{
    double scale, scale_all;
    bool truncate;
    c->rope = NIB_ROPE_YARN;
    NIB_TRY(nib_json_read_bool(path, scaling, "truncate", true, &truncate));
    if (!truncate || !(c->rope_theta > 1))
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: yarn needs \"truncate\" true and a rope_theta above 1, which is %g",
                        path, scaling->line, c->rope_theta);
    NIB_TRY(nib_json_read_double(path, scaling, "beta_fast", 32.0, &c->rope_high_frequency));
    NIB_TRY(nib_json_read_double(path, scaling, "beta_slow", 1.0, &c->rope_low_frequency));
    NIB_TRY(nib_json_read_int(path, scaling, "original_max_position_embeddings", 1, LIMIT, c->max_positions,
                              &c->rope_original_positions));
    NIB_TRY(nib_json_read_double(path, scaling, "mscale", 0.0, &scale));
    NIB_TRY(nib_json_read_double(path, scaling, "mscale_all_dim", 0.0, &scale_all));
    if (scale == 0 || scale_all == 0) scale = 1, scale_all = 0;
    const double length = c->rope_factor > 1 ? 0.1 * log(c->rope_factor) : 0;
    NIB_TRY(nib_json_read_double(path, scaling, "attention_factor", (scale * length + 1) / (scale_all * length + 1),
                                 &c->rope_attention));
    if (!(c->rope_high_frequency > c->rope_low_frequency) || !(c->rope_low_frequency > 0) || !(c->rope_attention > 0))
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s:%u: beta_slow %g must be positive and below beta_fast %g, attention_factor %g positive",
                        path, scaling->line, c->rope_low_frequency, c->rope_high_frequency, c->rope_attention);
    return NIB_OK;
}

static nib_status read_rope(const char *path, const nib_json *root, nib_model_config *c)
{
    /* Before 2025: rope_theta and rope_scaling; since then both in rope_parameters. */
    const nib_json *scaling = nib_json_get(root, "rope_parameters");
    const char *kind, *old_kind;
    c->rope_factor = c->rope_attention = 1.0;
    NIB_TRY(nib_json_read_double(path, root, "rope_theta", 10000.0, &c->rope_theta));
    if (!nib_json_is(scaling, NIB_JSON_OBJECT)) scaling = nib_json_get(root, "rope_scaling");
    if (!nib_json_is(scaling, NIB_JSON_OBJECT)) return NIB_OK;
    NIB_TRY(nib_json_read_double(path, scaling, "rope_theta", c->rope_theta, &c->rope_theta));
    NIB_TRY(nib_json_read_string(path, scaling, "type", "default", &old_kind));
    NIB_TRY(nib_json_read_string(path, scaling, "rope_type", old_kind, &kind));
    if (strcmp(kind, "default") == 0) return NIB_OK;
    NIB_TRY(nib_json_read_double(path, scaling, "factor", 1.0, &c->rope_factor));
    if (strcmp(kind, "linear") == 0) {
        c->rope = NIB_ROPE_LINEAR;
        return NIB_OK;
    }
    if (strcmp(kind, "yarn") == 0) return read_yarn(path, scaling, c);
    if (strcmp(kind, "llama3") != 0)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s:%u: rope type \"%s\" is not supported; expected default, linear, llama3 or yarn", path,
                        scaling->line, kind);
    c->rope = NIB_ROPE_LLAMA3;
    NIB_TRY(nib_json_read_double(path, scaling, "low_freq_factor", 1.0, &c->rope_low_frequency));
    NIB_TRY(nib_json_read_double(path, scaling, "high_freq_factor", 4.0, &c->rope_high_frequency));
    NIB_TRY(nib_json_read_int(path, scaling, "original_max_position_embeddings", 1, LIMIT, 8192,
                              &c->rope_original_positions));
    if (!(c->rope_high_frequency > c->rope_low_frequency) || !(c->rope_low_frequency > 0))
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: low_freq_factor %g must be positive and below high_freq_factor %g",
                        path, scaling->line, c->rope_low_frequency, c->rope_high_frequency);
    return NIB_OK;
}

/* One id or an array of ids. */
static nib_status read_eos(const char *path, const nib_json *root, nib_model_config *c)
{
    const nib_json *eos = nib_json_get(root, "eos_token_id");
    const nib_json *item = nib_json_is(eos, NIB_JSON_ARRAY) ? eos->first : eos;
    for (; item != NULL && c->eos_count < 8; item = nib_json_is(eos, NIB_JSON_ARRAY) ? item->next : NULL) {
        if (item->kind == NIB_JSON_NULL) continue;
        if (!item->is_integer || item->integer < 0 || item->integer >= c->vocabulary)
            return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: eos_token_id must be a token id below %lld", path, item->line,
                            (long long)c->vocabulary);
        c->eos[c->eos_count++] = (int32_t)item->integer;
    }
    return NIB_OK;
}

static nib_status read_window(const char *path, const nib_json *root, nib_model_config *c)
{
    bool used;
    int64_t full_layers;
    NIB_TRY(nib_json_read_bool(path, root, "use_sliding_window", !find_family(c->family)->window_optional, &used));
    if (!used) return NIB_OK;
    NIB_TRY(nib_json_read_int(path, root, "sliding_window", 1, INT32_MAX, 0, &c->window));
    if (c->window >= c->max_positions) c->window = 0;
    NIB_TRY(nib_json_read_int(path, root, "max_window_layers", 0, LIMIT, 0, &full_layers));
    if (c->window > 0 && find_family(c->family)->window_optional && full_layers > 0)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: a sliding window in some layers alone (max_window_layers %lld) is not supported", path,
                        (long long)full_layers);
    return NIB_OK;
}

static nib_status read_json(const char *path, const nib_json *root, nib_model_config *c)
{
    const char *family, *activation;
    int64_t bos;
    NIB_TRY(nib_json_read_string(path, root, "model_type", NULL, &family));
    NIB_TRY(read_family(path, family, c));
    const struct {
        const char *key;
        int64_t fallback, *out;
    } sizes[] = {{"vocab_size", 0, &c->vocabulary},          {"hidden_size", 0, &c->hidden},
                 {"num_hidden_layers", 0, &c->layers},       {"num_attention_heads", 0, &c->heads},
                 {"intermediate_size", 0, &c->feed_forward}, {"max_position_embeddings", 2048, &c->max_positions}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        NIB_TRY(nib_json_read_int(path, root, sizes[i].key, 1, LIMIT, sizes[i].fallback, sizes[i].out));
        if (*sizes[i].out == 0) return NIB_FAIL(NIB_ERROR_DATA, "%s: \"%s\" is missing", path, sizes[i].key);
    }
    NIB_TRY(nib_json_read_int(path, root, "num_key_value_heads", 1, LIMIT, c->heads, &c->kv_heads));
    NIB_TRY(nib_json_read_int(path, root, "head_dim", 1, LIMIT, c->hidden / c->heads, &c->head_dim));
    double epsilon;
    NIB_TRY(nib_json_read_double(path, root, "rms_norm_eps", 1e-6, &epsilon));
    c->norm_epsilon = (float)epsilon;
    NIB_TRY(nib_json_read_string(path, root, "hidden_act", "silu", &activation));
    if (strcmp(activation, "silu") != 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: hidden_act \"%s\" is not supported; expected silu", path, activation);
    if (!c->attention_bias) {
        NIB_TRY(nib_json_read_bool(path, root, "attention_bias", false, &c->attention_bias));
        c->output_bias = c->attention_bias;
    }
    NIB_TRY(nib_json_read_bool(path, root, "mlp_bias", false, &c->mlp_bias));
    NIB_TRY(nib_json_read_bool(path, root, "tie_word_embeddings", false, &c->tied_head));
    NIB_TRY(read_window(path, root, c));
    NIB_TRY(nib_json_read_int(path, root, "bos_token_id", 0, c->vocabulary - 1, -1, &bos));
    c->bos = (int32_t)bos;
    NIB_TRY(read_eos(path, root, c));
    NIB_TRY(read_rope(path, root, c));
    return check_sizes(path, c);
}

nib_status nib_model_config_read(const char *folder, nib_model_config *config)
{
    nib_status status = NIB_OK;
    nib_pool pool = {0};
    nib_json *root;
    char *text = NULL, *path = nib_path_join(folder, "config.json");
    size_t length;
    *config = (nib_model_config){.bos = -1, .activation = NIB_ACTIVATION_SILU};
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a file name", folder);
    NIB_TRY_GOTO(nib_file_read(path, MAX_CONFIG_BYTES, &text, &length), done);
    NIB_TRY_GOTO(nib_json_parse(path, text, length, (nib_json_options){0}, &pool, &root), done);
    status = read_json(path, root, config);
done:
    nib_pool_free(&pool);
    nib_free(text);
    nib_free(path);
    return status;
}

static nib_status gguf_size(const char *path, const nib_gguf *gguf, const char *family, const char *name,
                            int64_t fallback, int64_t *out)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", family, name);
    if (!nib_gguf_int(gguf, key, out)) *out = fallback;
    if (*out < 1 || *out > LIMIT)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: metadata %s is %lld, expected 1 to %lld", path, key, (long long)*out,
                        (long long)LIMIT);
    return NIB_OK;
}

nib_status nib_model_config_from_gguf(const char *path, const nib_gguf *gguf, nib_model_config *c)
{
    const char *family = nib_gguf_text(gguf, "general.architecture");
    char key[128];
    double value;
    int64_t id;
    nib_gguf_type type;
    uint64_t tokens = 0;
    *c = (nib_model_config){
        .bos = -1, .activation = NIB_ACTIVATION_SILU, .rope_factor = 1.0, .rope_attention = 1.0, .rope_theta = 10000.0};
    NIB_TRY(read_family(path, family, c));
    nib_gguf_array(gguf, "tokenizer.ggml.tokens", &type, &tokens);
    NIB_TRY(gguf_size(path, gguf, family, "vocab_size", (int64_t)tokens, &c->vocabulary));
    NIB_TRY(gguf_size(path, gguf, family, "embedding_length", 0, &c->hidden));
    NIB_TRY(gguf_size(path, gguf, family, "block_count", 0, &c->layers));
    NIB_TRY(gguf_size(path, gguf, family, "attention.head_count", 0, &c->heads));
    NIB_TRY(gguf_size(path, gguf, family, "attention.head_count_kv", c->heads, &c->kv_heads));
    NIB_TRY(gguf_size(path, gguf, family, "attention.key_length", c->hidden / c->heads, &c->head_dim));
    NIB_TRY(gguf_size(path, gguf, family, "feed_forward_length", 0, &c->feed_forward));
    NIB_TRY(gguf_size(path, gguf, family, "context_length", 2048, &c->max_positions));
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", family);
    c->norm_epsilon = nib_gguf_double(gguf, key, &value) ? (float)value : 1e-5f;
    snprintf(key, sizeof key, "%s.rope.freq_base", family);
    if (nib_gguf_double(gguf, key, &value)) c->rope_theta = value;
    snprintf(key, sizeof key, "%s.rope.scaling.type", family);
    const char *scaling = nib_gguf_text(gguf, key);
    if (scaling != NULL && strcmp(scaling, "none") != 0) {
        if (strcmp(scaling, "linear") != 0)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: rope scaling \"%s\" is not supported in a GGUF; expected linear", path,
                            scaling);
        c->rope = NIB_ROPE_LINEAR;
        snprintf(key, sizeof key, "%s.rope.scaling.factor", family);
        if (nib_gguf_double(gguf, key, &value)) c->rope_factor = value;
    }
    if (nib_gguf_int(gguf, "tokenizer.ggml.bos_token_id", &id) && id >= 0 && id < c->vocabulary) c->bos = (int32_t)id;
    if (nib_gguf_int(gguf, "tokenizer.ggml.eos_token_id", &id) && id >= 0 && id < c->vocabulary)
        c->eos[c->eos_count++] = (int32_t)id;
    return check_sizes(path, c);
}

static void write_rope(const nib_model_config *c, nib_buffer *json)
{
    static const char *const kinds[] = {"default", "linear", "llama3", "yarn"};
    nib_buffer_format(json, "  \"rope_parameters\": {\n    \"rope_type\": \"%s\",\n", kinds[c->rope]);
    if (c->rope != NIB_ROPE_DEFAULT) nib_buffer_format(json, "    \"factor\": %.17g,\n", c->rope_factor);
    if (c->rope == NIB_ROPE_LLAMA3)
        nib_buffer_format(json,
                          "    \"low_freq_factor\": %.17g,\n    \"high_freq_factor\": %.17g,\n"
                          "    \"original_max_position_embeddings\": %lld,\n",
                          c->rope_low_frequency, c->rope_high_frequency, (long long)c->rope_original_positions);
    if (c->rope == NIB_ROPE_YARN)
        nib_buffer_format(json,
                          "    \"beta_slow\": %.17g,\n    \"beta_fast\": %.17g,\n    \"attention_factor\": %.17g,\n"
                          "    \"original_max_position_embeddings\": %lld,\n",
                          c->rope_low_frequency, c->rope_high_frequency, c->rope_attention,
                          (long long)c->rope_original_positions);
    nib_buffer_format(json, "    \"rope_theta\": %.17g\n  },\n", c->rope_theta);
}

nib_status nib_model_config_write(const nib_model_config *c, bool nf4, nib_buffer *json)
{
    const family_rule *family = find_family(c->family);
    nib_buffer_format(json, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n", family->architecture,
                      family->name);
    nib_buffer_format(json, "  \"attention_bias\": %s,\n  \"mlp_bias\": %s,\n  \"tie_word_embeddings\": %s,\n",
                      c->output_bias ? "true" : "false", c->mlp_bias ? "true" : "false",
                      c->tied_head ? "true" : "false");
    nib_buffer_format(json, "  \"vocab_size\": %lld,\n  \"hidden_size\": %lld,\n  \"num_hidden_layers\": %lld,\n",
                      (long long)c->vocabulary, (long long)c->hidden, (long long)c->layers);
    nib_buffer_format(json,
                      "  \"num_attention_heads\": %lld,\n  \"num_key_value_heads\": %lld,\n  \"head_dim\": %lld,\n",
                      (long long)c->heads, (long long)c->kv_heads, (long long)c->head_dim);
    nib_buffer_format(json, "  \"intermediate_size\": %lld,\n  \"max_position_embeddings\": %lld,\n",
                      (long long)c->feed_forward, (long long)c->max_positions);
    nib_buffer_format(json, "  \"hidden_act\": \"silu\",\n  \"rms_norm_eps\": %.9g,\n", (double)c->norm_epsilon);
    nib_buffer_format(json, c->window > 0 ? "  \"sliding_window\": %lld,\n" : "  \"sliding_window\": null,\n",
                      (long long)c->window);
    if (family->window_optional)
        nib_buffer_text(json, c->window > 0 ? "  \"use_sliding_window\": true,\n  \"max_window_layers\": 0,\n"
                                            : "  \"use_sliding_window\": false,\n");
    write_rope(c, json);
    if (c->bos >= 0) nib_buffer_format(json, "  \"bos_token_id\": %d,\n", c->bos);
    for (int i = 0; i < c->eos_count; i++)
        nib_buffer_format(json, i > 0 ? ", %d" : "  \"eos_token_id\": [%d", c->eos[i]);
    if (c->eos_count > 0) nib_buffer_text(json, "],\n");
    if (nf4)
        nib_buffer_text(json, "  \"quantization_config\": {\n    \"quant_method\": \"bitsandbytes\",\n"
                              "    \"load_in_4bit\": true,\n    \"load_in_8bit\": false,\n"
                              "    \"bnb_4bit_quant_type\": \"nf4\",\n    \"bnb_4bit_use_double_quant\": true,\n"
                              "    \"bnb_4bit_compute_dtype\": \"bfloat16\",\n"
                              "    \"bnb_4bit_quant_storage\": \"uint8\"\n  },\n");
    nib_buffer_text(json, "  \"dtype\": \"bfloat16\"\n}\n");
    return json->failed ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory for config.json") : NIB_OK;
}

/* Llama 3.1: long wavelengths are divided by factor, short ones kept, those between interpolated. */
static double llama3_frequency(const nib_model_config *c, double frequency)
{
    double wavelength = 2 * M_PI / frequency, original = (double)c->rope_original_positions;
    if (wavelength > original / c->rope_low_frequency) return frequency / c->rope_factor;
    if (wavelength < original / c->rope_high_frequency) return frequency;
    double smooth = (original / wavelength - c->rope_low_frequency) / (c->rope_high_frequency - c->rope_low_frequency);
    return (1 - smooth) * frequency / c->rope_factor + smooth * frequency;
}

/* The pair that turns so many times over the original positions. */
static double yarn_pair(const nib_model_config *c, double turns)
{
    double original = (double)c->rope_original_positions;
    return (double)c->head_dim * log(original / (turns * 2 * M_PI)) / (2 * log(c->rope_theta));
}

static double yarn_frequency(const nib_model_config *c, int64_t pair, double frequency)
{
    double first = fmax(floor(yarn_pair(c, c->rope_high_frequency)), 0);
    double last = fmin(ceil(yarn_pair(c, c->rope_low_frequency)), (double)(c->head_dim - 1));
    if (last == first) last += 0.001;
    double divided = fmin(fmax(((double)pair - first) / (last - first), 0), 1);
    return (1 - divided) * frequency + divided * frequency / c->rope_factor;
}

void nib_rope_frequencies(const nib_model_config *c, float *frequency)
{
    for (int64_t i = 0; i < c->head_dim / 2; i++) {
        double value = (double)(1.0f / powf((float)c->rope_theta, (float)(2 * i) / (float)c->head_dim));
        if (c->rope == NIB_ROPE_LINEAR) value /= c->rope_factor;
        if (c->rope == NIB_ROPE_LLAMA3) value = llama3_frequency(c, value);
        if (c->rope == NIB_ROPE_YARN) value = yarn_frequency(c, i, value);
        frequency[i] = (float)value;
    }
}

int64_t nib_model_token_keys(const nib_model_config *c)
{
    int64_t attention = c->heads * c->head_dim; /* multiplications of a query with a key, and with its value, each */
    int64_t weights =
        2 * c->hidden * attention + 2 * c->hidden * c->kv_heads * c->head_dim + 3 * c->hidden * c->feed_forward;
    int64_t keys = 2 * weights / (7 * attention);
    return keys < 1 ? 1 : keys;
}
