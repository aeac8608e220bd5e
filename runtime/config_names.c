#include "config_names.h"

#include <stddef.h>
#include <string.h>

static const struct {
    const char *foreign, *here;
} names[] = {
    {"num_train_epochs", "train.epochs"},
    {"num_epochs", "train.epochs"},
    {"lora_r", "lora.r"},
    {"lora_rank", "lora.r"},
    {"rank", "lora.r"},
    {"alpha", "lora.lora_alpha"},
    {"lora_alpha", "lora.lora_alpha"},
    {"lora_dropout", "lora.lora_dropout"},
    {"dropout", "lora.lora_dropout"},
    {"lora_target_modules", "lora.target_modules"},
    {"lora_target", "lora.target_modules"},
    {"lora_target_linear", "lora.target_modules"},
    {"lora_model_dir", "lora.init_adapter"},
    {"adapter_name_or_path", "lora.init_adapter"},
    {"micro_batch_size", "train.micro_batch_tokens"},
    {"per_device_train_batch_size", "train.batch_size"},
    {"train_batch_size", "train.batch_size"},
    {"global_batch_size", "train.batch_size"},
    {"gradient_accumulation_steps", "train.slots"},
    {"lr", "train.learning_rate"},
    {"lr_scheduler", "train.scheduler"},
    {"lr_scheduler_type", "train.scheduler"},
    {"optim", "train.optimizer"},
    {"optimizer_name", "train.optimizer"},
    {"max_norm", "train.max_grad_norm"},
    {"gradient_clipping", "train.max_grad_norm"},
    {"bf16", "train.compute"},
    {"fp16", "train.compute"},
    {"fp8", "train.compute"},
    {"dtype", "train.compute"},
    {"torch_dtype", "train.compute"},
    {"random_seed", "train.seed"},
    {"base_model", "model"},
    {"model_name_or_path", "model"},
    {"model_path", "model"},
    {"tokenizer_path", "tokenizer"},
    {"tokenizer_name", "tokenizer"},
    {"output_dir", "output"},
    {"load_in_4bit", "quantization"},
    {"load_in_8bit", "quantization"},
    {"datasets", "data.train"},
    {"dataset", "data.train"},
    {"train_file", "data.train"},
    {"test_datasets", "data.eval"},
    {"validation_file", "data.eval"},
    {"eval_dataset", "data.eval"},
    {"max_seq_length", "data.max_length"},
    {"max_seq_len", "data.max_length"},
    {"sequence_len", "data.max_length"},
    {"cutoff_len", "data.max_length"},
    {"sample_packing", "data.pack"},
    {"packing", "data.pack"},
    {"train_on_inputs", "data.train_on"},
    {"train_on_input", "data.train_on"},
    {"template", "data.chat_template"},
    {"eval_steps", "evaluate.every_steps"},
    {"save_steps", "checkpoint.every_steps"},
    {"save_total_limit", "checkpoint.keep"},
};

static const char *last_part(const char *key)
{
    const char *dot = strrchr(key, '.');
    return dot == NULL ? key : dot + 1;
}

const char *nib_config_foreign_name(const char *key)
{
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(last_part(key), names[i].foreign) == 0) return names[i].here;
    return NULL;
}

#define MAX_LENGTH 64 /* longer keys are compared by their beginning */

static int distance(const char *a, const char *b)
{
    int row[MAX_LENGTH + 1];
    int m = (int)strnlen(a, MAX_LENGTH), n = (int)strnlen(b, MAX_LENGTH);
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; i <= m; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

const char *nib_config_nearest_name(const char *key, const char *const *valid, int count)
{
    const char *nearest = valid[0];
    int least = 1 << 20;
    for (int i = 0; i < count; i++) {
        int whole = 2 * distance(key, valid[i]), part = 2 * distance(last_part(key), last_part(valid[i])) + 1;
        int here = whole < part ? whole : part;
        if (here < least) {
            least = here;
            nearest = valid[i];
        }
    }
    return nearest;
}
