#include "tensorboard.h"
#include "base/file.h"
#include "base/json.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define EVENT_FILE        "events.out.tfevents."
#define MAX_METRICS_BYTES ((size_t)4 << 30)

uint32_t nib_crc32c(const void *bytes, size_t length)
{
    const uint8_t *at = bytes;
    uint32_t crc = ~0u;
    for (size_t i = 0; i < length; i++) {
        crc ^= at[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

/* TensorFlow stores CRCs rotated and offset, so that a CRC over data with CRCs inside stays useful. */
static uint32_t masked_crc(const void *bytes, size_t length)
{
    uint32_t crc = nib_crc32c(bytes, length);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void little_endian(nib_buffer *out, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) nib_buffer_char(out, (char)(value >> 8 * i & 0xff));
}

static void varint(nib_buffer *out, uint64_t value)
{
    for (; value >= 0x80; value >>= 7) nib_buffer_char(out, (char)(value | 0x80));
    nib_buffer_char(out, (char)value);
}

enum { WIRE_VARINT, WIRE_64, WIRE_BYTES, WIRE_32 = 5 };

static void field_key(nib_buffer *out, int number, int wire) { varint(out, (uint64_t)number << 3 | (uint64_t)wire); }

static void field_bytes(nib_buffer *out, int number, const void *bytes, size_t length)
{
    field_key(out, number, WIRE_BYTES);
    varint(out, length);
    nib_buffer_append(out, bytes, length);
}

static void field_double(nib_buffer *out, int number, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    field_key(out, number, WIRE_64);
    little_endian(out, bits, 8);
}

static void record(nib_buffer *out, const nib_buffer *event)
{
    size_t start = out->length;
    little_endian(out, event->length, 8);
    if (!out->failed) little_endian(out, masked_crc(out->data + start, 8), 4);
    nib_buffer_append(out, event->data, event->length);
    little_endian(out, masked_crc(event->data, event->length), 4);
    out->failed |= event->failed;
}

void nib_tensorboard_scalar(nib_buffer *out, double time, int64_t step, const char *tag, float number)
{
    nib_buffer value = {0}, summary = {0}, event = {0};
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    field_bytes(&value, 1, tag, strlen(tag)); /* Summary.Value.tag */
    field_key(&value, 2, WIRE_32);            /* Summary.Value.simple_value */
    little_endian(&value, bits, 4);
    field_bytes(&summary, 1, value.data, value.length); /* Summary.value */
    field_double(&event, 1, time);                      /* Event.wall_time */
    if (step != 0) {                                    /* zero is the default, which protobuf leaves out */
        field_key(&event, 2, WIRE_VARINT);              /* Event.step */
        varint(&event, (uint64_t)step);
    }
    field_bytes(&event, 5, summary.data, summary.length); /* Event.summary */
    event.failed |= value.failed || summary.failed;
    record(out, &event);
    nib_buffer_free(&value);
    nib_buffer_free(&summary);
    nib_buffer_free(&event);
}

/* What readers expect first: the format's version; then a session's start, at which TensorBoard drops the run's steps
 * from there on that it knows already (event_accumulator.py, _CheckForRestartAndMaybePurge). */
static void head(nib_buffer *out, double now)
{
    static const char version[] = "brain.Event:2", start[] = {1 << 3 | WIRE_VARINT, 1}; /* SessionLog.status = START */
    nib_buffer event = {0};
    field_double(&event, 1, now);
    field_bytes(&event, 3, version, sizeof version - 1); /* Event.file_version */
    record(out, &event);
    nib_buffer_clear(&event);
    field_double(&event, 1, now);
    field_bytes(&event, 7, start, sizeof start); /* Event.session_log */
    record(out, &event);
    nib_buffer_free(&event);
}

static const struct {
    const char *event, *key, *tag;
} scalars[] = {
    {"step", "loss", "train/loss"},
    {"step", "grad_norm", "train/grad_norm"},
    {"step", "learning_rate", "train/learning_rate"},
    {"step", "tokens_per_second", "train/tokens_per_second"},
    {"before", "loss", "eval/loss"},
    {"before", "perplexity", "eval/perplexity"},
    {"before", "exact_match", "eval/exact_match"},
    {"eval", "loss", "eval/loss"},
    {"eval", "perplexity", "eval/perplexity"},
    {"eval", "exact_match", "eval/exact_match"},
};

static nib_status encode_line(const char *name, const char *line, size_t length, nib_buffer *out)
{
    nib_pool pool = {0};
    nib_json *root;
    const char *event;
    int64_t step, seconds;
    nib_status status = nib_json_parse(name, line, length, (nib_json_options){0}, &pool, &root);
    if (status != NIB_OK) goto done;
    NIB_TRY_GOTO(nib_json_read_string(name, root, "event", "", &event), done);
    NIB_TRY_GOTO(nib_json_read_int(name, root, "step", 0, INT64_MAX, 0, &step), done);
    NIB_TRY_GOTO(nib_json_read_int(name, root, "time", 0, INT64_MAX, 0, &seconds), done);
    for (size_t i = 0; i < sizeof scalars / sizeof scalars[0]; i++) {
        const nib_json *value = nib_json_get(root, scalars[i].key);
        if (strcmp(event, scalars[i].event) == 0 && nib_json_is(value, NIB_JSON_NUMBER))
            nib_tensorboard_scalar(out, (double)seconds, step, scalars[i].tag, (float)value->number);
    }
    if (out->failed) status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for events", name);
done:
    nib_pool_free(&pool);
    return status;
}

static nib_status replay(const char *metrics, nib_buffer *out)
{
    char *text;
    size_t length;
    nib_status status = NIB_OK;
    NIB_TRY(nib_file_read(metrics, MAX_METRICS_BYTES, &text, &length));
    for (size_t at = 0; at < length && status == NIB_OK;) {
        const char *end = memchr(text + at, '\n', length - at);
        size_t line = end == NULL ? length - at : (size_t)(end - text) - at;
        status = encode_line(metrics, text + at, line, out);
        at += line + 1;
    }
    nib_free(text);
    return status;
}

/* Removes the folder's event files; *newest is the largest TIME of their names, 0 if there is none. */
static nib_status remove_old(const char *folder, long long *newest)
{
    nib_status status = NIB_OK;
    *newest = 0;
    DIR *directory = opendir(folder);
    if (directory == NULL) return NIB_FAIL(NIB_ERROR_IO, "%s: cannot be listed: %s", folder, strerror(errno));
    for (const struct dirent *entry; status == NIB_OK && (entry = readdir(directory)) != NULL;) {
        if (strncmp(entry->d_name, EVENT_FILE, strlen(EVENT_FILE)) != 0) continue;
        long long made = strtoll(entry->d_name + strlen(EVENT_FILE), NULL, 10);
        if (made > *newest) *newest = made;
        if (unlinkat(dirfd(directory), entry->d_name, 0) != 0)
            status = NIB_FAIL(NIB_ERROR_IO, "%s/%s: cannot be removed: %s", folder, entry->d_name, strerror(errno));
    }
    closedir(directory);
    return status;
}

/* A name that sorts behind every one before, also within a second: readers take files in the order of names. */
static nib_status take_name(const char *folder, long long now, nib_tensorboard *board)
{
    long long newest;
    char host[256], name[320];
    NIB_TRY(remove_old(folder, &newest));
    if (gethostname(host, sizeof host) != 0) snprintf(host, sizeof host, "localhost");
    host[sizeof host - 1] = 0;
    snprintf(name, sizeof name, EVENT_FILE "%010lld.%s", now > newest ? now : newest + 1, host);
    board->path = nib_path_join(folder, name);
    return board->path == NULL ? NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", folder) : NIB_OK;
}

nib_status nib_tensorboard_open(const char *folder, const char *metrics, nib_tensorboard *board)
{
    time_t now = time(NULL);
    nib_buffer events = {0};
    *board = (nib_tensorboard){.fd = -1};
    head(&events, (double)now);
    nib_status status = replay(metrics, &events);
    if (status != NIB_OK) goto done;
    if (events.failed) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for events", folder);
        goto done;
    }
    NIB_TRY_GOTO(take_name(folder, now, board), done);
    NIB_TRY_GOTO(nib_file_replace(board->path, events.data, events.length), done);
    board->fd = open(board->path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (board->fd < 0) status = NIB_FAIL(NIB_ERROR_IO, "%s: cannot be opened: %s", board->path, strerror(errno));
done:
    nib_buffer_free(&events);
    if (status != NIB_OK) nib_tensorboard_close(board);
    return status;
}

void nib_tensorboard_close(nib_tensorboard *board)
{
    if (board->path == NULL) return; /* also a zero-initialised one: descriptor 0 is not ours */
    if (board->fd >= 0) close(board->fd);
    nib_free(board->path);
    *board = (nib_tensorboard){.fd = -1};
}

nib_status nib_tensorboard_line(nib_tensorboard *board, const char *line, size_t length)
{
    nib_buffer events = {0};
    nib_status status = encode_line(board->path, line, length, &events);
    if (status == NIB_OK && events.length > 0)
        status = nib_file_write_all(board->fd, events.data, events.length, board->path);
    nib_buffer_free(&events);
    return status;
}
