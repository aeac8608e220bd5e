/* Rules of PEFT's LoraConfig (huggingface/peft, tuners/lora): which module gets an adapter, of what rank and alpha. */
#include "model/lora_config.h"
#include "base/file.h"
#include "base/json.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <math.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CONFIG_BYTES ((size_t)16 * 1024 * 1024)
#define MAX_RANK         ((int64_t)1 << 20)
#define MATCH_LIMIT      100000 /* steps of a pattern; far above what any module name needs */

typedef struct {
    const char *pattern;
    double value;
} pattern_value;

struct nib_lora_config {
    int64_t rank;
    double alpha, dropout;
    bool rslora, dora;
    const char *target_regex; /* target_modules written as one string, or NULL */
    const char **targets;
    size_t target_count;
    pattern_value *ranks, *alphas;
    size_t rank_count, alpha_count;
    int64_t *layers; /* layers_to_transform */
    size_t layer_count;
    int32_t *tokens; /* trainable_token_indices */
    int64_t token_count;
    nib_pool pool;
};

static const char *const all_linear[] = {"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"};

static nib_status no_memory(const char *path) { return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it", path); }

static int compare_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static nib_status set_targets(nib_lora_config *config, const char *path, const char *const *names, size_t count)
{
    config->targets = nib_pool_alloc(&config->pool, (count + 1) * sizeof *config->targets);
    if (config->targets == NULL) return no_memory(path);
    for (size_t i = 0; i < count; i++) {
        config->targets[i] = nib_pool_copy(&config->pool, names[i], strlen(names[i]));
        if (config->targets[i] == NULL) return no_memory(path);
    }
    config->target_count = count;
    qsort(config->targets, count, sizeof *config->targets, compare_text);
    return NIB_OK;
}

nib_status nib_lora_config_from_options(const nib_lora_options *options, nib_lora_config **out)
{
    *out = NULL;
    nib_lora_config *config = nib_calloc(1, sizeof *config);
    if (config == NULL) return no_memory("lora");
    config->rank = options->rank;
    config->alpha = options->alpha;
    config->dropout = options->dropout;
    config->rslora = options->rslora;
    config->dora = options->dora;
    config->tokens = nib_pool_alloc(&config->pool, (size_t)(options->token_count + 1) * sizeof *config->tokens);
    if (config->tokens == NULL) {
        nib_lora_config_free(config);
        return no_memory("lora");
    }
    for (; config->token_count < options->token_count; config->token_count++)
        config->tokens[config->token_count] = options->tokens[config->token_count];
    nib_status status = options->all_linear
                            ? set_targets(config, "lora", all_linear, sizeof all_linear / sizeof *all_linear)
                            : set_targets(config, "lora", options->targets, (size_t)options->target_count);
    if (status == NIB_OK)
        *out = config;
    else
        nib_lora_config_free(config);
    return status;
}

void nib_lora_config_free(nib_lora_config *config)
{
    if (config == NULL) return;
    nib_pool_free(&config->pool);
    nib_free(config);
}

static bool is_empty(const nib_json *value)
{
    return value == NULL || value->kind == NIB_JSON_NULL || value->kind == NIB_JSON_FALSE ||
           ((value->kind == NIB_JSON_OBJECT || value->kind == NIB_JSON_ARRAY) && value->length == 0);
}

/* Fields that change what is computed and that Nibble does not compute. */
static nib_status refuse_unsupported(const char *path, const nib_json *root)
{
    static const char *const must_be_empty[] = {
        "modules_to_save", "layer_replication", "fan_in_fan_out",          "use_qalora",      "use_bdlora",
        "lora_bias",       "target_parameters", "alora_invocation_tokens", "exclude_modules", "layers_pattern",
        "arrow_config",    "monteclora_config", "velora_config",           "kasa_config"};
    for (size_t i = 0; i < sizeof must_be_empty / sizeof *must_be_empty; i++) {
        const nib_json *value = nib_json_get(root, must_be_empty[i]);
        if (!is_empty(value))
            return NIB_FAIL(
                NIB_ERROR_DATA,
                "%s:%u: \"%s\" is set; Nibble computes LoRA and DoRA only: merge this adapter with PEFT, or "
                "train one without it",
                path, value->key_line, must_be_empty[i]);
    }
    const char *type, *bias;
    NIB_TRY(nib_json_read_string(path, root, "peft_type", "", &type));
    NIB_TRY(nib_json_read_string(path, root, "bias", "none", &bias));
    if (strcmp(type, "LORA") != 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: peft_type is \"%s\", expected \"LORA\"", path, type);
    if (strcmp(bias, "none") != 0) return NIB_FAIL(NIB_ERROR_DATA, "%s: bias is \"%s\", expected \"none\"", path, bias);
    return NIB_OK;
}

static nib_status read_targets(const char *path, const nib_json *root, nib_lora_config *config)
{
    const nib_json *targets = nib_json_get(root, "target_modules");
    if (nib_json_is(targets, NIB_JSON_STRING)) {
        if (strcmp(targets->string, "all-linear") == 0)
            return set_targets(config, path, all_linear, sizeof all_linear / sizeof *all_linear);
        config->target_regex = nib_pool_copy(&config->pool, targets->string, targets->length);
        return config->target_regex == NULL ? no_memory(path) : NIB_OK;
    }
    if (!nib_json_is(targets, NIB_JSON_ARRAY) || targets->length == 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: \"target_modules\" must be a list of names or a string", path);
    const char **names = nib_pool_alloc(&config->pool, targets->length * sizeof *names);
    size_t count = 0;
    if (names == NULL) return no_memory(path);
    for (const nib_json *item = targets->first; item != NULL; item = item->next) {
        if (item->kind != NIB_JSON_STRING)
            return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: target_modules holds %s, expected names", path, item->line,
                            nib_json_kind_name(item->kind));
        names[count++] = item->string;
    }
    return set_targets(config, path, names, count);
}

static nib_status read_patterns(const char *path, const nib_json *root, const char *key, nib_lora_config *config,
                                pattern_value **out, size_t *count)
{
    const nib_json *patterns = nib_json_get(root, key);
    if (is_empty(patterns)) return NIB_OK;
    if (patterns->kind != NIB_JSON_OBJECT)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: \"%s\" must be an object", path, patterns->line, key);
    *out = nib_pool_alloc(&config->pool, patterns->length * sizeof **out);
    if (*out == NULL) return no_memory(path);
    for (const nib_json *item = patterns->first; item != NULL; item = item->next) {
        if (item->kind != NIB_JSON_NUMBER || !(item->number > 0) || item->number > (double)MAX_RANK)
            return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: \"%s\" of \"%s\" must be a positive number", path, item->line, key,
                            item->key);
        const char *pattern = nib_pool_copy(&config->pool, item->key, item->key_length);
        if (pattern == NULL) return no_memory(path);
        (*out)[(*count)++] = (pattern_value){pattern, item->number};
    }
    return NIB_OK;
}

static nib_status read_layers(const char *path, const nib_json *root, nib_lora_config *config)
{
    const nib_json *layers = nib_json_get(root, "layers_to_transform");
    if (layers == NULL || layers->kind == NIB_JSON_NULL) return NIB_OK;
    const nib_json *item = layers->kind == NIB_JSON_ARRAY ? layers->first : layers;
    config->layers = nib_pool_alloc(&config->pool, (layers->length + 1) * sizeof *config->layers);
    if (config->layers == NULL) return no_memory(path);
    for (; item != NULL; item = layers->kind == NIB_JSON_ARRAY ? item->next : NULL) {
        if (!item->is_integer || item->integer < 0)
            return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: layers_to_transform must hold layer numbers", path, item->line);
        config->layers[config->layer_count++] = item->integer;
    }
    return NIB_OK;
}

/* A list of tokens, which is the embedding's, or an object with the lists of modules, of which the embedding may be
 * one.
 */
static nib_status read_tokens(const char *path, const nib_json *root, nib_lora_config *config)
{
    const nib_json *tokens = nib_json_get(root, "trainable_token_indices");
    if (is_empty(tokens)) return NIB_OK;
    if (tokens->kind == NIB_JSON_OBJECT) {
        for (const nib_json *item = tokens->first; item != NULL; item = item->next)
            if (strcmp(item->key, "embed_tokens") != 0)
                return NIB_FAIL(
                    NIB_ERROR_DATA,
                    "%s:%u: \"trainable_token_indices\" has rows of \"%s\", expected of \"embed_tokens\" alone", path,
                    item->key_line, item->key);
        tokens = tokens->first;
    }
    if (tokens->kind != NIB_JSON_ARRAY)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: \"trainable_token_indices\" must be a list of tokens", path,
                        tokens->line);
    config->tokens = nib_pool_alloc(&config->pool, (tokens->length + 1) * sizeof *config->tokens);
    if (config->tokens == NULL) return no_memory(path);
    for (const nib_json *item = tokens->first; item != NULL; item = item->next) {
        if (!item->is_integer || item->integer < 0 || item->integer > INT32_MAX)
            return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: trainable_token_indices must hold token ids", path, item->line);
        config->tokens[config->token_count++] = (int32_t)item->integer;
    }
    return NIB_OK;
}

static nib_status read_config(const char *path, const nib_json *root, nib_lora_config *config)
{
    NIB_TRY(refuse_unsupported(path, root));
    NIB_TRY(nib_json_read_int(path, root, "r", 1, MAX_RANK, 8, &config->rank));
    NIB_TRY(nib_json_read_double(path, root, "lora_alpha", 8, &config->alpha));
    NIB_TRY(nib_json_read_double(path, root, "lora_dropout", 0, &config->dropout));
    NIB_TRY(nib_json_read_bool(path, root, "use_rslora", false, &config->rslora));
    NIB_TRY(nib_json_read_bool(path, root, "use_dora", false, &config->dora));
    NIB_TRY(read_targets(path, root, config));
    NIB_TRY(read_tokens(path, root, config));
    NIB_TRY(read_patterns(path, root, "rank_pattern", config, &config->ranks, &config->rank_count));
    NIB_TRY(read_patterns(path, root, "alpha_pattern", config, &config->alphas, &config->alpha_count));
    return read_layers(path, root, config);
}

nib_status nib_lora_config_read(const char *folder, nib_lora_config **out)
{
    *out = NULL;
    nib_status status;
    nib_pool pool = {0};
    nib_json *root;
    char *text = NULL, *path = nib_path_join(folder, "adapter_config.json");
    size_t length;
    nib_lora_config *config = nib_calloc(1, sizeof *config);
    if (path == NULL || config == NULL) {
        status = no_memory(folder);
        goto done;
    }
    if (nib_file_exists(folder) && !nib_file_exists(path)) {
        status = NIB_FAIL(NIB_ERROR_DATA,
                          "%s: found %s, expected the folder of a PEFT adapter; of a run it is the run's adapter/",
                          folder, nib_file_is_folder(folder) ? "a folder without adapter_config.json" : "a file");
        goto done;
    }
    NIB_TRY_GOTO(nib_file_read(path, MAX_CONFIG_BYTES, &text, &length), done);
    NIB_TRY_GOTO(nib_json_parse(path, text, length, (nib_json_options){0}, &pool, &root), done);
    NIB_TRY_GOTO(read_config(path, root, config), done);
    *out = config;
    config = NULL;
done:
    nib_lora_config_free(config);
    nib_pool_free(&pool);
    nib_free(text);
    nib_free(path);
    return status;
}

/* Does the whole of text match before PATTERN after? */
static nib_status full_match(const char *before, const char *pattern, const char *after, const char *text,
                             bool *matches)
{
    nib_buffer whole = {0};
    nib_status status = NIB_OK;
    int error = 0;
    PCRE2_SIZE offset = 0;
    pcre2_match_data *data = NULL;
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    nib_buffer_format(&whole, "^%s%s%s$", before, pattern, after);
    pcre2_code *code =
        whole.failed ? NULL
                     : pcre2_compile((PCRE2_SPTR)whole.data, whole.length,
                                     PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C | PCRE2_DOLLAR_ENDONLY, &error, &offset, NULL);
    *matches = false;
    if (code != NULL) data = pcre2_match_data_create_from_pattern(code, NULL);
    if (code == NULL && !whole.failed) {
        status = NIB_FAIL(NIB_ERROR_DATA, "adapter_config.json: pattern \"%s\" is no regular expression (at %zu)",
                          pattern, (size_t)offset);
        goto done;
    }
    if (data == NULL || context == NULL) {
        status = no_memory("adapter_config.json");
        goto done;
    }
    pcre2_set_match_limit(context, MATCH_LIMIT);
    *matches = pcre2_match(code, (PCRE2_SPTR)text, strlen(text), 0, 0, data, context) >= 0;
done:
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_code_free(code);
    nib_buffer_free(&whole);
    return status;
}

/* The first pattern that matches the module's name or its end after a dot. */
static nib_status find_pattern(const pattern_value *patterns, size_t count, const char *module, double *value)
{
    for (size_t i = 0; i < count; i++) {
        bool matches;
        NIB_TRY(full_match("(?:.*\\.)?(?:", patterns[i].pattern, ")", module, &matches));
        if (!matches) continue;
        *value = patterns[i].value;
        return NIB_OK;
    }
    return NIB_OK;
}

static nib_status is_target(const nib_lora_config *config, const char *module, int64_t layer, bool *target)
{
    *target = false;
    for (size_t i = 0; i < config->layer_count; i++) *target = *target || config->layers[i] == layer;
    if (config->layers != NULL && !*target) return NIB_OK;
    if (config->target_regex != NULL) return full_match("(?:", config->target_regex, ")", module, target);
    *target = false;
    for (size_t i = 0; i < config->target_count; i++) {
        size_t n = strlen(module), m = strlen(config->targets[i]);
        *target = *target ||
                  (n >= m && strcmp(module + n - m, config->targets[i]) == 0 && (n == m || module[n - m - 1] == '.'));
    }
    return NIB_OK;
}

nib_status nib_lora_config_resolve(const nib_lora_config *config, const char *module, int64_t layer, int64_t *rank,
                                   float *scale)
{
    bool target;
    double r = (double)config->rank, alpha = config->alpha;
    *rank = 0;
    *scale = 0;
    NIB_TRY(is_target(config, module, layer, &target));
    if (!target) return NIB_OK;
    NIB_TRY(find_pattern(config->ranks, config->rank_count, module, &r));
    NIB_TRY(find_pattern(config->alphas, config->alpha_count, module, &alpha));
    *rank = (int64_t)r;
    *scale = (float)(alpha / (config->rslora ? sqrt((double)*rank) : (double)*rank));
    return NIB_OK;
}

int64_t nib_lora_config_tokens(const nib_lora_config *config, const int32_t **tokens)
{
    *tokens = config->tokens;
    return config->token_count;
}

nib_lora_options nib_lora_config_scale(const nib_lora_config *config)
{
    return (nib_lora_options){
        .rank = config->rank, .alpha = config->alpha, .rslora = config->rslora, .dora = config->dora};
}

bool nib_lora_config_dora(const nib_lora_config *config) { return config->dora; }
double nib_lora_config_dropout(const nib_lora_config *config) { return config->dropout; }
void nib_lora_config_set_dropout(nib_lora_config *config, double dropout) { config->dropout = dropout; }

static void write_patterns(nib_buffer *json, const char *key, const pattern_value *patterns, size_t count)
{
    nib_buffer_format(json, "  \"%s\": {", key);
    for (size_t i = 0; i < count; i++) {
        nib_buffer_text(json, i > 0 ? ",\n    " : "\n    ");
        nib_buffer_json_string(json, patterns[i].pattern, strlen(patterns[i].pattern), true);
        nib_buffer_format(json, ": %.17g", patterns[i].value);
    }
    nib_buffer_text(json, count > 0 ? "\n  },\n" : "},\n");
}

static void write_nulls(nib_buffer *json, const char *const *keys, size_t count)
{
    for (size_t i = 0; i < count; i++) nib_buffer_format(json, "  \"%s\": null,\n", keys[i]);
}

static void write_layers(nib_buffer *json, const nib_lora_config *config)
{
    nib_buffer_text(json, "  \"layers_to_transform\": ");
    if (config->layers == NULL) nib_buffer_text(json, "null");
    for (size_t i = 0; i < config->layer_count; i++)
        nib_buffer_format(json, i > 0 ? ", %lld" : "[%lld", (long long)config->layers[i]);
    nib_buffer_text(json, config->layer_count > 0 ? "],\n" : ",\n");
}

static void write_tokens(nib_buffer *json, const nib_lora_config *config)
{
    nib_buffer_text(json, "  \"trainable_token_indices\": ");
    if (config->token_count == 0) nib_buffer_text(json, "null");
    for (int64_t i = 0; i < config->token_count; i++)
        nib_buffer_format(json, i > 0 ? ",\n    %d" : "[\n    %d", config->tokens[i]);
    nib_buffer_text(json, config->token_count > 0 ? "\n  ],\n" : ",\n");
}

static void write_targets(nib_buffer *json, const nib_lora_config *config)
{
    nib_buffer_text(json, "  \"target_modules\": ");
    if (config->target_regex != NULL)
        nib_buffer_json_string(json, config->target_regex, strlen(config->target_regex), true);
    for (size_t i = 0; i < config->target_count; i++) {
        nib_buffer_text(json, i > 0 ? ",\n    " : "[\n    ");
        nib_buffer_json_string(json, config->targets[i], strlen(config->targets[i]), true);
    }
    nib_buffer_text(json, config->target_regex != NULL ? ",\n" : "\n  ],\n");
}

/* Keys in alphabetical order, as PEFT writes them; fields that Nibble does not use have PEFT's defaults. */
nib_status nib_lora_config_write(const nib_lora_config *config, const char *base_name, nib_buffer *json)
{
    static const char *const before_layers[] = {"layer_replication", "layers_pattern"};
    nib_buffer_text(json, "{\n  \"alora_invocation_tokens\": null,\n");
    write_patterns(json, "alpha_pattern", config->alphas, config->alpha_count);
    nib_buffer_text(json, "  \"arrow_config\": null,\n  \"auto_mapping\": null,\n  \"base_model_name_or_path\": ");
    if (base_name == NULL)
        nib_buffer_text(json, "null");
    else
        nib_buffer_json_string(json, base_name, strlen(base_name), true);
    nib_buffer_text(json, ",\n  \"bias\": \"none\",\n  \"corda_config\": null,\n  \"ensure_weight_tying\": false,\n"
                          "  \"eva_config\": null,\n  \"exclude_modules\": null,\n  \"fan_in_fan_out\": false,\n"
                          "  \"inference_mode\": true,\n  \"init_lora_weights\": true,\n");
    write_nulls(json, before_layers, 2);
    write_layers(json, config);
    nib_buffer_format(json, "  \"loftq_config\": {},\n  \"lora_alpha\": %.17g,\n  \"lora_bias\": false,\n",
                      config->alpha);
    nib_buffer_format(json, "  \"lora_dropout\": %.17g,\n", config->dropout);
    nib_buffer_text(json, "  \"megatron_config\": null,\n  \"megatron_core\": \"megatron.core\",\n"
                          "  \"modules_to_save\": null,\n  \"peft_type\": \"LORA\",\n  \"qalora_group_size\": 16,\n");
    nib_buffer_format(json, "  \"r\": %lld,\n", (long long)config->rank);
    write_patterns(json, "rank_pattern", config->ranks, config->rank_count);
    nib_buffer_text(json, "  \"revision\": null,\n");
    write_targets(json, config);
    nib_buffer_text(json, "  \"target_parameters\": null,\n  \"task_type\": \"CAUSAL_LM\",\n");
    write_tokens(json, config);
    nib_buffer_format(json, "  \"use_dora\": %s,\n  \"use_qalora\": false,\n", config->dora ? "true" : "false");
    nib_buffer_format(json, "  \"use_rslora\": %s\n}\n", config->rslora ? "true" : "false");
    return json->failed ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory for adapter_config.json") : NIB_OK;
}
