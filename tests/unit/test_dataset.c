/* Data sets: every row format, masks against prompts and answers encoded apart, over-long rows, and hostile files. The
 * tokenizer is a golden one (small vocabulary), the templates are real models'. */
#include "check.h"
#include "folder.h"

#include "base/file.h"
#include "base/memory.h"
#include "data/dataset.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char rows_path[64], eval_path[64];
static nib_tokenizer *tokenizer, *tokenizer_with_bos;

static void write_file(const char *path, const char *text)
{
    assert_int_equal(nib_file_replace(path, text, strlen(text)), 0);
}

/* The golden tokenizer.json in a folder of its own, beside a tokenizer_config.json. */
static nib_tokenizer *open_tokenizer(const char *name, const char *config)
{
    char path[200], *text;
    size_t length;
    nib_tokenizer *opened = NULL;
    snprintf(path, sizeof path, NIB_TEST_DATA "/tokenizers/%s/tokenizer.json", name);
    assert_int_equal(nib_file_read(path, 64 << 20, &text, &length), NIB_OK);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(nib_file_make_folders(path), NIB_OK);
    snprintf(path, sizeof path, "%s/%s/tokenizer.json", folder, name);
    assert_int_equal(nib_file_replace(path, text, length), NIB_OK);
    snprintf(path, sizeof path, "%s/%s/tokenizer_config.json", folder, name);
    write_file(path, config);
    nib_free(text);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (nib_tokenizer_open(path, &opened) != NIB_OK) fail_msg("%s", nib_error_message());
    return opened;
}

static int set_up(void **state)
{
    if (make_folder(state) != 0) return -1;
    snprintf(rows_path, sizeof rows_path, "%s/rows.jsonl", folder);
    snprintf(eval_path, sizeof eval_path, "%s/eval.jsonl", folder);
    tokenizer = open_tokenizer("smollm2", "{\"bos_token\": \"<|im_start|>\", \"eos_token\": \"<|im_end|>\"}");
    tokenizer_with_bos =
        open_tokenizer("llama3", "{\"bos_token\": \"<|begin_of_text|>\", \"eos_token\": \"<|im_end|>\"}");
    return 0;
}

static int tear_down(void **state)
{
    nib_tokenizer_free(tokenizer);
    nib_tokenizer_free(tokenizer_with_bos);
    return remove_folder(state);
}

static nib_chat_template *compile(const char *source)
{
    nib_chat_template *chat_template = NULL;
    if (nib_chat_template_compile("template", source, &chat_template) != NIB_OK) fail_msg("%s", nib_error_message());
    return chat_template;
}

static nib_chat_template *smollm2_template(void)
{
    char *source;
    size_t length;
    assert_int_equal(nib_file_read(NIB_TEST_DATA "/chat/smollm2.jinja", 1 << 20, &source, &length), NIB_OK);
    nib_chat_template *chat_template = compile(source);
    nib_free(source);
    return chat_template;
}

static nib_data_options options_with(const nib_chat_template *chat_template)
{
    return (nib_data_options){.max_length = 1024,
                              .tokenizer = tokenizer,
                              .chat_template = chat_template,
                              .bos_token = "<|im_start|>",
                              .eos_token = "<|im_end|>"};
}

static nib_status load_with(const char *rows, nib_data_options options, nib_dataset **dataset)
{
    nib_data_source source = {rows_path, NULL, 0};
    write_file(rows_path, rows);
    return nib_dataset_load(&source, 1, &options, 100000, dataset);
}

static nib_dataset *load_ok(const char *rows, nib_data_options options)
{
    nib_dataset *dataset = NULL;
    if (load_with(rows, options, &dataset) != NIB_OK) fail_msg("%s", nib_error_message());
    return dataset;
}

static void assert_refused(const char *rows, nib_data_options options, const char *place, const char *reason)
{
    nib_dataset *dataset = NULL;
    assert_int_equal(load_with(rows, options, &dataset), NIB_ERROR_DATA);
    assert_null(dataset);
    if (strstr(nib_error_message(), place) == NULL || strstr(nib_error_message(), reason) == NULL)
        fail_msg("expected '%s' and '%s' in: %s", place, reason, nib_error_message());
}

/* What a sample must be: pieces encoded one by one. A piece that begins with '+' is supervised. */
static void assert_sample(const nib_dataset *dataset, int64_t index, const char *const *pieces)
{
    nib_row row = nib_dataset_row(dataset, index);
    nib_token_list want = {0};
    nib_encode_options encode = {.parse_special = true};
    size_t at = 0;
    for (; *pieces != NULL; pieces++) {
        bool supervised = **pieces == '+';
        const char *text = *pieces + supervised;
        assert_int_equal(nib_tokenizer_encode(tokenizer, text, strlen(text), encode, &want), NIB_OK);
        for (; at < want.count; at++) {
            assert_true(at < (size_t)row.length);
            assert_int_equal(row.ids[at], want.ids[at]);
            assert_int_equal(row.supervised[at], supervised && at > 0);
        }
    }
    assert_int_equal(row.length, want.count);
    nib_token_list_free(&want);
}

#define SYSTEM "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"

static void answer_and_terminator_are_supervised(void **state)
{
    (void)state;
    nib_chat_template *chat_template = smollm2_template();
    nib_dataset *dataset =
        load_ok("{\"messages\": [{\"role\": \"user\", \"content\": \"Which one?\"}, {\"role\": \"assistant\", "
                "\"content\": \"net\"}]}\n"
                "\n"
                "{\"conversations\": [{\"from\": \"human\", \"value\": \"Which one?\"}, {\"from\": \"gpt\", \"value\": "
                "\"net\"}]}\n"
                "{\"prompt\": \"Which one?\", \"completion\": \"net\", \"weight\": 0.5}\n"
                "{\"instruction\": \"Which one?\", \"input\": \"\", \"output\": \"net\", \"source\": \"x\"}\r\n"
                "{\"instruction\": \"Which\", \"input\": \"one?\", \"output\": \"net\", \"id\": 7}",
                options_with(chat_template));
    assert_int_equal(nib_dataset_size(dataset), 5);
    for (int i = 0; i < 4; i++)
        assert_sample(dataset, i,
                      (const char *[]){SYSTEM "<|im_start|>user\nWhich one?<|im_end|>\n<|im_start|>assistant\n",
                                       "+net<|im_end|>", NULL});
    assert_sample(dataset, 4,
                  (const char *[]){SYSTEM "<|im_start|>user\nWhich\n\none?<|im_end|>\n<|im_start|>assistant\n",
                                   "+net<|im_end|>", NULL});
    int64_t line;
    assert_string_equal(nib_dataset_file(dataset, 1, &line), rows_path);
    assert_int_equal(line, 3);
    assert_true(nib_dataset_row(dataset, 2).weight == 0.5f);
    assert_int_equal(nib_dataset_report(dataset, 0)->duplicates, 3);
    const int32_t *ids;
    int32_t length;
    const char *reference;
    assert_int_equal(nib_dataset_terminators(dataset, &ids), 1);
    assert_int_equal(ids[0], nib_tokenizer_id(tokenizer, "<|im_end|>"));
    assert_true(nib_dataset_prompt(dataset, 0, &ids, &length, &reference));
    assert_string_equal(reference, "net");
    nib_row row = nib_dataset_row(dataset, 0);
    assert_int_equal(row.supervised[length], 1);
    assert_int_equal(row.supervised[length - 1], 0);
    nib_dataset_free(dataset);
    nib_chat_template_free(chat_template);
}

#define TWO_TURNS                                                                                                      \
    "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": \"a\"}, "           \
    "{\"role\": \"assistant\", \"content\": \"one two\"}, {\"role\": \"user\", \"content\": \"b\"}, "                  \
    "{\"role\": \"assistant\", \"content\": \"\"}, {\"role\": \"user\", \"content\": \"left out\"}]}"

static void every_assistant_turn_is_supervised(void **state)
{
    (void)state;
    nib_chat_template *chat_template = smollm2_template();
    nib_dataset *dataset = load_ok(TWO_TURNS, options_with(chat_template));
    assert_int_equal(nib_dataset_size(dataset), 1);
    assert_sample(
        dataset, 0,
        (const char *[]){"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
                         "+one two<|im_end|>", "\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n",
                         "+<|im_end|>", NULL});
    nib_dataset_free(dataset);

    nib_data_options all = options_with(chat_template);
    all.train_on_all = true;
    dataset = load_ok(TWO_TURNS, all);
    nib_row row = nib_dataset_row(dataset, 0);
    for (int i = 0; i < row.length; i++) assert_int_equal(row.supervised[i], i > 0);
    nib_dataset_free(dataset);
    nib_chat_template_free(chat_template);
}

/* As templates of reasoning models do: thoughts of turns before the last are left out of the prompt. */
static void a_turn_that_is_rewritten_later_is_a_sample_of_its_own(void **state)
{
    (void)state;
    nib_chat_template *chat_template =
        compile("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
                "{{ m.content if loop.last else m.content.split('</think>')[-1] }}{{ '<|im_end|>\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}");
    nib_dataset *dataset = load_ok(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": "
        "\"<think>x</think>one\"}, {\"role\": \"user\", \"content\": \"b\"}, {\"role\": \"assistant\", \"content\": "
        "\"<think>y</think>two\"}]}",
        options_with(chat_template));
    assert_int_equal(nib_dataset_size(dataset), 2);
    assert_sample(dataset, 0,
                  (const char *[]){"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
                                   "+<think>x</think>one<|im_end|>", NULL});
    assert_sample(
        dataset, 1,
        (const char *[]){"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n<|im_start|>user\n"
                         "b<|im_end|>\n<|im_start|>assistant\n",
                         "+<think>y</think>two<|im_end|>", NULL});
    nib_dataset_free(dataset);
    nib_chat_template_free(chat_template);
}

/* A generation prompt that opens a thought which the finished turn does not hold. */
static void a_generation_prompt_that_opens_a_thought(void **state)
{
    (void)state;
    nib_chat_template *chat_template =
        compile("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}");
    nib_dataset *dataset = load_ok("{\"prompt\": \"a\", \"completion\": \"one\"}", options_with(chat_template));
    assert_sample(dataset, 0,
                  (const char *[]){"<|im_start|>user\na<|im_end|><|im_start|>assistant\n", "+one<|im_end|>", NULL});
    nib_dataset_free(dataset);
    nib_chat_template_free(chat_template);
}

static void a_turn_without_an_end_is_refused(void **state)
{
    (void)state;
    nib_chat_template *chat_template =
        compile("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}");
    assert_refused("{\"prompt\": \"a\", \"completion\": \"one\"}", options_with(chat_template), "rows.jsonl:1",
                   "never learn to stop");
    /* Nor does a special token inside the answer end it. */
    assert_refused("{\"prompt\": \"a\", \"completion\": \"one<|im_end|>two\"}", options_with(chat_template),
                   "rows.jsonl:1", "never learn to stop");
    nib_chat_template_free(chat_template);
}

/* The answer "d" occurs in "<|im_end|>" too, "assistant" in the prompt, "<|im_end|>" is a special token in an answer.
 */
static void answers_that_look_like_the_template(void **state)
{
    (void)state;
    static const char *const answers[] = {"d", "assistant", "end|>", "a<|im_end|>b"};
    nib_chat_template *chat_template = smollm2_template();
    for (int i = 0; i < 4; i++) {
        char row[100], piece[100];
        snprintf(row, sizeof row, "{\"prompt\": \"q\", \"completion\": \"%s\"}", answers[i]);
        snprintf(piece, sizeof piece, "+%s<|im_end|>", answers[i]);
        nib_dataset *dataset = load_ok(row, options_with(chat_template));
        assert_sample(dataset, 0,
                      (const char *[]){SYSTEM "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", piece, NULL});
        nib_dataset_free(dataset);
    }
    nib_chat_template_free(chat_template);
}

/* A template that closes the turn, and then the text: only the first of the two ends the turn. */
static void the_first_token_behind_the_answer_ends_the_turn(void **state)
{
    (void)state;
    nib_chat_template *chat_template =
        compile("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
                "{{ '<|im_start|>assistant\n' if add_generation_prompt else '<|im_start|>' }}");
    nib_dataset *dataset = load_ok("{\"prompt\": \"q\", \"completion\": \"a\"}", options_with(chat_template));
    assert_sample(dataset, 0,
                  (const char *[]){"<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "+a<|im_end|>", NULL});
    nib_dataset_free(dataset);
    nib_chat_template_free(chat_template);
}

/* A turn of tool calls has no content: its last special token ends it. */
static void tool_calls_are_supervised(void **state)
{
    (void)state;
    nib_chat_template *chat_template =
        compile("{{ tools[0].name }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.tool_calls %}"
                "{{ m.tool_calls[0].name }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}");
    nib_dataset *dataset = load_ok("{\"tools\": [{\"name\": \"look\"}], \"messages\": [{\"role\": \"user\", "
                                   "\"content\": \"q\"}, {\"role\": \"assistant\", \"content\": null, "
                                   "\"tool_calls\": [{\"name\": \"look\"}]}]}",
                                   options_with(chat_template));
    assert_sample(
        dataset, 0,
        (const char *[]){"look<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "+look<|im_end|>", NULL});
    nib_dataset_free(dataset);
    nib_chat_template_free(chat_template);
}

static void a_raising_template_is_named(void **state)
{
    (void)state;
    nib_chat_template *chat_template = compile("{{ raise_exception('roles must alternate') }}");
    assert_refused("{\"prompt\": \"a\", \"completion\": \"b\"}", options_with(chat_template), "rows.jsonl:1",
                   "roles must alternate");
    nib_chat_template_free(chat_template);
}

static void plain_text_and_pairs_without_a_template(void **state)
{
    (void)state;
    nib_dataset *dataset = load_ok("{\"text\": \"The cat\"}\n{\"prompt\": \"The\", \"completion\": \" cat sat\"}\n"
                                   "{\"instruction\": \"Say\", \"input\": \"x\", \"output\": \"y\"}\n",
                                   options_with(NULL));
    assert_sample(dataset, 0, (const char *[]){"+The cat", "+<|im_end|>", NULL});
    assert_sample(dataset, 1, (const char *[]){"The", "+ cat sat", "+<|im_end|>", NULL});
    assert_sample(dataset, 2, (const char *[]){"Say\n\nx\n\n", "+y", "+<|im_end|>", NULL});
    nib_dataset_free(dataset);
    assert_refused("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", options_with(NULL), "rows.jsonl:1",
                   "no chat template");
    nib_data_options ids_only = {.max_length = 8};
    assert_refused("{\"text\": \"a\"}", ids_only, "rows.jsonl:1", "no tokenizer.json");
}

static void ids_and_labels(void **state)
{
    (void)state;
    nib_data_options options = {.max_length = 8};
    nib_dataset *dataset = load_ok("{\"input_ids\": [5, 6, 7], \"labels\": [-100, -100, 7]}", options);
    nib_row row = nib_dataset_row(dataset, 0);
    assert_memory_equal(row.ids, ((int32_t[]){5, 6, 7}), 12);
    assert_memory_equal(row.supervised, ((uint8_t[]){0, 0, 1}), 3);
    nib_dataset_free(dataset);
    assert_refused("{\"input_ids\": [5, 6], \"labels\": [5]}", options, "rows.jsonl:1", "2 input_ids and 1 labels");
    assert_refused("{\"input_ids\": [5, 6], \"labels\": [5, 7]}", options, "rows.jsonl:1", "labels[1]");
    assert_refused("{\"input_ids\": [5, -1], \"labels\": [5, -1]}", options, "rows.jsonl:1", "input_ids[1]");
    assert_refused("{\"input_ids\": [5, 100000], \"labels\": [5, 100000]}", options, "rows.jsonl:1", "vocabulary ends");
    assert_refused("{\"input_ids\": [5, 6], \"labels\": [5, -100]}", options, "rows.jsonl:1", "nothing in this row");
}

static void a_second_beginning_of_text_is_refused(void **state)
{
    (void)state;
    nib_data_options options = {.max_length = 64, .tokenizer = tokenizer_with_bos};
    nib_dataset *dataset = load_ok("{\"text\": \"a\"}", options);
    assert_int_equal(nib_dataset_row(dataset, 0).ids[0], nib_tokenizer_bos(tokenizer_with_bos));
    nib_dataset_free(dataset);
    assert_refused("{\"text\": \"a\"}\n{\"text\": \"<|begin_of_text|>a\"}", options, "rows.jsonl:2", "twice");
}

#define NINE "{\"input_ids\": [1,2,3,4,5,6,7,8,9], \"labels\": [-100,-100,-100,-100,-100,6,7,8,9]}\n"

static void over_long_rows(void **state)
{
    (void)state;
    nib_data_options options = {.max_length = 4};
    assert_refused("{\"input_ids\": [1,2], \"labels\": [1,2]}\n" NINE, options, "rows.jsonl:2", "9 tokens");

    options.over_long = NIB_OVER_LONG_SPLIT; /* 1234 4567 789: the first piece teaches nothing */
    nib_dataset *dataset = load_ok(NINE, options);
    assert_int_equal(nib_dataset_size(dataset), 2);
    assert_memory_equal(nib_dataset_row(dataset, 0).ids, ((int32_t[]){4, 5, 6, 7}), 16);
    assert_memory_equal(nib_dataset_row(dataset, 0).supervised, ((uint8_t[]){0, 0, 1, 1}), 4);
    assert_memory_equal(nib_dataset_row(dataset, 1).ids, ((int32_t[]){7, 8, 9}), 12);
    assert_memory_equal(nib_dataset_row(dataset, 1).supervised, ((uint8_t[]){0, 1, 1}), 3);
    assert_int_equal(nib_dataset_report(dataset, 0)->split, 1);
    assert_int_equal(nib_dataset_report(dataset, 0)->supervised_tokens, 4);
    assert_int_equal(nib_dataset_report(dataset, 0)->longest, 9);
    nib_dataset_free(dataset);

    options.over_long = NIB_OVER_LONG_TRUNCATE;
    assert_refused(NINE, options, "rows.jsonl:1", "nothing in them is supervised");
    options.max_length = 7;
    dataset = load_ok(NINE, options);
    assert_int_equal(nib_dataset_row(dataset, 0).length, 7);
    assert_int_equal(nib_dataset_row(dataset, 0).ids[6], 7); /* and no end of text behind the cut */
    assert_int_equal(nib_dataset_report(dataset, 0)->truncated, 1);
    nib_dataset_free(dataset);

    options.over_long = NIB_OVER_LONG_DROP;
    dataset = load_ok("{\"input_ids\": [1,2], \"labels\": [1,2]}\n" NINE, options);
    assert_int_equal(nib_dataset_size(dataset), 1);
    assert_int_equal(nib_dataset_report(dataset, 0)->dropped, 1);
    nib_dataset_free(dataset);
    assert_refused(NINE, options, "rows.jsonl", "every row is over-long");
}

static void unknown_and_ambiguous_rows(void **state)
{
    (void)state;
    nib_data_options options = options_with(NULL);
    assert_refused("{\"question\": \"a\", \"answer\": \"b\"}", options, "rows.jsonl:1",
                   "its keys are: question, answer");
    assert_refused("{\"prompt\": \"a\"}", options, "rows.jsonl:1", "unknown row format");
    assert_refused("{\"text\": \"a\", \"prompt\": \"a\", \"completion\": \"b\"}", options, "rows.jsonl:1",
                   "by prompt and completion and by text");
    assert_refused("[1]", options, "rows.jsonl:1", "found an array");
    assert_refused("{}", options, "rows.jsonl:1", "(none)");
    assert_refused("{\"text\": 5}", options, "rows.jsonl:1", "\"text\" is a number");
    assert_refused("{\"text\": \"a\", \"weight\": -1}", options, "rows.jsonl:1", "weight");
    assert_refused("{\"text\": \"a\", \"weight\": \"x\"}", options, "rows.jsonl:1", "weight");
    assert_refused("{\"messages\": []}", options, "rows.jsonl:1", "holds 0 turns");
    assert_refused("{\"messages\": [5]}", options, "rows.jsonl:1", "messages[0]");
    assert_refused("{\"messages\": [{\"role\": \"user\"}]}", options, "rows.jsonl:1", "messages[0]");
    assert_refused("{\"conversations\": [{\"from\": \"alien\", \"value\": \"\"}]}", options, "rows.jsonl:1", "alien");
}

static void hostile_files(void **state)
{
    (void)state;
    nib_data_options options = options_with(NULL);
    nib_chat_template *chat_template = smollm2_template();
    assert_refused("{\"text\": \"a b\"}\n{\"text\": \"a\n", options, "rows.jsonl:2", "not valid JSON");
    assert_refused("{\"text\": \"a b\"}\n{\"text\": \"\xff\"}\n", options, "rows.jsonl:2", "UTF-8");
    assert_refused("", options, "rows.jsonl", "holds no row");
    assert_refused("\n \n", options, "rows.jsonl", "holds no row");
    assert_refused("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", options_with(chat_template),
                   "rows.jsonl:1", "none of its 1 messages is from the assistant");
    nib_chat_template_free(chat_template);

    size_t size = 100u << 20;
    char *line = malloc(size + 1);
    memset(line, 'a', size);
    memcpy(line, "{\"text\": \"", 10);
    memcpy(line + size - 3, "\"}\n", 4);
    assert_refused(line, options, "rows.jsonl:1", "line");
    free(line);

    nib_data_source missing = {eval_path, NULL, 0};
    nib_dataset *dataset;
    assert_int_equal(nib_dataset_load(&missing, 1, &options, 10, &dataset), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "eval.jsonl"));
}

static void sources_are_told_apart(void **state)
{
    (void)state;
    nib_data_options options = {.max_length = 8};
    nib_data_source sources[] = {{rows_path, "first", 0.5}, {eval_path, "second", 0.5}};
    nib_dataset *dataset, *again;
    nib_mixture mixture;
    write_file(rows_path, "{\"input_ids\": [1,2], \"labels\": [1,2]}\n{\"input_ids\": [1,3], \"labels\": [1,3]}\n");
    write_file(eval_path, "{\"input_ids\": [1,2], \"labels\": [1,2]}\n");
    assert_int_equal(nib_dataset_load(sources, 2, &options, 10, &dataset), NIB_OK);
    assert_int_equal(nib_dataset_size(dataset), 3);
    assert_int_equal(nib_dataset_source(dataset, 2), 1);
    assert_string_equal(nib_dataset_report(dataset, 1)->name, "second");
    assert_int_equal(nib_dataset_report(dataset, 0)->duplicates, 0);
    assert_int_equal(nib_dataset_report(dataset, 1)->duplicates, 1);
    assert_true(nib_dataset_fingerprint(dataset, 0) == nib_dataset_fingerprint(dataset, 2));
    assert_true(nib_dataset_fingerprint(dataset, 0) != nib_dataset_fingerprint(dataset, 1));
    assert_int_equal(nib_dataset_mixture(dataset, 1, true, &mixture), NIB_OK);
    assert_int_equal(mixture.epoch_size, 3);
    nib_mixture_free(&mixture);
    assert_int_equal(nib_dataset_load(sources, 2, &options, 10, &again), NIB_OK);
    assert_string_equal(nib_dataset_hash(dataset), nib_dataset_hash(again));
    nib_dataset_free(again);
    write_file(eval_path, "{\"input_ids\": [1,2], \"labels\": [-100,2], \"weight\": 2}\n");
    assert_int_equal(nib_dataset_load(sources, 2, &options, 10, &again), NIB_OK);
    assert_string_not_equal(nib_dataset_hash(dataset), nib_dataset_hash(again));
    nib_dataset_free(again);
    nib_dataset_free(dataset);
}

static void leaks_are_found(void **state)
{
    (void)state;
    nib_data_options options = {.max_length = 8};
    nib_data_source train_source = {rows_path, NULL, 0}, eval_source = {eval_path, NULL, 0};
    nib_dataset *train, *eval;
    int64_t *leak, count;
    write_file(rows_path, "{\"input_ids\": [1,2], \"labels\": [1,2]}\n{\"input_ids\": [1,3], \"labels\": [1,3]}\n");
    write_file(eval_path, "{\"input_ids\": [1,4], \"labels\": [1,4]}\n{\"input_ids\": [1,3], \"labels\": [1,3]}\n"
                          "{\"input_ids\": [2,1], \"labels\": [2,1]}\n{\"input_ids\": [1,2], \"labels\": [-100,2]}\n");
    assert_int_equal(nib_dataset_load(&train_source, 1, &options, 10, &train), NIB_OK);
    assert_int_equal(nib_dataset_load(&eval_source, 1, &options, 10, &eval), NIB_OK);
    assert_int_equal(nib_dataset_leaks(train, eval, &leak, &count), NIB_OK);
    assert_int_equal(count, 2);
    assert_int_equal(leak[0], 1);
    assert_int_equal(leak[1], 3);
    nib_free(leak);
    assert_int_equal(nib_dataset_leaks(train, train, &leak, &count), NIB_OK);
    assert_int_equal(count, 2);
    nib_free(leak);
    nib_dataset_free(eval);
    nib_dataset_free(train);
}

static void a_line_of_zero_bytes_is_no_blank_line(void **state)
{
    (void)state;
    nib_data_options options = {.max_length = 8};
    nib_data_source source = {rows_path, NULL, 0};
    nib_dataset *dataset;
    FILE *file = fopen(rows_path, "wb");
    static const char text[] = "{\"input_ids\": [1,2], \"labels\": [1,2]}\n\0\0\0\n";
    assert_int_equal(fwrite(text, 1, sizeof text - 1, file), sizeof text - 1);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(nib_dataset_load(&source, 1, &options, 10, &dataset), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "rows.jsonl:2"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answer_and_terminator_are_supervised),
        cmocka_unit_test(every_assistant_turn_is_supervised),
        cmocka_unit_test(a_turn_that_is_rewritten_later_is_a_sample_of_its_own),
        cmocka_unit_test(a_generation_prompt_that_opens_a_thought),
        cmocka_unit_test(a_turn_without_an_end_is_refused),
        cmocka_unit_test(answers_that_look_like_the_template),
        cmocka_unit_test(the_first_token_behind_the_answer_ends_the_turn),
        cmocka_unit_test(tool_calls_are_supervised),
        cmocka_unit_test(a_raising_template_is_named),
        cmocka_unit_test(plain_text_and_pairs_without_a_template),
        cmocka_unit_test(ids_and_labels),
        cmocka_unit_test(a_second_beginning_of_text_is_refused),
        cmocka_unit_test(over_long_rows),
        cmocka_unit_test(unknown_and_ambiguous_rows),
        cmocka_unit_test(hostile_files),
        cmocka_unit_test(sources_are_told_apart),
        cmocka_unit_test(leaks_are_found),
        cmocka_unit_test(a_line_of_zero_bytes_is_no_blank_line),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
