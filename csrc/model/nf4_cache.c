#include "model/nf4_cache.h"
#include "base/buffer.h"
#include "base/json.h"
#include "base/log.h"
#include "base/sha256.h"
#include "formats/safetensors_writer.h"
#include "model/weight_hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define PIECE_ELEMENTS ((int64_t)1024 * 1024)

/* What is needed of one tensor at a time. All sizes are those of the largest linear. */
typedef struct {
    nib_ops *ops;
    const nib_weight_source *source;
    nib_safetensors_writer *writer;
    int64_t elements; /* of the largest linear */
    int64_t piece;    /* values converted at a time, in whole rows */
    nib_bf16 *bf16;   /* host [piece] */
    uint8_t *host;    /* codes of a tensor on their way to the file */
    void *device;     /* one block for all below */
    size_t device_bytes;
    nib_bf16 *narrow; /* [piece] */
    float *wide;      /* [piece] */
    uint8_t *codes;   /* [elements / 2] */
    float *absmax;    /* [elements / 64] */
    uint8_t *absmax_codes;
    float *nested_absmax;
    float *nested_map; /* [256] */
} quantizer;

static int64_t rows_of_piece(int64_t columns)
{
    int64_t rows = PIECE_ELEMENTS / columns / 64 * 64; /* blocks of 64 values must not cross pieces */
    return rows > 0 ? rows : 64;
}

static nib_status measure(void *user, const char *name, int64_t rows, int64_t columns, bool linear)
{
    quantizer *q = user;
    (void)name;
    if (columns == 0) {
        columns = rows;
        rows = 1;
    }
    int64_t step = rows_of_piece(columns) < rows ? rows_of_piece(columns) : rows;
    if (step * columns > q->piece) q->piece = step * columns;
    if (linear && rows * columns > q->elements) q->elements = rows * columns;
    return NIB_OK;
}

static nib_status place(quantizer *q, nib_arena *arena)
{
    int64_t blocks = (q->elements + 63) / 64;
    NIB_TRY(nib_arena_take(arena, q->piece, sizeof(nib_bf16), &q->narrow));
    NIB_TRY(nib_arena_take(arena, q->piece, sizeof(float), &q->wide));
    NIB_TRY(nib_arena_take(arena, (q->elements + 1) / 2, 1, &q->codes));
    NIB_TRY(nib_arena_take(arena, blocks, sizeof(float), &q->absmax));
    NIB_TRY(nib_arena_take(arena, blocks, 1, &q->absmax_codes));
    NIB_TRY(nib_arena_take(arena, (blocks + 255) / 256, sizeof(float), &q->nested_absmax));
    return nib_arena_take(arena, 256, sizeof(float), &q->nested_map);
}

static nib_status allocate(quantizer *q)
{
    nib_arena arena = {.name = "quantiser"};
    NIB_TRY(nib_weights_visit(&q->source->config, measure, q));
    NIB_TRY(place(q, &arena));
    q->device_bytes = arena.used;
    NIB_TRY(q->ops->allocate(q->ops, arena.name, q->device_bytes, &q->device));
    arena = (nib_arena){.name = arena.name, .block = q->device, .capacity = q->device_bytes};
    NIB_TRY(place(q, &arena));
    q->bf16 = nib_calloc((size_t)q->piece, sizeof *q->bf16);
    q->host = nib_calloc((size_t)(q->elements + 1) / 2, 1);
    if (q->bf16 == NULL || q->host == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to quantise");
    return q->ops->upload(q->ops, q->nested_map, nib_nf4_dynamic_map, sizeof nib_nf4_dynamic_map);
}

static nib_status write_from_device(quantizer *q, const void *device, size_t bytes)
{
    NIB_TRY(q->ops->download(q->ops, q->host, device, bytes));
    return nib_safetensors_writer_data(q->writer, q->host, bytes);
}

/* bitsandbytes' quant_state. Padded with spaces to a constant length, since the header with all lengths is written
 * before the offset is known. */
#define STATE_LENGTH 224
static void quant_state(char text[STATE_LENGTH + 1], int64_t rows, int64_t columns, float nested_offset)
{
    int n = snprintf(text, STATE_LENGTH + 1,
                     "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [%lld, %lld], "
                     "\"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": %.17g}",
                     (long long)rows, (long long)columns, (double)nested_offset);
    memset(text + n, ' ', (size_t)(STATE_LENGTH - n));
    text[STATE_LENGTH] = 0;
}

static nib_status declare_part(quantizer *q, const char *name, const char *suffix, nib_dtype dtype, int64_t count,
                               int64_t columns)
{
    char full[256];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    return nib_safetensors_writer_declare(q->writer, full, dtype, columns > 0 ? 2 : 1, (int64_t[]){count, columns});
}

static nib_status declare_weight(void *user, const char *name, int64_t rows, int64_t columns, bool linear)
{
    quantizer *q = user;
    if (!linear) return declare_part(q, name, "", NIB_DTYPE_BF16, rows, columns);
    int64_t n = rows * columns, blocks = (n + 63) / 64;
    NIB_TRY(declare_part(q, name, "", NIB_DTYPE_U8, (n + 1) / 2, 1));
    NIB_TRY(declare_part(q, name, ".absmax", NIB_DTYPE_U8, blocks, 0));
    NIB_TRY(declare_part(q, name, ".nested_absmax", NIB_DTYPE_F32, (blocks + 255) / 256, 0));
    NIB_TRY(declare_part(q, name, ".nested_quant_map", NIB_DTYPE_F32, 256, 0));
    NIB_TRY(declare_part(q, name, ".quant_map", NIB_DTYPE_F32, 16, 0));
    return declare_part(q, name, ".quant_state.bitsandbytes__nf4", NIB_DTYPE_U8, STATE_LENGTH, 0);
}

static nib_status write_dense(quantizer *q, const char *name, int64_t rows, int64_t columns)
{
    for (int64_t row = 0, step = rows_of_piece(columns); row < rows; row += step) {
        int64_t count = rows - row < step ? rows - row : step;
        NIB_TRY(nib_weight_source_read(q->source, name, row, count, columns, q->bf16));
        NIB_TRY(nib_safetensors_writer_data(q->writer, q->bf16, (uint64_t)(count * columns) * sizeof(nib_bf16)));
    }
    nib_weight_source_release(q->source, name);
    return NIB_OK;
}

static nib_status write_weight(void *user, const char *name, int64_t rows, int64_t columns, bool linear)
{
    quantizer *q = user;
    nib_ops *ops = q->ops;
    if (!linear) return columns > 0 ? write_dense(q, name, rows, columns) : write_dense(q, name, 1, rows);
    int64_t n = rows * columns, blocks = (n + 63) / 64;
    float nested_offset;
    char state[STATE_LENGTH + 1];
    for (int64_t row = 0, step = rows_of_piece(columns); row < rows; row += step) {
        int64_t count = (rows - row < step ? rows - row : step) * columns, first = row * columns;
        NIB_TRY(nib_weight_source_read(q->source, name, row, count / columns, columns, q->bf16));
        NIB_TRY(ops->upload(ops, q->narrow, q->bf16, (size_t)count * sizeof(nib_bf16)));
        NIB_TRY(ops->convert(ops, (nib_matrix){q->narrow, 1, count, count, NIB_DTYPE_BF16},
                             (nib_matrix){q->wide, 1, count, count, NIB_DTYPE_F32}));
        NIB_TRY(ops->nf4_quantize(ops, q->wide, count, q->codes + first / 2, q->absmax + first / 64));
    }
    nib_weight_source_release(q->source, name);
    NIB_TRY(ops->nf4_quantize_absmax(ops, q->absmax, blocks, q->nested_map, q->absmax_codes, q->nested_absmax,
                                     &nested_offset));
    NIB_TRY(write_from_device(q, q->codes, (size_t)(n + 1) / 2));
    NIB_TRY(write_from_device(q, q->absmax_codes, (size_t)blocks));
    NIB_TRY(write_from_device(q, q->nested_absmax, (size_t)((blocks + 255) / 256) * sizeof(float)));
    NIB_TRY(nib_safetensors_writer_data(q->writer, nib_nf4_dynamic_map, sizeof nib_nf4_dynamic_map));
    NIB_TRY(nib_safetensors_writer_data(q->writer, nib_nf4_values, sizeof nib_nf4_values));
    quant_state(state, rows, columns, nested_offset);
    return nib_safetensors_writer_data(q->writer, state, STATE_LENGTH);
}

static nib_status write_tensors(quantizer *q, const char *path, char hex[65])
{
    NIB_TRY(allocate(q));
    NIB_TRY(nib_safetensors_writer_begin(path, &q->writer));
    NIB_TRY(nib_safetensors_writer_metadata(q->writer, "format", "pt"));
    NIB_TRY(nib_weights_visit(&q->source->config, declare_weight, q));
    NIB_TRY(nib_weights_visit(&q->source->config, write_weight, q));
    nib_safetensors_writer *writer = q->writer;
    q->writer = NULL; /* finish frees it whatever the outcome */
    return nib_safetensors_writer_finish(writer, hex);
}

nib_status nib_nf4_write(nib_ops *ops, const nib_weight_source *source, const char *folder, char hex[65])
{
    quantizer q = {.ops = ops, .source = source};
    nib_buffer json = {0};
    nib_status status = NIB_OK;
    char *tensors = nib_path_join(folder, "model.safetensors");
    if (tensors == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a file name", folder);
        goto done;
    }
    NIB_TRY_GOTO(nib_file_make_folders(folder), done);
    NIB_TRY_GOTO(nib_model_config_write(&source->config, true, &json), done);
    NIB_TRY_GOTO(write_tensors(&q, tensors, hex), done);
    status = nib_file_replace_text(folder, "config.json", &json);
done:
    if (q.writer != NULL) nib_safetensors_writer_abandon(q.writer);
    if (q.device != NULL) ops->release(ops, q.device, q.device_bytes);
    nib_free(q.bf16);
    nib_free(q.host);
    nib_buffer_free(&json);
    nib_free(tensors);
    return status;
}

static nib_status source_key(const nib_weight_source *source, char key[65])
{
    nib_sha256 hash;
    uint8_t digest[32];
    const nib_file *seen = NULL;
    nib_buffer config = {0};
    nib_status status = nib_model_config_write(&source->config, false, &config);
    nib_sha256_begin(&hash);
    if (status == NIB_OK) nib_sha256_update(&hash, config.data, config.length);
    nib_buffer_free(&config);
    NIB_TRY(status);
    nib_weight_source_hash_table(source, &hash);
    for (size_t i = 0; i < nib_tensor_set_count(source->set); i++) {
        const nib_file *file = nib_tensor_set_at(source->set, i)->file;
        struct stat facts;
        char text[4096 + 128];
        if (file == seen) continue; /* tensors come in file order */
        seen = file;
        char *real = realpath(file->path, NULL);
        if (real == NULL || stat(real, &facts) != 0) {
            free(real);
            return NIB_FAIL(NIB_ERROR_IO, "%s: cannot be found any more", file->path);
        }
        int n = snprintf(text, sizeof text, "%s %lld %lld.%09ld\n", real, (long long)facts.st_size,
                         (long long)facts.st_mtim.tv_sec, facts.st_mtim.tv_nsec);
        nib_sha256_update(&hash, text, (size_t)n);
        free(real);
    }
    nib_sha256_end(&hash, digest);
    nib_sha256_hex(digest, key);
    return NIB_OK;
}

static char *cache_folder(const char *folder, const char *key)
{
    char name[64];
    snprintf(name, sizeof name, "nf4-%.32s", key);
    return folder != NULL ? nib_path_join(folder, name) : nib_cache_path(name);
}

/* A folder's "sha256": the hashes (weight_hash.h) of what it holds, and of the checkpoint that was quantised. */
#define RECORD_LENGTH (64 + 1 + 64 + 1)

/* Reads the record and opens what lies beside it. */
static bool open_recorded(const char *folder, char text[RECORD_LENGTH], nib_weight_source *source)
{
    char *record = nib_path_join(folder, "sha256"), *read = NULL;
    size_t length = 0;
    bool found = record != NULL && nib_file_exists(record) &&
                 nib_file_read(record, RECORD_LENGTH, &read, &length) == NIB_OK && length == RECORD_LENGTH &&
                 nib_weight_source_open(folder, source) == NIB_OK;
    if (found) memcpy(text, read, RECORD_LENGTH);
    nib_free(read);
    nib_free(record);
    return found;
}

/* Opens the folder if it holds, on every rank, what its record says. Anything else, missing files too, means: write it
 * again. */
static nib_status open_intact(const char *folder, const nib_shards *among, nib_weight_source *source, bool *intact)
{
    char text[RECORD_LENGTH], hex[65];
    nib_status status;
    const bool opened = open_recorded(folder, text, source);
    *intact = opened && source->quantized;
    NIB_TRY_GOTO(nib_shards_agree(among, intact), done);
    if (!*intact) goto done;
    NIB_TRY_GOTO(nib_weight_hash(source, among, hex), done);
    *intact = memcmp(hex, text, 64) == 0;
    status = nib_shards_agree(among, intact);
    if (status == NIB_OK && *intact) nib_sha256_of(text, RECORD_LENGTH, source->hash);
done:
    if (opened && (status != NIB_OK || !*intact)) nib_weight_source_close(source);
    return status;
}

static nib_status write_record(const nib_weight_source *source, const char *folder)
{
    nib_weight_source written;
    char content[65], made_from[65], text[RECORD_LENGTH + 1];
    char *record = nib_path_join(folder, "sha256");
    if (record == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a file name", folder);
    nib_status status = nib_weight_hash(source, NULL, made_from);
    if (status == NIB_OK) status = nib_weight_source_open(folder, &written);
    if (status != NIB_OK) goto done;
    status = nib_weight_hash(&written, NULL, content);
    nib_weight_source_close(&written);
    if (status != NIB_OK) goto done;
    snprintf(text, sizeof text, "%s\n%s\n", content, made_from);
    status = nib_file_replace(record, text, RECORD_LENGTH);
done:
    nib_free(record);
    return status;
}

/* Ranks that share a base share its folder: the first of them writes, the others wait for it. */
static nib_status build(nib_ops *ops, const nib_weight_source *source, const char *folder, const nib_shards *among)
{
    bool written = true;
    if (among == NULL || among->rank == 0) {
        nib_log("quantising %s to NF4, once: %s", source->path, folder);
        NIB_TRY(nib_nf4_write(ops, source, folder, NULL));
        NIB_TRY(write_record(source, folder));
    }
    return nib_shards_agree(among, &written);
}

nib_status nib_nf4_cache_open(nib_ops *ops, const char *cache, const nib_shards *among, nib_weight_source *source)
{
    char key[65];
    nib_weight_source quantized;
    bool intact;
    NIB_TRY(source_key(source, key));
    char *folder = cache_folder(cache, key);
    if (folder == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a file name", source->path);
    nib_status status = open_intact(folder, among, &quantized, &intact);
    if (status == NIB_OK && !intact) {
        NIB_TRY_GOTO(build(ops, source, folder, among), done);
        status = open_intact(folder, among, &quantized, &intact);
        if (status == NIB_OK && !intact)
            status = NIB_FAIL(NIB_ERROR_IO, "%s: what was just written there reads back otherwise; is the disk sound?",
                              folder);
    }
    if (status != NIB_OK) goto done;
    nib_weight_source_close(source);
    *source = quantized;
done:
    nib_free(folder);
    return status;
}
