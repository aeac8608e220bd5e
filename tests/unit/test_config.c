/* The configuration: defaults and resolved copy, overrides, and every kind of error with its file, line and advice. */
#include "check.h"

#include "base/file.h"
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];

static void write_file(const char *text)
{
    strcpy(path, "/tmp/nibble-config-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(nib_file_write_all(fd, text, strlen(text), path), NIB_OK);
    close(fd);
}

#define BASE "\"model\": \"m\", \"output\": \"out\", \"data\": {\"train\": [{\"path\": \"a.jsonl\"}]}"

static void defaults_are_those_of_the_manual(void **state)
{
    (void)state;
    nib_config c;
    write_file("{" BASE "} // comments are allowed\n");
    assert_int_equal(nib_config_read(path, NULL, 0, &c), NIB_OK);
    assert_string_equal(c.model, "/tmp/m");
    assert_string_equal(c.output, "/tmp/out");
    assert_string_equal(c.data.train.source[0].path, "/tmp/a.jsonl");
    assert_null(c.tokenizer);
    assert_int_equal(c.quantization, NIB_QUANT_NF4);
    assert_true(c.has_lora && c.lora.targets.all_linear && !c.lora.rslora);
    assert_int_equal(c.lora.r, 16);
    assert_true(c.lora.alpha == 32 && c.lora.dropout == 0);
    assert_int_equal(c.data.max_length, 1024);
    assert_int_equal(c.data.over_long, NIB_OVER_LONG_ERROR);
    assert_true(c.data.shuffle && c.data.pack && c.data.share_prefixes);
    assert_true(c.train.epochs == 3 && c.train.learning_rate == 2e-4 && c.train.warmup_ratio == 0.03);
    assert_true(c.train.beta1 == 0.9 && c.train.beta2 == 0.999 && c.train.epsilon == 1e-8);
    assert_int_equal(c.train.batch_size, 32);
    assert_int_equal(c.train.max_steps, NIB_CONFIG_UNSET);
    assert_int_equal(c.train.seed, 42);
    assert_int_equal(c.evaluate.every_steps, 50);
    assert_int_equal(c.checkpoint.keep, 2);
    nib_config_free(&c);
    unlink(path);
}

/* text: what replaces %s in {BASE, %s}; or a whole file if it begins with '{'. want: part of the message. */
static const struct {
    const char *text, *want;
} errors[] = {
    {"\n\"trian\": {}", ":2: unknown key \"trian\": the nearest valid key is \"train\""},
    {"\"train\": {\n\"learning_rte\": 1}", ":2: unknown key \"train.learning_rte\": the nearest valid key is "
                                           "\"train.learning_rate\""},
    {"\"learning_rate\": 1", "the nearest valid key is \"train.learning_rate\""},
    {"\"num_train_epochs\": 3", ":1: unknown key \"num_train_epochs\": called \"train.epochs\" here"},
    {"\"lora_r\": 3", "called \"lora.r\" here"},
    {"\"lora_alpha\": 3", "called \"lora.lora_alpha\" here"},
    {"\"train\": {\"micro_batch_size\": 3}", "called \"train.micro_batch_tokens\" here"},
    {"\"per_device_train_batch_size\": 3", "called \"train.batch_size\" here"},
    {"\"gradient_accumulation_steps\": 3", "called \"train.slots\" here"},
    {"\"train.epochs\": 3", "unknown key \"train.epochs\""},
    {"\"lora\": {\"r\": 1,\n \"r\": 2}", "duplicate"},
    {"\"lora\": {\"r\": 1.5}", "\"lora.r\" is a number, expected an integer"},
    {"\"lora\": {\"r\": 0}", "\"lora.r\" is 0, expected 1 to 4096"},
    {"\"lora\": {\"lora_dropout\": 1}", "\"lora.lora_dropout\" is 1, expected 0 to 0.99"},
    {"\"lora\": {\"target_modules\": []}", "\"lora.target_modules\" is an array"},
    {"\"lora\": {\"target_modules\": [3]}", "expected a module name"},
    {"\"lora\": 3", "\"lora\" is a number, expected an object"},
    {"\"lora\": null", "needs \"quantization\": \"none\""},
    {"\"train\": null", "\"train\" is null"},
    {"\"train\": {\"epochs\": 0}", "\"train.epochs\" is 0, expected above 0"},
    {"\"train\": {\"epochs\": \"3\"}", "\"train.epochs\" is a string, expected a number"},
    {"\"train\": {\"batch_size\": null}", "\"train.batch_size\" is null"},
    {"\"train\": {\"seed\": -1}", "\"train.seed\" is -1"},
    {"\"train\": {\"scheduler\": \"step\"}", "\"train.scheduler\" is \"step\", expected one of cosine|linear|constant"},
    {"\"quantization\": \"int8\"", "\"quantization\" is \"int8\", expected one of none|nf4"},
    {"\"evaluate\": {\"early_stopping_patience\": 2}", "needs \"data.eval\""},
    {"\"evaluate\": {\"generate\": 2}", "needs \"data.eval\""},
    {"\"tokenizer\": \"\"", "\"tokenizer\" is empty"},
    {"{\"output\": \"o\", \"data\": {\"train\": [{\"path\": \"a\"}]}}", "\"model\" is missing"},
    {"{\"model\": \"m\", \"output\": \"o\"}", "\"data.train\" is missing"},
    {"{\"model\": \"m\", \"output\": \"o\", \"data\": {\"train\": []}}", "\"data.train\" is empty"},
    {"{\"model\": \"m\", \"output\": \"o\", \"data\": {\"train\": [{}]}}", "has no \"path\""},
    {"{\"model\": \"m\", \"output\": \"o\", \"data\": {\"train\": [{\"path\": \"a\", \"weight\": 2}]}}",
     "\"weight\" is 2"},
    {"{\"model\": \"m\", \"output\": \"o\", \"data\": {\"train\": [{\"file\": \"a\"}]}}", "unknown key \"file\""},
    {"{\"model\": \"m\",\n nonsense}", ":2:"},
    {"{} trailing", "not valid JSON"},
};

static void every_error_names_line_and_remedy(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        char text[1024];
        nib_config c;
        snprintf(text, sizeof text, errors[i].text[0] == '{' ? "%s" : "{" BASE ", %s}", errors[i].text);
        write_file(text);
        nib_status status = nib_config_read(path, NULL, 0, &c);
        if (status != NIB_ERROR_CONFIG || strstr(nib_error_message(), errors[i].want) == NULL)
            fail_msg("%s\ngave %d: %s\nwanted: %s", text, (int)status, nib_error_message(), errors[i].want);
        assert_int_equal(nib_exit_code(status), 78);
        assert_non_null(strstr(nib_error_message(), path));
        unlink(path);
    }
}

static void overrides_win_and_are_checked(void **state)
{
    (void)state;
    nib_config c;
    write_file("{" BASE ", \"train\": {\"epochs\": 2}}");
    const char *good[] = {"train.epochs=0.5", "train.scheduler=linear", "lora.target_modules=[\"q_proj\"]",
                          "output=x y", "train.max_steps=null"};
    assert_int_equal(nib_config_read(path, good, 5, &c), NIB_OK);
    assert_true(c.train.epochs == 0.5);
    assert_int_equal(c.train.scheduler, NIB_SCHEDULER_LINEAR);
    assert_int_equal(c.lora.targets.count, 1);
    assert_string_equal(c.lora.targets.name[0], "q_proj");
    assert_string_equal(c.output, "/tmp/x y");
    nib_config_free(&c);
    const char *bad[] = {"train.epochs=-1"}, *unknown[] = {"lr=3"}, *shapeless[] = {"train"};
    assert_int_equal(nib_config_read(path, bad, 1, &c), NIB_ERROR_CONFIG);
    assert_non_null(strstr(nib_error_message(), "--set train.epochs=-1: \"train.epochs\" is -1"));
    assert_int_equal(nib_config_read(path, unknown, 1, &c), NIB_ERROR_CONFIG);
    assert_non_null(strstr(nib_error_message(), "called \"train.learning_rate\" here"));
    assert_int_equal(nib_config_read(path, shapeless, 1, &c), NIB_ERROR_USAGE);
    unlink(path);
}

static void resolved_copy_reads_back_as_itself(void **state)
{
    (void)state;
    nib_config first, second;
    nib_buffer text = {0}, again = {0}, differences = {0};
    write_file(
        "{" BASE
        ", \"train\": {\"learning_rate\": 0.00017, \"slots\": 3, \"epochs\": 400}, \"checkpoint\": {\"keep\": 5}}");
    assert_int_equal(nib_config_read(path, NULL, 0, &first), NIB_OK);
    unlink(path);
    assert_int_equal(nib_config_write(&first, &text), NIB_OK);
    assert_non_null(strstr(text.data, "\"epochs\": 400,"));
    assert_non_null(strstr(text.data, "\"learning_rate\": 0.00017,"));
    write_file(text.data);
    const char *changes[] = {"checkpoint.keep=9", "train.slots=4"};
    assert_int_equal(nib_config_read(path, NULL, 0, &second), NIB_OK);
    assert_int_equal(nib_config_write(&second, &again), NIB_OK);
    assert_string_equal(text.data, again.data);
    nib_config_free(&second);
    assert_int_equal(nib_config_read(path, changes, 2, &second), NIB_OK);
    nib_config_differences(&first, &second, &differences);
    assert_string_equal(differences.data, "train.slots: was 3, now 4\n");
    const char *moved[] = {"model=/elsewhere/m", "tokenizer=/elsewhere/t"};
    nib_buffer_clear(&differences);
    nib_config_free(&second);
    assert_int_equal(nib_config_read(path, moved, 2, &second), NIB_OK);
    nib_config_differences(&first, &second, &differences);
    assert_non_null(differences.data);
    assert_string_equal(differences.data, "tokenizer: was null, now \"/elsewhere/t\"\n");
    nib_config_free(&first);
    nib_config_free(&second);
    nib_buffer_free(&text);
    nib_buffer_free(&again);
    nib_buffer_free(&differences);
    unlink(path);
}

/* The resolved copy lies in another folder, so no path in it may depend on where it was read. */
static void paths_are_absolute(void **state)
{
    (void)state;
    nib_config c;
    write_file("{\"model\": \"~/m\", \"output\": \"/o\", \"data\": {\"train\": [{\"path\": \"../a\"}]}}");
    char current[4096];
    assert_non_null(getcwd(current, sizeof current));
    assert_int_equal(chdir("/tmp"), 0);
    setenv("HOME", "/home/someone", 1);
    assert_int_equal(nib_config_read(path + strlen("/tmp/"), NULL, 0, &c), NIB_OK);
    assert_string_equal(c.model, "/home/someone/m");
    assert_string_equal(c.output, "/o");
    assert_string_equal(c.data.train.source[0].path, "/tmp/../a");
    assert_int_equal(chdir(current), 0);
    nib_config_free(&c);
    unlink(path);
}

static void absent_file_is_a_bad_config(void **state)
{
    (void)state;
    nib_config c;
    assert_int_equal(nib_config_read("/nonexistent/c.json", NULL, 0, &c), NIB_ERROR_CONFIG);
    assert_non_null(strstr(nib_error_message(), "/nonexistent/c.json"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_manual),
        cmocka_unit_test(every_error_names_line_and_remedy),
        cmocka_unit_test(overrides_win_and_are_checked),
        cmocka_unit_test(resolved_copy_reads_back_as_itself),
        cmocka_unit_test(paths_are_absolute),
        cmocka_unit_test(absent_file_is_a_bad_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
