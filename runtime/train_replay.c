#include "train_replay.h"
#include "base/memory.h"
#include "conversation.h"
#include "export/replay.h"
#include "replay_prompt.h"

#include <string.h>
#include <time.h>

#define CONTENT "Hello! What can you help me with?"

static nib_status copy_ids(const int32_t *ids, int64_t count, nib_token_list *list)
{
    if (count > NIB_REPLAY_PROMPT) count = NIB_REPLAY_PROMPT; /* its beginning is a prompt too */
    if (!nib_grow(&list->ids, &list->capacity, (size_t)count, sizeof *ids))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a prompt of %lld ids", (long long)count);
    memcpy(list->ids, ids, (size_t)count * sizeof *ids);
    list->count = (size_t)count;
    return NIB_OK;
}

/* What comes before the first supervised token; of a row that has none of it, its first half. */
static int64_t prompt_length(nib_row row)
{
    for (int32_t i = 0; i < row.length; i++)
        if (row.supervised[i]) return i > 0 ? i : (row.length + 1) / 2;
    return (row.length + 1) / 2;
}

/* The prompts of rows spread over the data. */
static nib_status add_rows(const nib_training *t, nib_replay *replay)
{
    int64_t index[NIB_REPLAY_ITEMS - 1], size = nib_dataset_size(t->train);
    int64_t wanted = size < NIB_REPLAY_ITEMS - 1 ? size : NIB_REPLAY_ITEMS - 1;
    nib_rows rows;
    nib_status status = NIB_OK;
    for (int64_t k = 0; k < wanted; k++) index[k] = (2 * k + 1) * size / (2 * wanted);
    NIB_TRY(nib_dataset_rows(t->train, index, wanted, &rows));
    for (int64_t k = 0; k < wanted && status == NIB_OK; k++)
        status = copy_ids(rows.row[k].ids, prompt_length(rows.row[k]), &replay->item[replay->count++].prompt);
    nib_rows_free(&rows);
    return status;
}

/* A template that will not render this message, or makes it longer than a replay's prompts, has none. */
static nib_status add_message(const nib_training *t, int64_t now, nib_replay *replay)
{
    nib_replay_item *item = &replay->item[replay->count];
    if (t->text.tokenizer == NULL || t->text.chat_template == NULL) return NIB_OK;
    item->now = now;
    nib_status status = nib_replay_prompt(&t->text, CONTENT, item->now, &item->prompt);
    if (status == NIB_ERROR_MEMORY) return status;
    if (status != NIB_OK || item->prompt.count == 0 || item->prompt.count > NIB_REPLAY_PROMPT) {
        nib_token_list_free(&item->prompt);
        return NIB_OK;
    }
    item->content = nib_calloc(sizeof CONTENT, 1);
    if (item->content == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a message");
    memcpy(item->content, CONTENT, sizeof CONTENT);
    replay->count++;
    return NIB_OK;
}

static nib_status answer(const nib_training *t, nib_model *model, nib_replay *replay, size_t *bytes)
{
    int64_t now = (int64_t)time(NULL);
    const nib_model_config *config = nib_model_get_config(model);
    nib_conversation conversation = {0};
    nib_status status = NIB_OK;
    *replay = (nib_replay){.quantization = (nib_quantization)t->config->quantization,
                           .compute = nib_config_model(t->config, true).compute};
    /* Ranks with parts of the base generate together, from the same prompts. */
    if (t->shards != NULL && bytes == NULL) NIB_TRY(t->collectives->broadcast(t->collectives, &now, sizeof now, 0));
    NIB_TRY(add_rows(t, replay));
    NIB_TRY(add_message(t, now, replay));
    if (t->text.tokenizer == NULL) return nib_replay_answer(model, config->eos, config->eos_count, replay, bytes);
    NIB_TRY(nib_conversation_open(&t->text, config, &conversation));
    status = nib_replay_answer(model, conversation.stop, conversation.stop_count, replay, bytes);
    nib_conversation_close(&conversation);
    return status;
}

nib_status nib_train_replay_remove(const nib_training *t)
{
    return t->config->has_lora ? nib_replay_remove(t->folder.result) : NIB_OK;
}

nib_status nib_train_replay_save(const nib_training *t)
{
    nib_replay replay;
    if (!t->config->has_lora) return NIB_OK;
    nib_status status = answer(t, t->model, &replay, NULL);
    if (status == NIB_OK) status = nib_replay_write(&replay, t->folder.result);
    nib_replay_free(&replay);
    return status;
}

nib_status nib_train_replay_follow(const nib_training *t)
{
    nib_replay replay;
    if (!t->config->has_lora) return NIB_OK;
    nib_status status = answer(t, t->model, &replay, NULL);
    nib_replay_free(&replay);
    return status;
}

nib_status nib_train_replay_memory(const nib_training *t, nib_model *rehearsed, size_t *bytes)
{
    nib_replay replay;
    *bytes = 0;
    if (!t->config->has_lora) return NIB_OK;
    nib_status status = answer(t, rehearsed, &replay, bytes);
    nib_replay_free(&replay);
    return status;
}
