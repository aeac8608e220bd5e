/* The adapter's tensors: initial values, and PEFT's files. */
#include "base/random.h"
#include "formats/safetensors_writer.h"
#include "model/model_internal.h"

#include <math.h>
#include <string.h>

static bool is_lora_a(const nib_parameter *parameter) { return strstr(parameter->name, ".lora_A.") != NULL; }

/* The shape of a parameter in PEFT's files: magnitudes are a vector. */
static int rank_of(const nib_parameter *parameter) { return strstr(parameter->name, NIB_MAGNITUDE) != NULL ? 1 : 2; }

/* Fills values [rows, columns] of the index-th parameter on the host, which is zeroed. */
typedef nib_status (*fill_values)(void *user, const nib_parameter *parameter, size_t index, float *values);

static nib_status fill_all(nib_model *model, fill_values fill, void *user)
{
    for (size_t i = 0; i < model->parameter_count; i++) {
        const nib_parameter *p = &model->parameters[i];
        size_t bytes = (size_t)(p->rows * p->columns) * sizeof(float);
        float *values = nib_calloc(1, bytes);
        if (values == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its values", p->name);
        nib_status status = fill(user, p, i, values);
        if (status == NIB_OK) status = model->ops->upload(model->ops, p->master, values, bytes);
        nib_free(values);
        NIB_TRY(status);
    }
    return NIB_OK;
}

/* A: Kaiming-uniform with a = sqrt(5) as in PEFT, which is U(-1/sqrt(K), 1/sqrt(K)); B: zero; magnitudes: zero until
 * there are norms (dora.c). */
static nib_status initial_values(void *user, const nib_parameter *parameter, size_t index, float *values)
{
    const uint64_t *seed = user;
    if (!is_lora_a(parameter)) return NIB_OK;
    uint64_t key = nib_random_key(*seed, index);
    float bound = (float)(1.0 / sqrt((double)parameter->columns));
    int64_t n = parameter->rows * parameter->columns;
    for (int64_t i = 0; i < n; i += 4) {
        uint32_t word[4];
        nib_philox(key, 0, (uint64_t)(i / 4), word);
        for (int64_t j = i; j < i + 4 && j < n; j++) values[j] = bound * (2.0f * nib_uniform(word[j - i]) - 1.0f);
    }
    return NIB_OK;
}

nib_status nib_adapter_initialize(nib_model *model) { return fill_all(model, initial_values, &model->options.seed); }

static nib_status stored_values(void *user, const nib_parameter *parameter, size_t index, float *values)
{
    const nib_tensor_set *set = user;
    (void)index;
    const nib_tensor_view *tensor = nib_tensor_set_find(set, parameter->name);
    if (tensor == NULL)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: tensor \"%s\" is missing, which its adapter_config.json asks for on this model",
                        nib_tensor_set_at(set, 0)->file->path, parameter->name);
    nib_status status = rank_of(parameter) == 1
                            ? nib_tensor_expect_shape(tensor, 1, parameter->columns)
                            : nib_tensor_expect_shape(tensor, 2, parameter->rows, parameter->columns);
    if (status != NIB_OK) return nib_error_context(status, "adapter of another model, or of another rank");
    NIB_TRY(nib_tensor_read_float(tensor, 0, tensor->count, values));
    for (int64_t i = 0; i < tensor->count; i++)
        if (!isfinite(values[i]))
            return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" holds NaN or Inf; the adapter is damaged",
                            tensor->file->path, tensor->name);
    return NIB_OK;
}

static nib_status check_surplus(const nib_model *model, const nib_tensor_set *set)
{
    for (size_t i = 0; i < nib_tensor_set_count(set); i++) {
        const nib_tensor_view *tensor = nib_tensor_set_at(set, i);
        bool known = false;
        for (size_t j = 0; j < model->parameter_count && !known; j++)
            known = strcmp(model->parameters[j].name, tensor->name) == 0;
        if (!known)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s: tensor \"%s\" has no place in this model; is it another model's adapter?",
                            tensor->file->path, tensor->name);
    }
    return NIB_OK;
}

nib_status nib_adapter_load(nib_model *model, const char *folder)
{
    nib_tensor_set *set = NULL;
    nib_status status = NIB_OK;
    char *path = nib_path_join(folder, "adapter_model.safetensors");
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a file name", folder);
    NIB_TRY_GOTO(nib_tensor_set_open(path, &set), done);
    if (nib_tensor_set_count(set) == 0) {
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: holds no tensor", path);
        goto done;
    }
    NIB_TRY_GOTO(fill_all(model, stored_values, set), done);
    status = check_surplus(model, set);
done:
    nib_tensor_set_close(set);
    nib_free(path);
    return status;
}

static nib_status write_tensors(const nib_model *model, nib_safetensors_writer *writer)
{
    for (size_t i = 0; i < model->parameter_count; i++) {
        const nib_parameter *p = &model->parameters[i];
        const int64_t shape[] = {p->rows, p->columns};
        NIB_TRY(nib_safetensors_writer_declare(writer, p->name, NIB_DTYPE_F32, rank_of(p), shape + 2 - rank_of(p)));
    }
    for (size_t i = 0; i < model->parameter_count; i++) {
        const nib_parameter *p = &model->parameters[i];
        size_t bytes = (size_t)(p->rows * p->columns) * sizeof(float);
        float *values = nib_calloc(1, bytes);
        if (values == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to write it", p->name);
        nib_status status = model->ops->download(model->ops, values, p->master, bytes);
        if (status == NIB_OK) status = nib_safetensors_writer_data(writer, values, bytes);
        nib_free(values);
        NIB_TRY(status);
    }
    return NIB_OK;
}

nib_status nib_model_save_adapter(const nib_model *model, const char *folder, const char *base_name)
{
    nib_status status = NIB_OK;
    nib_buffer json = {0};
    nib_safetensors_writer *writer = NULL;
    if (model->lora == NULL) return NIB_FAIL(NIB_ERROR_INTERNAL, "%s: the model has no adapter to save", folder);
    char *tensors = nib_path_join(folder, "adapter_model.safetensors");
    if (tensors == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a file name", folder);
        goto done;
    }
    NIB_TRY_GOTO(nib_lora_config_write(model->lora, base_name, &json), done);
    NIB_TRY_GOTO(nib_file_make_folders(folder), done);
    NIB_TRY_GOTO(nib_safetensors_writer_begin(tensors, &writer), done);
    NIB_TRY_GOTO(nib_safetensors_writer_metadata(writer, "format", "pt"), done);
    NIB_TRY_GOTO(write_tensors(model, writer), done);
    status = nib_safetensors_writer_finish(writer, NULL);
    writer = NULL;
    if (status == NIB_OK) status = nib_file_replace_text(folder, "adapter_config.json", &json);
done:
    if (writer != NULL) nib_safetensors_writer_abandon(writer);
    nib_buffer_free(&json);
    nib_free(tensors);
    return status;
}
