#include "export_replay.h"
#include "conversation.h"
#include "export/replay.h"
#include "replay_prompt.h"

#include <math.h>
#include <stdio.h>

static const char *token_text(const nib_text *text, int32_t id)
{
    const char *found = nib_tokenizer_text(text->tokenizer, id);
    return found == NULL ? "?" : found;
}

/* The message's prompt, by the tokenizer and template that were written, is the one of the training. */
static nib_status check_prompt(const nib_text *text, const nib_replay_item *item)
{
    nib_token_list ids = {0};
    nib_status status;
    if (text->tokenizer == NULL || text->chat_template == NULL)
        return NIB_FAIL(NIB_ERROR_DATA, "replay: there was a chat template in training, and none is with the export");
    NIB_TRY_GOTO(nib_replay_prompt(text, item->content, item->now, &ids), done);
    for (size_t i = 0; i < ids.count || i < item->prompt.count; i++) {
        int32_t found = i < ids.count ? ids.ids[i] : -1, saved = i < item->prompt.count ? item->prompt.ids[i] : -1;
        if (found == saved) continue;
        status = NIB_FAIL(
            NIB_ERROR_DATA,
            "replay: token %zu of a rendered message is %d \"%s\", in training it was %d \"%s\": template or "
            "tokenizer are not those of the training",
            i + 1, found, found < 0 ? "" : token_text(text, found), saved, saved < 0 ? "" : token_text(text, saved));
        goto done;
    }
done:
    nib_token_list_free(&ids);
    return status;
}

static nib_status compare(const nib_replay *replay, const nib_text *text, nib_model *model, double limit,
                          nib_replay_result *result)
{
    const nib_model_config *config = nib_model_get_config(model);
    nib_conversation conversation = {0};
    if (text->tokenizer == NULL)
        return nib_replay_compare(model, replay, config->eos, config->eos_count, NULL, limit, result);
    NIB_TRY(nib_conversation_open(text, config, &conversation));
    nib_status status =
        nib_replay_compare(model, replay, conversation.stop, conversation.stop_count, text->tokenizer, limit, result);
    nib_conversation_close(&conversation);
    return status;
}

static nib_status check_prompts(const nib_text *text, const nib_replay *replay)
{
    for (int i = 0; i < replay->count; i++)
        if (replay->item[i].content != NULL) NIB_TRY(check_prompt(text, &replay->item[i]));
    return NIB_OK;
}

static void print_none(const char *adapter)
{
    printf("replay: %s has no " NIB_REPLAY_FILE ", so nothing is compared with the training\n", adapter);
}

static void print_result(const nib_replay *replay, const nib_replay_result *result, const char *as)
{
    printf("replay: %d prompts answered as %s, token for token (%lld tokens)", replay->count, as,
           (long long)result->tokens);
    if (result->near_ties > 0)
        printf(", but for %d that part at a near tie (up to %.2g nats)", result->near_ties, result->largest);
    putchar('\n');
}

nib_status nib_export_replay(const char *adapter, const nib_text *text, nib_model_options options, nib_device device)
{
    nib_ops *ops = NULL;
    nib_model *model = NULL;
    nib_replay replay;
    nib_replay_result result;
    nib_status status = NIB_OK;
    NIB_TRY(nib_replay_read(adapter, &replay));
    if (replay.count == 0) {
        print_none(adapter);
        return NIB_OK;
    }
    options.compute = replay.compute;
    options.quantization = replay.quantization;
    NIB_TRY_GOTO(check_prompts(text, &replay), done);
    NIB_TRY_GOTO(nib_open_backend(device, options.compute, 0, &ops), done);
    NIB_TRY_GOTO(nib_model_open(ops, &options, &model), done);
    NIB_TRY_GOTO(compare(&replay, text, model, NIB_NEAR_TIE, &result), done);
    print_result(&replay, &result, "in training");
done:
    nib_model_close(model);
    nib_close_backend(ops);
    nib_replay_free(&replay);
    return status;
}

/* Opens, compares, closes: there are never two models at once. */
static nib_status open_and_compare(nib_ops *ops, const nib_model_options *options, const nib_text *text,
                                   const nib_replay *replay, double limit, nib_replay_result *result)
{
    nib_model *model;
    NIB_TRY(nib_model_open(ops, options, &model));
    nib_status status = compare(replay, text, model, limit, result);
    nib_model_close(model);
    return status;
}

/* The model's own answers in place of the saved ones. */
static nib_status answer_anew(nib_ops *ops, const nib_model_options *options, const nib_text *text, nib_replay *replay)
{
    nib_model *model;
    nib_conversation conversation = {0};
    NIB_TRY(nib_model_open(ops, options, &model));
    const nib_model_config *config = nib_model_get_config(model);
    nib_status status = text->tokenizer == NULL ? NIB_OK : nib_conversation_open(text, config, &conversation);
    const int32_t *stop = text->tokenizer == NULL ? config->eos : conversation.stop;
    int stop_count = text->tokenizer == NULL ? config->eos_count : conversation.stop_count;
    if (status == NIB_OK) status = nib_replay_answer(model, stop, stop_count, replay, NULL);
    nib_conversation_close(&conversation);
    nib_model_close(model);
    return status;
}

/* Trained on a 16-bit base, the merged model has to answer as in training. Trained on an NF4 base, the parts have to,
 * on that base; then the merged model has to answer as the parts do on the 16-bit base. */
static nib_status replay_merged(nib_ops *ops, nib_replay *replay, const nib_text *text, const nib_model_options *parts,
                                const nib_model_options *merged)
{
    nib_replay_result result, apart;
    nib_model_options nf4 = *parts;
    if (replay->quantization == NIB_QUANT_NONE) {
        NIB_TRY(open_and_compare(ops, merged, text, replay, NIB_NEAR_TIE_MERGED, &result));
        print_result(replay, &result, "in training");
        return NIB_OK;
    }
    nf4.quantization = NIB_QUANT_NF4;
    nf4.stream_layers = false; /* training held it */
    NIB_TRY(open_and_compare(ops, &nf4, text, replay, NIB_NEAR_TIE, &result));
    NIB_TRY(open_and_compare(ops, merged, text, replay, INFINITY, &apart));
    NIB_TRY(answer_anew(ops, parts, text, replay));
    NIB_TRY(open_and_compare(ops, merged, text, replay, NIB_NEAR_TIE_MERGED, &result));
    print_result(replay, &result, "by the 16-bit base with the adapter");
    if (apart.near_ties > 0)
        printf("replay: %d of the %d answers were others in training, by up to %.2g nats: there the base was NF4\n",
               apart.near_ties, replay->count, apart.largest);
    return NIB_OK;
}

nib_status nib_export_replay_merged(const char *adapter, const nib_text *text, nib_model_options parts,
                                    nib_model_options merged, nib_device device)
{
    nib_ops *ops = NULL;
    nib_replay replay;
    nib_status status = NIB_OK;
    NIB_TRY(nib_replay_read(adapter, &replay));
    if (replay.count == 0) {
        print_none(adapter);
        return NIB_OK;
    }
    parts.compute = merged.compute = replay.compute;
    parts.quantization = merged.quantization = NIB_QUANT_NONE;
    parts.stream_layers = merged.stream_layers = true; /* a model in 16 bits need not fit into memory to be merged */
    NIB_TRY_GOTO(check_prompts(text, &replay), done);
    NIB_TRY_GOTO(nib_open_backend(device, replay.compute, 0, &ops), done);
    status = replay_merged(ops, &replay, text, &parts, &merged);
done:
    nib_close_backend(ops);
    nib_replay_free(&replay);
    return status;
}
