#include "config.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "config_names.h"
#include "model/lora_config.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_CONFIG_BYTES (16u << 20)
#define MAX_EXACT        9007199254740991.0 /* 2^53 - 1: integers that every JSON reader keeps */

typedef enum { INTEGER, REAL, BOOLEAN, CHOICE, PATH, SOURCES, TARGETS, TOKENS } value_kind;

typedef struct {
    const char *key; /* "section.key" */
    value_kind kind;
    size_t offset;
    bool nullable;       /* null is NIB_CONFIG_UNSET, NULL or an empty list */
    double low, high;    /* of a number, both inclusive */
    const char *initial; /* default, as JSON */
    const char *choices; /* "a|b|c": the value is the index */
    bool may_change;     /* on resume */
} key_row;

#define AT(field) offsetof(nib_config, field)
#define TINY      1e-300 /* "above zero" as an inclusive bound */

static const key_row rows[] = {
    {"model", PATH, AT(model), false, 0, 0, NULL, NULL, false},
    {"tokenizer", PATH, AT(tokenizer), true, 0, 0, "null", NULL, false},
    {"output", PATH, AT(output), false, 0, 0, NULL, NULL, true},
    {"device", CHOICE, AT(device), false, 0, 0, "\"auto\"", NIB_DEVICE_CHOICES, true},
    {"quantization", CHOICE, AT(quantization), false, 0, 0, "\"nf4\"", "none|nf4", false},
    {"lora.r", INTEGER, AT(lora.r), false, 1, 4096, "16", NULL, false},
    {"lora.lora_alpha", REAL, AT(lora.alpha), false, TINY, 1e6, "32", NULL, false},
    {"lora.lora_dropout", REAL, AT(lora.dropout), false, 0, 0.99, "0", NULL, false},
    {"lora.target_modules", TARGETS, AT(lora.targets), false, 0, 0, "\"all-linear\"", NULL, false},
    {"lora.use_rslora", BOOLEAN, AT(lora.rslora), false, 0, 0, "false", NULL, false},
    {"lora.use_dora", BOOLEAN, AT(lora.dora), false, 0, 0, "false", NULL, false},
    {"lora.trainable_token_indices", TOKENS, AT(lora.tokens), true, 0, 0, "null", NULL, false},
    {"lora.init_adapter", PATH, AT(lora.init_adapter), true, 0, 0, "null", NULL, false},
    {"data.train", SOURCES, AT(data.train), false, 0, 0, NULL, NULL, false},
    {"data.eval", SOURCES, AT(data.eval), true, 0, 0, "[]", NULL, false},
    {"data.max_length", INTEGER, AT(data.max_length), false, 2, 1 << 24, "1024", NULL, false},
    {"data.over_long", CHOICE, AT(data.over_long), false, 0, 0, "\"error\"", "error|split|drop|truncate", false},
    {"data.shuffle", BOOLEAN, AT(data.shuffle), false, 0, 0, "true", NULL, false},
    {"data.pack", BOOLEAN, AT(data.pack), false, 0, 0, "true", NULL, false},
    {"data.share_prefixes", BOOLEAN, AT(data.share_prefixes), false, 0, 0, "true", NULL, false},
    {"data.train_on", CHOICE, AT(data.train_on), false, 0, 0, "\"assistant\"", "assistant|all", false},
    {"data.chat_template", PATH, AT(data.chat_template), true, 0, 0, "null", NULL, false},
    {"train.epochs", REAL, AT(train.epochs), false, TINY, 1e6, "3", NULL, false},
    {"train.max_steps", INTEGER, AT(train.max_steps), true, 1, MAX_EXACT, "null", NULL, false},
    {"train.batch_size", INTEGER, AT(train.batch_size), false, 1, 1 << 20, "32", NULL, false},
    {"train.micro_batch_tokens", INTEGER, AT(train.micro_batch_tokens), true, 1, 1 << 24, "null", NULL, false},
    {"train.slots", INTEGER, AT(train.slots), true, 1, 1 << 16, "null", NULL, false},
    {"train.learning_rate", REAL, AT(train.learning_rate), false, TINY, 10, "2e-4", NULL, false},
    {"train.scheduler", CHOICE, AT(train.scheduler), false, 0, 0, "\"cosine\"", "cosine|linear|constant", false},
    {"train.warmup_steps", INTEGER, AT(train.warmup_steps), true, 0, MAX_EXACT, "null", NULL, false},
    {"train.warmup_ratio", REAL, AT(train.warmup_ratio), false, 0, 1, "0.03", NULL, false},
    {"train.optimizer", CHOICE, AT(train.optimizer), false, 0, 0, "\"adamw\"", "adamw|adamw_8bit", false},
    {"train.weight_decay", REAL, AT(train.weight_decay), false, 0, 10, "0", NULL, false},
    {"train.adam_beta1", REAL, AT(train.beta1), false, 0, 0.9999999, "0.9", NULL, false},
    {"train.adam_beta2", REAL, AT(train.beta2), false, 0, 0.9999999, "0.999", NULL, false},
    {"train.adam_epsilon", REAL, AT(train.epsilon), false, TINY, 1, "1e-8", NULL, false},
    {"train.max_grad_norm", REAL, AT(train.max_grad_norm), false, TINY, 1e9, "1", NULL, false},
    {"train.compute", CHOICE, AT(train.compute), false, 0, 0, "\"bf16\"", "bf16|fp32|fp8", false},
    {"train.seed", INTEGER, AT(train.seed), false, 0, MAX_EXACT, "42", NULL, false},
    {"evaluate.every_steps", INTEGER, AT(evaluate.every_steps), false, 1, MAX_EXACT, "50", NULL, false},
    {"evaluate.early_stopping_patience", INTEGER, AT(evaluate.patience), true, 1, 1e6, "null", NULL, false},
    {"evaluate.generate", INTEGER, AT(evaluate.generate), false, 0, 1e6, "0", NULL, false},
    {"checkpoint.every_steps", INTEGER, AT(checkpoint.every_steps), false, 1, MAX_EXACT, "100", NULL, true},
    {"checkpoint.keep", INTEGER, AT(checkpoint.keep), false, 1, 1e6, "2", NULL, true},
    {"parallel.shard_base", BOOLEAN, AT(parallel.shard_base), false, 0, 0, "false", NULL, true},
    {"parallel.shard_optimizer", BOOLEAN, AT(parallel.shard_optimizer), false, 0, 0, "false", NULL, true},
};
#define ROWS ((int)(sizeof rows / sizeof rows[0]))

static const char *const sections[] = {"lora", "data", "train", "evaluate", "checkpoint", "parallel"};
#define SECTIONS ((int)(sizeof sections / sizeof sections[0]))

/* Where a value stands: a line of the file, or the override it came from. */
typedef struct {
    nib_config *config;
    const char *folder;   /* of the config file: paths are relative to it */
    const char *file;     /* for messages */
    const char *override; /* NULL, or the text after --set */
    bool seen[ROWS];
} reader;

static void *field(const nib_config *config, const key_row *row) { return (char *)(uintptr_t)config + row->offset; }

static nib_status fail_at(const reader *r, uint32_t line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static nib_status fail_at(const reader *r, uint32_t line, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    nib_status status = nib_fail_v(NIB_ERROR_CONFIG, format, arguments);
    va_end(arguments);
    if (r->override != NULL) return nib_error_context(status, "--set %s", r->override);
    return nib_error_context(status, "%s:%u", r->file, line);
}

static nib_status no_memory(const reader *r) { return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it", r->file); }

static nib_status wrong_type(const reader *r, const char *key, const nib_json *value, const char *expected)
{
    return fail_at(r, value->line, "\"%s\" is %s, expected %s", key, nib_json_kind_name(value->kind), expected);
}

static nib_status copy_text(reader *r, const char *text, size_t length, const char **out)
{
    *out = nib_pool_copy(&r->config->pool, text, length);
    return *out == NULL ? no_memory(r) : NIB_OK;
}

/* "~/x" is in the user's home, as in a shell; other relative paths are the config file's. */
static nib_status read_path(reader *r, const char *key, const nib_json *value, const char **out)
{
    if (value->kind != NIB_JSON_STRING) return wrong_type(r, key, value, "a path");
    if (value->length == 0) return fail_at(r, value->line, "\"%s\" is empty, expected a path", key);
    const char *home = getenv("HOME");
    bool at_home = strncmp(value->string, "~/", 2) == 0 && home != NULL;
    char *joined = at_home ? nib_path_join(home, value->string + 2) : nib_path_join(r->folder, value->string);
    if (joined == NULL) return no_memory(r);
    nib_status status = copy_text(r, joined, strlen(joined), out);
    nib_free(joined);
    return status;
}

static nib_status read_number(const reader *r, const key_row *row, const nib_json *value)
{
    bool integer = row->kind == INTEGER;
    if (value->kind != NIB_JSON_NUMBER || (integer && !value->is_integer))
        return wrong_type(r, row->key, value, integer ? "an integer" : "a number");
    if (!(value->number >= row->low && value->number <= row->high)) {
        if (row->low == TINY)
            return fail_at(r, value->line, "\"%s\" is %.16g, expected above 0 and at most %.16g", row->key,
                           value->number, row->high);
        return fail_at(r, value->line, "\"%s\" is %.16g, expected %.16g to %.16g", row->key, value->number, row->low,
                       row->high);
    }
    if (integer)
        *(int64_t *)field(r->config, row) = value->integer;
    else
        *(double *)field(r->config, row) = value->number;
    return NIB_OK;
}

static nib_status read_choice(const reader *r, const key_row *row, const nib_json *value)
{
    if (value->kind != NIB_JSON_STRING) return wrong_type(r, row->key, value, row->choices);
    int index = 0;
    for (const char *at = row->choices; at != NULL; index++) {
        const char *bar = strchr(at, '|');
        size_t length = bar == NULL ? strlen(at) : (size_t)(bar - at);
        if (length == value->length && memcmp(at, value->string, length) == 0) {
            *(int *)field(r->config, row) = index;
            return NIB_OK;
        }
        at = bar == NULL ? NULL : bar + 1;
    }
    return fail_at(r, value->line, "\"%s\" is \"%s\", expected one of %s", row->key, value->string, row->choices);
}

static nib_status read_targets(reader *r, const key_row *row, const nib_json *value)
{
    nib_target_list *list = field(r->config, row);
    *list = (nib_target_list){0};
    if (value->kind == NIB_JSON_STRING && strcmp(value->string, "all-linear") == 0) {
        list->all_linear = true;
        return NIB_OK;
    }
    if (value->kind != NIB_JSON_ARRAY || value->length == 0)
        return wrong_type(r, row->key, value, "\"all-linear\" or a list of module names");
    list->name = nib_pool_alloc(&r->config->pool, value->length * sizeof *list->name);
    if (list->name == NULL) return no_memory(r);
    for (const nib_json *item = value->first; item != NULL; item = item->next) {
        if (item->kind != NIB_JSON_STRING || item->length == 0)
            return wrong_type(r, row->key, item, "a module name such as \"q_proj\"");
        NIB_TRY(copy_text(r, item->string, item->length, &list->name[list->count++]));
    }
    return NIB_OK;
}

static nib_status read_tokens(reader *r, const key_row *row, const nib_json *value)
{
    nib_token_choice *choice = field(r->config, row);
    *choice = (nib_token_choice){0};
    if (value->kind == NIB_JSON_STRING && strcmp(value->string, "untrained") == 0) {
        choice->untrained = true;
        return NIB_OK;
    }
    if (value->kind != NIB_JSON_ARRAY || value->length == 0)
        return wrong_type(r, row->key, value, "\"untrained\" or a list of tokens");
    choice->item = nib_pool_alloc(&r->config->pool, value->length * sizeof *choice->item);
    if (choice->item == NULL) return no_memory(r);
    for (const nib_json *item = value->first; item != NULL; item = item->next) {
        nib_token_item *token = &choice->item[choice->count++];
        *token = (nib_token_item){0};
        if (item->kind == NIB_JSON_STRING && item->length > 0)
            NIB_TRY(copy_text(r, item->string, item->length, &token->text));
        else if (item->is_integer && item->integer >= 0 && item->integer <= INT32_MAX)
            token->id = (int32_t)item->integer;
        else
            return wrong_type(r, row->key, item, "a token's id or its text, such as \"<tool_call>\"");
    }
    return NIB_OK;
}

static nib_status read_source(reader *r, const char *key, const nib_json *item, nib_data_source *source)
{
    if (item->kind != NIB_JSON_OBJECT) return wrong_type(r, key, item, "an object with \"path\"");
    for (const nib_json *member = item->first; member != NULL; member = member->next) {
        if (strcmp(member->key, "path") == 0) {
            NIB_TRY(read_path(r, "path", member, &source->path));
        } else if (strcmp(member->key, "name") == 0) {
            if (member->kind != NIB_JSON_STRING) return wrong_type(r, "name", member, "a string");
            NIB_TRY(copy_text(r, member->string, member->length, &source->name));
        } else if (strcmp(member->key, "weight") == 0) {
            if (member->kind != NIB_JSON_NUMBER) return wrong_type(r, "weight", member, "a number");
            if (!(member->number > 0 && member->number <= 1))
                return fail_at(r, member->line, "\"weight\" is %.16g, expected above 0 and at most 1", member->number);
            source->weight = member->number;
        } else {
            return fail_at(r, member->key_line, "unknown key \"%s\" in a source of \"%s\", expected path, name, weight",
                           member->key, key);
        }
    }
    if (source->path == NULL) return fail_at(r, item->line, "a source of \"%s\" has no \"path\"", key);
    return NIB_OK;
}

static nib_status read_sources(reader *r, const key_row *row, const nib_json *value)
{
    nib_source_list *list = field(r->config, row);
    *list = (nib_source_list){0};
    if (value->kind != NIB_JSON_ARRAY)
        return wrong_type(r, row->key, value, "a list such as [{\"path\": \"rows.jsonl\"}]");
    if (value->length == 0 && !row->nullable) return fail_at(r, value->line, "\"%s\" is empty", row->key);
    list->source = nib_pool_alloc(&r->config->pool, (value->length + 1) * sizeof *list->source);
    if (list->source == NULL) return no_memory(r);
    for (const nib_json *item = value->first; item != NULL; item = item->next)
        NIB_TRY(read_source(r, row->key, item, &list->source[list->count++]));
    return NIB_OK;
}

static void set_null(const reader *r, const key_row *row)
{
    if (row->kind == INTEGER)
        *(int64_t *)field(r->config, row) = NIB_CONFIG_UNSET;
    else if (row->kind == SOURCES)
        *(nib_source_list *)field(r->config, row) = (nib_source_list){0};
    else if (row->kind == TOKENS)
        *(nib_token_choice *)field(r->config, row) = (nib_token_choice){0};
    else
        *(const char **)field(r->config, row) = NULL;
}

static nib_status read_value(reader *r, const key_row *row, const nib_json *value)
{
    if (value->kind == NIB_JSON_NULL) {
        if (!row->nullable) return fail_at(r, value->line, "\"%s\" is null, expected a value", row->key);
        set_null(r, row);
        return NIB_OK;
    }
    switch (row->kind) {
    case INTEGER:
    case REAL:
        return read_number(r, row, value);
    case BOOLEAN:
        if (value->kind != NIB_JSON_TRUE && value->kind != NIB_JSON_FALSE)
            return wrong_type(r, row->key, value, "true or false");
        *(bool *)field(r->config, row) = value->kind == NIB_JSON_TRUE;
        return NIB_OK;
    case CHOICE:
        return read_choice(r, row, value);
    case PATH:
        return read_path(r, row->key, value, (const char **)field(r->config, row));
    case TARGETS:
        return read_targets(r, row, value);
    case TOKENS:
        return read_tokens(r, row, value);
    case SOURCES:
        return read_sources(r, row, value);
    }
    return NIB_FAIL(NIB_ERROR_INTERNAL, "config row \"%s\" has no kind", row->key);
}

static bool is_section(const char *name)
{
    for (int i = 0; i < SECTIONS; i++)
        if (strcmp(name, sections[i]) == 0) return true;
    return false;
}

static nib_status unknown_key(const reader *r, uint32_t line, const char *key)
{
    const char *here = nib_config_foreign_name(key);
    if (here != NULL) return fail_at(r, line, "unknown key \"%s\": called \"%s\" here", key, here);
    const char *names[ROWS + SECTIONS];
    int count = 0;
    for (int i = 0; i < ROWS; i++) names[count++] = rows[i].key;
    for (int i = 0; i < SECTIONS; i++) names[count++] = sections[i];
    return fail_at(r, line, "unknown key \"%s\": the nearest valid key is \"%s\"", key,
                   nib_config_nearest_name(key, names, count));
}

/* One member, under its full name "section.key". */
static nib_status read_member(reader *r, const char *key, const nib_json *value)
{
    for (int i = 0; i < ROWS; i++) {
        if (strcmp(rows[i].key, key) != 0) continue;
        r->seen[i] = true;
        if (strncmp(key, "lora.", 5) == 0) r->config->has_lora = true;
        return read_value(r, &rows[i], value);
    }
    if (!is_section(key)) return unknown_key(r, value->key_line, key);
    if (value->kind == NIB_JSON_NULL && strcmp(key, "lora") == 0) {
        r->config->has_lora = false;
        return NIB_OK;
    }
    if (value->kind != NIB_JSON_OBJECT) return wrong_type(r, key, value, "an object");
    if (strcmp(key, "lora") == 0) r->config->has_lora = true;
    for (const nib_json *member = value->first; member != NULL; member = member->next) {
        char full[256];
        if (snprintf(full, sizeof full, "%s.%s", key, member->key) >= (int)sizeof full)
            return fail_at(r, member->key_line, "unknown key \"%.60s...\" in \"%s\"", member->key, key);
        if (is_section(full)) return unknown_key(r, member->key_line, full);
        NIB_TRY(read_member(r, full, member));
    }
    return NIB_OK;
}

static nib_status read_defaults(reader *r)
{
    r->config->has_lora = true;
    for (int i = 0; i < ROWS; i++) {
        nib_json *value;
        if (rows[i].initial == NULL) continue;
        NIB_TRY(nib_json_parse(rows[i].key, rows[i].initial, strlen(rows[i].initial), (nib_json_options){0},
                               &r->config->pool, &value));
        NIB_TRY(read_value(r, &rows[i], value));
    }
    return NIB_OK;
}

/* "a.b=value": the value is JSON, or a plain string where it is none. */
static nib_status read_override(reader *r, const char *text)
{
    const char *equals = strchr(text, '=');
    char key[256];
    if (equals == NULL || equals == text || equals - text >= (ptrdiff_t)sizeof key)
        return NIB_FAIL(NIB_ERROR_USAGE, "--set %s: expected key=value, such as train.epochs=1", text);
    memcpy(key, text, (size_t)(equals - text));
    key[equals - text] = 0;
    r->override = text;
    nib_json plain = {.kind = NIB_JSON_STRING, .string = equals + 1, .length = strlen(equals + 1)};
    nib_json *value = &plain;
    if (nib_json_parse("--set", equals + 1, strlen(equals + 1), (nib_json_options){0}, &r->config->pool, &value) !=
        NIB_OK)
        value = &plain;
    nib_status status = read_member(r, key, value);
    r->override = NULL;
    return status;
}

static nib_status check_whole(const reader *r)
{
    const nib_config *c = r->config;
    for (int i = 0; i < ROWS; i++)
        if (rows[i].initial == NULL && !r->seen[i])
            return NIB_FAIL(NIB_ERROR_CONFIG, "%s: \"%s\" is missing and has no default", r->file, rows[i].key);
    if (!c->has_lora && c->quantization != NIB_QUANT_NONE)
        return NIB_FAIL(NIB_ERROR_CONFIG,
                        "%s: \"lora\": null trains every weight, which needs \"quantization\": \"none\"", r->file);
    if (c->lora.init_adapter != NULL && (c->lora.tokens.untrained || c->lora.tokens.count > 0))
        return NIB_FAIL(
            NIB_ERROR_CONFIG,
            "%s: \"lora.trainable_token_indices\" is for a new adapter; which rows \"lora.init_adapter\" has "
            "is in its adapter_config.json",
            r->file);
    if (c->parallel.shard_optimizer && c->has_lora)
        return NIB_FAIL(NIB_ERROR_CONFIG,
                        "%s: \"parallel.shard_optimizer\" is for a full fine-tune: an adapter's state is small",
                        r->file);
    if (c->parallel.shard_base && c->quantization != NIB_QUANT_NF4)
        return NIB_FAIL(NIB_ERROR_CONFIG,
                        "%s: \"parallel.shard_base\" divides an NF4 base: \"quantization\" is \"none\"", r->file);
    if (c->evaluate.patience != NIB_CONFIG_UNSET && c->data.eval.count == 0)
        return NIB_FAIL(NIB_ERROR_CONFIG, "%s: \"evaluate.early_stopping_patience\" needs \"data.eval\"", r->file);
    if (c->evaluate.generate > 0 && c->data.eval.count == 0)
        return NIB_FAIL(NIB_ERROR_CONFIG, "%s: \"evaluate.generate\" needs \"data.eval\"", r->file);
    return NIB_OK;
}

static bool is_given(const reader *r, const char *key)
{
    for (int i = 0; i < ROWS; i++)
        if (strcmp(rows[i].key, key) == 0) return r->seen[i];
    return false;
}

/* An adapter that is continued keeps its rank and its scale: they take the defaults' place, and another value that was
 * given is refused. */
static nib_status follow_adapter(const reader *r)
{
    nib_config *c = r->config;
    nib_lora_config *adapter;
    if (!c->has_lora || c->lora.init_adapter == NULL) return NIB_OK;
    NIB_TRY(nib_lora_config_read(c->lora.init_adapter, &adapter));
    const nib_lora_options own = nib_lora_config_scale(adapter);
    nib_lora_config_free(adapter);
    const struct {
        const char *key;
        double here, there;
    } values[] = {{"lora.r", (double)c->lora.r, (double)own.rank},
                  {"lora.lora_alpha", c->lora.alpha, own.alpha},
                  {"lora.use_rslora", c->lora.rslora, own.rslora},
                  {"lora.use_dora", c->lora.dora, own.dora}};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        if (is_given(r, values[i].key) && values[i].here != values[i].there)
            return NIB_FAIL(NIB_ERROR_CONFIG,
                            "%s: \"%s\" is %.16g, but %.16g in the adapter of \"lora.init_adapter\", %s, which keeps "
                            "it; leave the key out, or start a new adapter",
                            r->file, values[i].key, values[i].here, values[i].there, c->lora.init_adapter);
    c->lora.r = own.rank;
    c->lora.alpha = own.alpha;
    c->lora.rslora = own.rslora;
    c->lora.dora = own.dora;
    return NIB_OK;
}

/* The config file's folder, absolute, so that the resolved copy means the same from everywhere. NULL: no memory. */
static char *absolute_folder(const char *path)
{
    char *folder = nib_path_folder(path), *absolute = NULL, *current = getcwd(NULL, 0);
    if (folder != NULL && current != NULL) absolute = nib_path_join(current, strcmp(folder, ".") == 0 ? "" : folder);
    size_t length = absolute == NULL ? 0 : strlen(absolute);
    if (length > 1 && absolute[length - 1] == '/') absolute[length - 1] = 0;
    nib_free(folder);
    free(current);
    return absolute;
}

nib_status nib_config_read(const char *path, const char *const *overrides, int count, nib_config *config)
{
    *config = (nib_config){0};
    reader r = {.config = config, .folder = absolute_folder(path), .file = path};
    char *text = NULL;
    size_t length;
    nib_json *root;
    nib_status status = r.folder == NULL ? no_memory(&r) : NIB_OK;
    if (status != NIB_OK) goto done;
    NIB_TRY_GOTO(nib_file_read(path, MAX_CONFIG_BYTES, &text, &length), done);
    NIB_TRY_GOTO(nib_json_parse(path, text, length, (nib_json_options){.comments = true}, &config->pool, &root), done);
    NIB_TRY_GOTO(read_defaults(&r), done);
    if (root->kind != NIB_JSON_OBJECT) {
        status = wrong_type(&r, "the configuration", root, "an object");
        goto done;
    }
    for (const nib_json *member = root->first; member != NULL; member = member->next)
        NIB_TRY_GOTO(strchr(member->key, '.') != NULL ? unknown_key(&r, member->key_line, member->key)
                                                      : read_member(&r, member->key, member),
                     done);
    for (int i = 0; i < count; i++) NIB_TRY_GOTO(read_override(&r, overrides[i]), done);
    status = check_whole(&r);
done:
    if (status == NIB_ERROR_DATA) status = NIB_ERROR_CONFIG; /* a config that is absent or no JSON is a bad config */
    if (status == NIB_OK) status = follow_adapter(&r);
    nib_free((char *)(uintptr_t)r.folder);
    nib_free(text);
    if (status != NIB_OK) nib_config_free(config);
    return status;
}

void nib_config_free(nib_config *config)
{
    nib_pool_free(&config->pool);
    *config = (nib_config){0};
}

static void write_text(nib_buffer *out, const char *text)
{
    if (text == NULL)
        nib_buffer_text(out, "null");
    else
        nib_buffer_json_string(out, text, strlen(text), false);
}

static void write_choice(nib_buffer *out, const char *choices, int index)
{
    for (; index > 0; index--) choices = strchr(choices, '|') + 1;
    nib_buffer_json_string(out, choices, strcspn(choices, "|"), false);
}

static void write_sources(nib_buffer *out, const nib_source_list *list)
{
    nib_buffer_char(out, '[');
    for (int i = 0; i < list->count; i++) {
        nib_buffer_text(out, i == 0 ? "{\"path\": " : ", {\"path\": ");
        write_text(out, list->source[i].path);
        if (list->source[i].name != NULL) {
            nib_buffer_text(out, ", \"name\": ");
            write_text(out, list->source[i].name);
        }
        if (list->source[i].weight > 0) nib_buffer_format(out, ", \"weight\": %.17g", list->source[i].weight);
        nib_buffer_char(out, '}');
    }
    nib_buffer_char(out, ']');
}

/* In as few digits as read back the same, a whole number in all of them: 400, which %g would write as 4e+02. */
static void write_real(nib_buffer *out, double value)
{
    char text[40];
    const int all = fabs(value) >= 10 && fabs(value) < 1e15 && value == floor(value) ? (int)log10(fabs(value)) + 1 : 1;
    for (int digits = all; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        double back;
        if (sscanf(text, "%lf", &back) == 1 && back == value) break;
    }
    nib_buffer_text(out, text);
}

static void write_targets(nib_buffer *out, const nib_target_list *list)
{
    if (list->all_linear) {
        nib_buffer_text(out, "\"all-linear\"");
        return;
    }
    for (int i = 0; i < list->count; i++) {
        nib_buffer_text(out, i == 0 ? "[" : ", ");
        write_text(out, list->name[i]);
    }
    nib_buffer_char(out, ']');
}

/* As it was asked for, so that a resumed run compares it: what it comes to follows from model and data. */
static void write_tokens(nib_buffer *out, const nib_token_choice *choice)
{
    if (choice->count == 0) {
        nib_buffer_text(out, choice->untrained ? "\"untrained\"" : "null");
        return;
    }
    for (int i = 0; i < choice->count; i++) {
        nib_buffer_text(out, i == 0 ? "[" : ", ");
        if (choice->item[i].text != NULL)
            write_text(out, choice->item[i].text);
        else
            nib_buffer_format(out, "%d", choice->item[i].id);
    }
    nib_buffer_char(out, ']');
}

static void write_value(const nib_config *config, const key_row *row, nib_buffer *out)
{
    const void *at = field(config, row);
    switch (row->kind) {
    case INTEGER:
        if (*(const int64_t *)at == NIB_CONFIG_UNSET && row->nullable)
            nib_buffer_text(out, "null");
        else
            nib_buffer_format(out, "%lld", (long long)*(const int64_t *)at);
        break;
    case REAL:
        write_real(out, *(const double *)at);
        break;
    case BOOLEAN:
        nib_buffer_text(out, *(const bool *)at ? "true" : "false");
        break;
    case CHOICE:
        write_choice(out, row->choices, *(const int *)at);
        break;
    case PATH:
        write_text(out, *(const char *const *)at);
        break;
    case SOURCES:
        write_sources(out, at);
        break;
    case TARGETS:
        write_targets(out, at);
        break;
    case TOKENS:
        write_tokens(out, at);
        break;
    }
}

static const char *short_name(const key_row *row)
{
    const char *dot = strchr(row->key, '.');
    return dot == NULL ? row->key : dot + 1;
}

static bool in_section(const key_row *row, const char *section)
{
    size_t length = strlen(section);
    return strncmp(row->key, section, length) == 0 && row->key[length] == '.';
}

nib_status nib_config_write(const nib_config *config, nib_buffer *text)
{
    nib_buffer_text(text, "{\n");
    for (int i = 0; i < ROWS && strchr(rows[i].key, '.') == NULL; i++) {
        nib_buffer_format(text, "  \"%s\": ", rows[i].key);
        write_value(config, &rows[i], text);
        nib_buffer_text(text, ",\n");
    }
    for (int s = 0; s < SECTIONS; s++) {
        bool null = strcmp(sections[s], "lora") == 0 && !config->has_lora, first = true;
        nib_buffer_format(text, "  \"%s\": %s", sections[s], null ? "null" : "{");
        for (int i = 0; i < ROWS && !null; i++) {
            if (!in_section(&rows[i], sections[s])) continue;
            nib_buffer_format(text, "%s\n    \"%s\": ", first ? "" : ",", short_name(&rows[i]));
            write_value(config, &rows[i], text);
            first = false;
        }
        nib_buffer_format(text, "%s%s\n", null ? "" : "\n  }", s + 1 < SECTIONS ? "," : "");
    }
    nib_buffer_text(text, "}\n");
    return text->failed ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the resolved configuration") : NIB_OK;
}

void nib_config_log(const nib_config *config)
{
    for (int s = -1; s < SECTIONS; s++) {
        nib_buffer line = {0};
        bool null = s >= 0 && strcmp(sections[s], "lora") == 0 && !config->has_lora;
        for (int i = 0; i < ROWS && !null; i++) {
            if (s < 0 ? strchr(rows[i].key, '.') != NULL : !in_section(&rows[i], sections[s])) continue;
            nib_buffer_format(&line, "%s%s ", line.length == 0 ? "" : ", ", short_name(&rows[i]));
            write_value(config, &rows[i], &line);
        }
        if (!line.failed) nib_log("%s: %s", s < 0 ? "run" : sections[s], null ? "none, full fine-tune" : line.data);
        nib_buffer_free(&line);
    }
}

static bool same_text(const char *a, const char *b) { return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0; }

/* A run may be moved together with its files: of a path the last part counts. What the files hold is compared by hash
 * (train_open.c). */
static bool same_file(const char *a, const char *b)
{
    const char *in_a = a == NULL ? NULL : strrchr(a, '/'), *in_b = b == NULL ? NULL : strrchr(b, '/');
    return same_text(in_a == NULL ? a : in_a, in_b == NULL ? b : in_b);
}

static bool same_sources(const nib_source_list *a, const nib_source_list *b)
{
    bool same = a->count == b->count;
    for (int i = 0; same && i < a->count; i++)
        same = same_file(a->source[i].path, b->source[i].path) && same_text(a->source[i].name, b->source[i].name) &&
               a->source[i].weight == b->source[i].weight;
    return same;
}

static bool same_value(const key_row *row, const void *was, const void *now, const char *before, const char *after)
{
    if (row->kind == PATH) return same_file(*(const char *const *)was, *(const char *const *)now);
    if (row->kind == SOURCES) return same_sources(was, now);
    return strcmp(before, after) == 0;
}

void nib_config_differences(const nib_config *was, const nib_config *now, nib_buffer *lines)
{
    if (was->has_lora != now->has_lora) nib_buffer_text(lines, "lora: one of the two is null\n");
    for (int i = 0; i < ROWS; i++) {
        if (rows[i].may_change || (in_section(&rows[i], "lora") && !(was->has_lora && now->has_lora))) continue;
        nib_buffer before = {0}, after = {0};
        write_value(was, &rows[i], &before);
        write_value(now, &rows[i], &after);
        if (before.failed || after.failed)
            lines->failed = true;
        else if (!same_value(&rows[i], field(was, &rows[i]), field(now, &rows[i]), before.data, after.data))
            nib_buffer_format(lines, "%s: was %s, now %s\n", rows[i].key, before.data, after.data);
        nib_buffer_free(&before);
        nib_buffer_free(&after);
    }
}

nib_lora_options nib_config_lora(const nib_config *config)
{
    if (!config->has_lora) return (nib_lora_options){0};
    return (nib_lora_options){
        .rank = config->lora.r,
        .alpha = config->lora.alpha,
        .dropout = config->lora.dropout,
        .rslora = config->lora.rslora,
        .dora = config->lora.dora,
        .all_linear = config->lora.targets.all_linear,
        .targets = config->lora.targets.name,
        .target_count = config->lora.targets.count,
        .tokens = config->lora.tokens.id,
        .token_count = config->lora.tokens.ids,
        .init_adapter = config->lora.init_adapter,
    };
}

nib_model_options nib_config_model(const nib_config *config, bool train)
{
    return (nib_model_options){
        .path = config->model,
        .quantization = (nib_quantization)config->quantization,
        .compute = config->train.compute == 1 ? NIB_DTYPE_F32 : NIB_DTYPE_BF16,
        .fp8 = config->train.compute == 2,
        .lora = nib_config_lora(config),
        .full = !config->has_lora,
        .train = train,
        .moments_8bit = config->train.optimizer == 1,
        .seed = (uint64_t)config->train.seed,
    };
}
