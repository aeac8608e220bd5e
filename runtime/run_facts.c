#include "run_facts.h"
#include "base/file.h"
#include "cpu/backend.h"
#include "machine.h"
#include "version.h"

#include <string.h>

static void put_string(nib_buffer *out, const char *key, const char *text)
{
    nib_buffer_format(out, "\"%s\": ", key);
    nib_buffer_json_string(out, text, strlen(text), false);
}

static void put_program(nib_buffer *out, const nib_training *t)
{
    nib_machine machine;
    nib_machine_read(&machine);
    nib_buffer_text(out, "  ");
    put_string(out, "version", nib_version());
    nib_buffer_text(out, ", ");
    put_string(out, "commit", nib_commit());
    nib_buffer_text(out, ", ");
    put_string(out, "backend", t->ops->name);
    nib_buffer_text(out, ",\n  ");
    put_string(out, "processor", machine.processor);
    nib_buffer_format(out, ", \"processors\": %d, \"threads\": %d, ", machine.processors, machine.threads);
    put_string(out, "instructions", nib_cpu_features());
    nib_buffer_format(out, ", \"memory_bytes\": %zu, ", machine.memory);
    put_string(out, "system", machine.system);
    nib_buffer_text(out, ",\n");
}

static void put_model(nib_buffer *out, const nib_training *t)
{
    const nib_memory_class *classes;
    int64_t trained = 0;
    int count = nib_model_memory(t->model, &classes);
    for (int i = 0; i < t->parameter_count; i++) trained += t->parameters[i].rows * t->parameters[i].columns;
    nib_buffer_format(out, "  \"steps\": %lld, \"trained_parameters\": %lld,\n  \"memory\": [",
                      (long long)t->schedule.steps, (long long)trained);
    for (int i = 0; i < count; i++) {
        nib_buffer_text(out, i == 0 ? "\n    {" : ",\n    {");
        put_string(out, "name", classes[i].name);
        nib_buffer_format(out, ", \"bytes\": %zu}", classes[i].bytes);
    }
    nib_buffer_text(out, "\n  ],\n");
}

static void put_sources(nib_buffer *out, const nib_dataset *dataset, const char *use, bool *first)
{
    for (int i = 0; dataset != NULL && i < nib_dataset_sources(dataset); i++) {
        const nib_source_report *r = nib_dataset_report(dataset, i);
        nib_buffer_text(out, *first ? "\n    {" : ",\n    {");
        *first = false;
        put_string(out, "name", r->name != NULL ? r->name : r->path);
        nib_buffer_format(out,
                          ", \"use\": \"%s\", \"rows\": %lld, \"samples\": %lld, \"tokens\": %lld, "
                          "\"supervised_tokens\": %lld, \"longest\": %lld, \"duplicates\": %lld, \"over_long\": %lld}",
                          use, (long long)r->rows, (long long)r->samples, (long long)r->tokens,
                          (long long)r->supervised_tokens, (long long)r->longest, (long long)r->duplicates,
                          (long long)(r->dropped + r->truncated + r->split));
    }
}

nib_status nib_run_facts_write(const nib_training *t)
{
    nib_buffer out = {0};
    bool first = true;
    nib_buffer_text(&out, "{\n");
    put_program(&out, t);
    put_model(&out, t);
    nib_buffer_text(&out, "  \"data\": [");
    put_sources(&out, t->train, "train", &first);
    put_sources(&out, t->eval, "evaluate", &first);
    nib_buffer_text(&out, "\n  ]\n}\n");
    nib_status status = nib_file_replace_text(t->folder.path, "run.json", &out);
    nib_buffer_free(&out);
    return status;
}
