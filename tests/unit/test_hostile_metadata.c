/* Small files that say how large ones are read: a model's config.json, adapter_config.json, the run's config, the
 * vocabulary of a GGUF, a tokenizer.json; and rows. Each is cut at every length and has 10,000 single bits flipped: a
 * cut is refused, a flip is refused as bad data or makes something that can be used without harm (ASan and UBSan
 * watch). */
#include "check.h"
#include "folder.h"

#include "base/buffer.h"
#include "base/file.h"
#include "config.h"
#include "data/dataset.h"
#include "model/config.h"
#include "model/lora_config.h"
#include "tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A file in memory that lies in a folder under the name that its reader asks for. */
static int descriptor = -1;

static nib_status use_model_config(const char *path)
{
    nib_model_config config;
    (void)path;
    NIB_TRY(nib_model_config_read(folder, &config));
    assert_true(config.hidden > 0 && config.heads > 0 && config.heads % config.kv_heads == 0);
    return NIB_OK;
}

static nib_status use_adapter_config(const char *path)
{
    nib_lora_config *config;
    nib_buffer json = {0};
    int64_t rank;
    float scale;
    (void)path;
    NIB_TRY(nib_lora_config_read(folder, &config));
    nib_status status = nib_lora_config_resolve(config, "model.layers.1.self_attn.q_proj", 1, &rank, &scale);
    if (status == NIB_OK) {
        assert_true(rank >= 0);
        assert_int_equal(nib_lora_config_write(config, NULL, &json), NIB_OK);
    }
    nib_buffer_free(&json);
    nib_lora_config_free(config);
    return status;
}

static nib_status use_run_config(const char *path)
{
    nib_config config;
    nib_buffer text = {0};
    NIB_TRY(nib_config_read(path, NULL, 0, &config));
    assert_true(config.model != NULL && config.output != NULL && config.data.train.count > 0);
    assert_int_equal(nib_config_write(&config, &text), NIB_OK);
    nib_buffer_free(&text);
    nib_config_free(&config);
    return NIB_OK;
}

static nib_status use_tokenizer(const char *path)
{
    nib_tokenizer *tokenizer;
    nib_token_list ids = {0};
    nib_buffer text = {0};
    nib_encode_options options = {.add_special = true, .parse_special = true};
    NIB_TRY(nib_tokenizer_open(path, &tokenizer));
    nib_status status = nib_tokenizer_encode(tokenizer, "ab a<s>b", 8, options, &ids);
    if (status == NIB_OK) status = nib_tokenizer_decode(tokenizer, ids.ids, ids.count, false, &text);
    nib_token_list_free(&ids);
    nib_buffer_free(&text);
    nib_tokenizer_free(tokenizer);
    return status;
}

typedef struct {
    const char *name; /* of the file in its folder */
    nib_status (*use)(const char *path);
    nib_status refusal;
    nib_buffer bytes;
} subject;

static nib_status try(const subject *s, const char *path)
{
    assert_int_equal(ftruncate(descriptor, 0), 0);
    assert_int_equal(pwrite(descriptor, s->bytes.data, s->bytes.length, 0), s->bytes.length);
    nib_status status = s->use(path);
    if (status != NIB_OK && status != s->refusal)
        fail_msg("%s: another kind of error: %s", s->name, nib_error_message());
    return status;
}

static void damage(subject *s)
{
    char path[128], memory[64];
    size_t length = s->bytes.length, refused = 0;
    assert_false(s->bytes.failed);
    snprintf(path, sizeof path, "%s/%s", folder, s->name);
    snprintf(memory, sizeof memory, "/proc/self/fd/%d", descriptor);
    assert_int_equal(symlink(memory, path), 0);
    if (try(s, path) != NIB_OK) fail_msg("undamaged: %s", nib_error_message());
    for (s->bytes.length = 0; s->bytes.length < length; s->bytes.length++)
        if (try(s, path) == NIB_OK) fail_msg("%s is accepted when cut to %zu of %zu", s->name, s->bytes.length, length);
    for (size_t i = 0; i < 10000; i++) {
        size_t bit = i * 7919 % (length * 8);
        s->bytes.data[bit / 8] ^= (char)(1 << bit % 8);
        refused += try(s, path) != NIB_OK;
        s->bytes.data[bit / 8] ^= (char)(1 << bit % 8);
    }
    assert_true(refused > 1000); /* syntax alone is more than a tenth of each */
    assert_int_equal(unlink(path), 0);
    nib_buffer_free(&s->bytes);
}

static void read_into(const char *path, nib_buffer *bytes)
{
    char *text;
    size_t length;
    assert_int_equal(nib_file_read(path, 1 << 20, &text, &length), NIB_OK);
    while (length > 0 && text[length - 1] == '\n') length--; /* a cut there would not be noticed */
    nib_buffer_append(bytes, text, length);
    nib_free(text);
}

static void model_config(void **state)
{
    (void)state;
    subject s = {"config.json", use_model_config, NIB_ERROR_DATA, {0}};
    read_into(NIB_TEST_DATA "/models/llama3_gqa/config.json", &s.bytes);
    damage(&s);
}

static void adapter_config(void **state)
{
    (void)state;
    subject s = {"adapter_config.json", use_adapter_config, NIB_ERROR_DATA, {0}};
    read_into(NIB_TEST_DATA "/peft/llama3_gqa.patterns/adapter_config.json", &s.bytes);
    damage(&s);
}

static void run_config(void **state)
{
    (void)state;
    subject s = {"run.json", use_run_config, NIB_ERROR_CONFIG, {0}};
    nib_buffer_text(&s.bytes,
                    "{\"model\": \"m\", \"output\": \"o\", \"lora\": {\"r\": 8, \"target_modules\": [\"q_proj\"]},\n"
                    " \"data\": {\"train\": [{\"path\": \"a.jsonl\", \"weight\": 0.5}], \"max_length\": 512},\n"
                    " \"train\": {\"epochs\": 1.5, \"learning_rate\": 2e-4, \"seed\": 42}}");
    damage(&s);
}

static void append_u32(nib_buffer *file, uint32_t x) { nib_buffer_append(file, &x, 4); }
static void append_u64(nib_buffer *file, uint64_t x) { nib_buffer_append(file, &x, 8); }

static void append_string(nib_buffer *file, const char *text)
{
    append_u64(file, strlen(text));
    nib_buffer_text(file, text);
}

static void append_array(nib_buffer *file, const char *key, uint32_t type, uint64_t count)
{
    append_string(file, key);
    append_u32(file, 9);
    append_u32(file, type);
    append_u64(file, count);
}

static void append_id(nib_buffer *file, const char *key, uint32_t id)
{
    append_string(file, key);
    append_u32(file, 4);
    append_u32(file, id);
}

/* The vocabulary alone, as in llama.cpp's ggml-vocab-*.gguf. model: "llama" (scores) or "gpt2" (merges). */
static void append_vocabulary(nib_buffer *file, const char *model)
{
    static const char *const tokens[] = {"<unk>", "<s>", "</s>", "a", "b", "ab", "c", "\xe2\x96\x81", "\xc4\xa0"};
    static const uint32_t types[] = {2, 3, 3, 1, 1, 1, 1, 1, 1};
    enum { COUNT = sizeof tokens / sizeof *tokens };
    bool scores = strcmp(model, "llama") == 0;
    nib_buffer_text(file, "GGUF");
    append_u32(file, 3);
    append_u64(file, 0);
    append_u64(file, 7);
    append_string(file, "tokenizer.ggml.model");
    append_u32(file, 8);
    append_string(file, model);
    append_id(file, "tokenizer.ggml.bos_token_id", 1);
    append_id(file, "tokenizer.ggml.eos_token_id", 2);
    append_array(file, "tokenizer.ggml.tokens", 8, COUNT);
    for (int i = 0; i < COUNT; i++) append_string(file, tokens[i]);
    append_array(file, "tokenizer.ggml.token_type", 5, COUNT);
    for (int i = 0; i < COUNT; i++) append_u32(file, types[i]);
    append_string(file, "tokenizer.ggml.pre");
    append_u32(file, 8);
    append_string(file, "gpt-2");
    if (scores) {
        append_array(file, "tokenizer.ggml.scores", 6, COUNT);
        for (int i = 0; i < COUNT; i++) {
            float score = (float)-i;
            nib_buffer_append(file, &score, 4);
        }
    } else {
        append_array(file, "tokenizer.ggml.merges", 8, 1);
        append_string(file, "a b");
    }
}

static void gguf_vocabulary(void **state)
{
    subject s = {"vocabulary.gguf", use_tokenizer, NIB_ERROR_DATA, {0}};
    append_vocabulary(&s.bytes, *state);
    damage(&s);
}

/* Steps of each kind that a tokenizer.json may have. */
static void tokenizer_json(void **state)
{
    (void)state;
    subject s = {"tokenizer.json", use_tokenizer, NIB_ERROR_DATA, {0}};
    nib_buffer_text(
        &s.bytes,
        "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"special\":true,\"lstrip\":false,"
        "\"rstrip\":true,"
        "\"normalized\":false,\"single_word\":false}],"
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"x\"},\"content\":\"y\"}]},"
        "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
        "\" ?\\\\p{L}+|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false},"
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},"
        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":"
        "0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],"
        "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[0],\"tokens\":[\"<s>\"]}}},"
        "\"decoder\":{\"type\":\"ByteLevel\"},"
        "\"model\":{\"type\":\"BPE\",\"unk_token\":null,\"byte_fallback\":false,\"ignore_merges\":false,"
        "\"vocab\":{\"<s>\":0,\"a\":1,\"b\":2,\"ab\":3,\"\\u0120\":4},\"merges\":[\"a b\"]}}");
    damage(&s);
}

static const nib_tokenizer *rows_tokenizer;
static const nib_chat_template *rows_template;

/* The rows, all that are there, as training reads them. */
static nib_status use_rows(const char *path)
{
    const nib_data_source source = {.path = path};
    const nib_data_options options = {.max_length = 64,
                                      .tokenizer = rows_tokenizer,
                                      .chat_template = rows_template,
                                      .bos_token = "<|im_start|>",
                                      .eos_token = "<|im_end|>"};
    nib_dataset *data;
    NIB_TRY(nib_dataset_load(&source, 1, &options, nib_tokenizer_vocabulary(rows_tokenizer), &data));
    for (int64_t i = 0; i < nib_dataset_size(data); i++) {
        nib_row row = nib_dataset_row(data, i);
        int64_t supervised = 0;
        for (int32_t t = 0; t < row.length; t++) supervised += row.supervised[t];
        assert_true(supervised > 0);
    }
    nib_dataset_free(data);
    return NIB_OK;
}

/* A row of each kind that has a syntax of its own. Of one line no cut is accepted. */
static void rows(void **state)
{
    static const char *const lines[] = {"{\"input_ids\": [3, 4, 5], \"labels\": [-100, 4, 5], \"weight\": 0.5}",
                                        "{\"prompt\": \"a b\", \"completion\": \"c \\u00e9\", \"source\": \"s\"}",
                                        "{\"messages\": [{\"role\": \"user\", \"content\": \"\xc3\xa9 a\"}, {\"role\": "
                                        "\"assistant\", \"content\": \"b\"}]}"};
    nib_tokenizer *tokenizer;
    nib_chat_template *chat_template;
    char *source;
    size_t length;
    (void)state;
    assert_int_equal(nib_tokenizer_open(NIB_TEST_DATA "/tokenizers/smollm2/tokenizer.json", &tokenizer), NIB_OK);
    assert_int_equal(nib_file_read(NIB_TEST_DATA "/chat/smollm2.jinja", 1 << 20, &source, &length), NIB_OK);
    assert_int_equal(nib_chat_template_compile("template", source, &chat_template), NIB_OK);
    rows_tokenizer = tokenizer;
    rows_template = chat_template;
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        subject s = {"rows.jsonl", use_rows, NIB_ERROR_DATA, {0}};
        nib_buffer_text(&s.bytes, lines[i]);
        damage(&s);
    }
    nib_chat_template_free(chat_template);
    nib_tokenizer_free(tokenizer);
    nib_free(source);
}

static int setup(void **state)
{
    descriptor = memfd_create("input", 0);
    return descriptor >= 0 && make_folder(state) == 0 ? 0 : -1;
}

static int teardown(void **state)
{
    close(descriptor);
    return remove_folder(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_config),
        cmocka_unit_test(adapter_config),
        cmocka_unit_test(run_config),
        cmocka_unit_test(tokenizer_json),
        cmocka_unit_test(rows),
        {"SentencePiece vocabulary of a GGUF", gguf_vocabulary, NULL, NULL, (void *)"llama"},
        {"byte-level vocabulary of a GGUF", gguf_vocabulary, NULL, NULL, (void *)"gpt2"},
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
