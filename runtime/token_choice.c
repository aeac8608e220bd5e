#include "token_choice.h"
#include "base/memory.h"
#include "model/untrained_rows.h"

#include <string.h>

static bool has(const nib_token_choice *choice, int32_t id)
{
    for (int64_t i = 0; i < choice->ids; i++)
        if (choice->id[i] == id) return true;
    return false;
}

static nib_status resolve(const nib_token_item *item, const nib_text *text, int64_t vocabulary, int32_t *id)
{
    *id = item->id;
    if (item->text != NULL) {
        *id = text->tokenizer == NULL ? -1 : nib_tokenizer_id(text->tokenizer, item->text);
        if (*id < 0)
            return NIB_FAIL(NIB_ERROR_CONFIG, "lora.trainable_token_indices: \"%s\" is no token of the tokenizer",
                            item->text);
    }
    if (*id >= vocabulary)
        return NIB_FAIL(NIB_ERROR_CONFIG, "lora.trainable_token_indices: token %d, the model has %lld", *id,
                        (long long)vocabulary);
    return NIB_OK;
}

static nib_status resolve_list(nib_token_choice *choice, const nib_text *text, int64_t vocabulary)
{
    for (int i = 0; i < choice->count; i++) {
        int32_t id;
        NIB_TRY(resolve(&choice->item[i], text, vocabulary, &id));
        if (has(choice, id))
            return NIB_FAIL(NIB_ERROR_CONFIG, "lora.trainable_token_indices: token %d is there twice", id);
        choice->id[choice->ids++] = id;
    }
    return NIB_OK;
}

static void warn(nib_buffer *warnings, const nib_text *text, const nib_untrained_row *row, float median)
{
    const char *name = text->tokenizer == NULL ? NULL : nib_tokenizer_text(text->tokenizer, row->token);
    nib_buffer_text(warnings, "token ");
    if (name != NULL) {
        nib_buffer_json_string(warnings, name, strlen(name), false);
        nib_buffer_char(warnings, ' ');
    }
    nib_buffer_format(warnings,
                      "(id %d) is in the training data %lld times, and its embedding row looks untrained: norm ",
                      row->token, (long long)row->occurrences);
    nib_buffer_format(warnings, "%.3g, the vocabulary's median %.3g%s\n", (double)row->norm, (double)median,
                      row->parallel ? ", and parallel to its neighbour's" : "");
}

static nib_status use_untrained(nib_config *config, const nib_text *text, const nib_untrained_rows *rows,
                                nib_buffer *warnings)
{
    nib_token_choice *choice = &config->lora.tokens;
    int64_t frozen = 0;
    if (choice->untrained) {
        choice->id = nib_pool_alloc(&config->pool, (size_t)(rows->count + 1) * sizeof *choice->id);
        if (choice->id == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld tokens", (long long)rows->count);
        for (; choice->ids < rows->count; choice->ids++) choice->id[choice->ids] = rows->row[choice->ids].token;
        return NIB_OK;
    }
    for (int64_t i = 0; i < rows->count; i++) {
        if (has(choice, rows->row[i].token)) continue;
        frozen++;
        warn(warnings, text, &rows->row[i], rows->median);
    }
    if (frozen > 0)
        nib_buffer_text(warnings, "an adapter cannot make up for such a row; \"lora\": {\"trainable_token_indices\": "
                                  "\"untrained\"} trains them too, or list the tokens that are to be trained\n");
    return warnings->failed ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory to name %lld tokens", (long long)frozen) : NIB_OK;
}

static nib_status look_for_untrained(nib_config *config, const nib_text *text, const nib_dataset *train,
                                     nib_buffer *warnings)
{
    nib_weight_source source;
    nib_untrained_rows rows = {0};
    nib_status status = nib_weight_source_open(config->model, &source);
    /* check and plan work on a configuration without weights; train says later what is wrong with them */
    if (status == NIB_ERROR_DATA && !config->lora.tokens.untrained) return NIB_OK;
    NIB_TRY(status);
    status = nib_untrained_rows_find(&source, train, &rows);
    if (status == NIB_OK) status = use_untrained(config, text, &rows, warnings);
    nib_free(rows.row);
    nib_weight_source_close(&source);
    return status;
}

nib_status nib_token_choice_settle(nib_config *config, const nib_text *text, const nib_dataset *train,
                                   int64_t vocabulary, nib_buffer *warnings)
{
    nib_token_choice *choice = &config->lora.tokens;
    if (!config->has_lora || config->lora.init_adapter != NULL) return NIB_OK;
    choice->ids = 0;
    choice->id = nib_pool_alloc(&config->pool, (size_t)(choice->count + 1) * sizeof *choice->id);
    if (choice->id == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %d tokens", choice->count);
    NIB_TRY(resolve_list(choice, text, vocabulary));
    return look_for_untrained(config, text, train, warnings);
}
