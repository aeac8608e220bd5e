#include "metrics.h"
#include "base/file.h"
#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#define MAX_METRICS_BYTES ((size_t)4 << 30)

static bool belongs(const char *path, const char *line, size_t length, int64_t steps)
{
    nib_pool pool = {0};
    nib_json *root;
    int64_t step = INT64_MAX;
    const char *event = "";
    bool keeps = nib_json_parse(path, line, length, (nib_json_options){0}, &pool, &root) == NIB_OK &&
                 nib_json_read_int(path, root, "step", 0, INT64_MAX, INT64_MAX, &step) == NIB_OK &&
                 nib_json_read_string(path, root, "event", "", &event) == NIB_OK;
    keeps = keeps && (strcmp(event, "step") == 0 ? step < steps : step <= steps && strcmp(event, "end") != 0);
    nib_pool_free(&pool);
    return keeps;
}

static nib_status drop_beyond(const char *path, int64_t steps)
{
    char *text = NULL;
    size_t length = 0;
    nib_buffer kept = {0};
    if (steps > 0 && nib_file_exists(path)) NIB_TRY(nib_file_read(path, MAX_METRICS_BYTES, &text, &length));
    for (size_t at = 0; at < length;) {
        const char *end = memchr(text + at, '\n', length - at);
        if (end == NULL) break;
        size_t line = (size_t)(end - text) - at;
        if (belongs(path, text + at, line, steps)) nib_buffer_append(&kept, text + at, line + 1);
        at += line + 1;
    }
    nib_status status = kept.failed ? NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it", path)
                                    : nib_file_replace(path, kept.length == 0 ? "" : kept.data, kept.length);
    nib_free(text);
    nib_buffer_free(&kept);
    return status;
}

nib_status nib_metrics_open(const char *path, const char *tensorboard, int64_t steps, nib_metrics *metrics)
{
    *metrics = (nib_metrics){.fd = -1, .path = path};
    NIB_TRY(drop_beyond(path, steps));
    metrics->fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (metrics->fd < 0) return NIB_FAIL(NIB_ERROR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    return nib_tensorboard_open(tensorboard, path, &metrics->board);
}

void nib_metrics_close(nib_metrics *metrics)
{
    if (metrics->fd >= 0) close(metrics->fd);
    nib_tensorboard_close(&metrics->board);
    metrics->fd = -1;
}

nib_status nib_metrics_line(nib_metrics *metrics, nib_buffer *object)
{
    nib_buffer_text(object, "}\n");
    nib_status status = object->failed ? NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a line", metrics->path)
                                       : nib_file_write_all(metrics->fd, object->data, object->length, metrics->path);
    if (status == NIB_OK) status = nib_tensorboard_line(&metrics->board, object->data, object->length - 1);
    nib_buffer_clear(object);
    return status;
}

void nib_metrics_number(nib_buffer *object, const char *key, double value)
{
    if (isfinite(value))
        nib_buffer_format(object, ",\"%s\":%.17g", key, value);
    else
        nib_buffer_format(object, ",\"%s\":null", key);
}
