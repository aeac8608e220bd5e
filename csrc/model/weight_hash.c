#include "model/weight_hash.h"
#include "base/memory.h"
#include "base/sha256.h"

#include <string.h>

#define PIECE ((uint64_t)4 << 20)

typedef struct {
    const nib_tensor_view *tensor;
    uint64_t first, bytes; /* of the tensor */
    uint8_t digest[32];
} piece;

static uint64_t pieces_of(const nib_tensor_view *tensor) { return (tensor->bytes + PIECE - 1) / PIECE; }

static void hash_piece(piece *p)
{
    nib_sha256 hash;
    nib_sha256_begin(&hash);
    nib_sha256_update(&hash, p->tensor->data + p->first, (size_t)p->bytes);
    nib_sha256_end(&hash, p->digest);
    nib_file_release(p->tensor->file, p->tensor->offset + p->first, p->bytes);
}

static nib_status hash_tensors(const nib_weight_source *source, nib_sha256 *hash)
{
    uint64_t count = 0;
    size_t tensors = nib_tensor_set_count(source->set);
    for (size_t i = 0; i < tensors; i++) count += pieces_of(nib_tensor_set_at(source->set, i));
    piece *pieces = nib_calloc((size_t)count, sizeof *pieces), *next = pieces;
    if (pieces == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to hash it", source->path);
    for (size_t i = 0; i < tensors; i++) {
        const nib_tensor_view *tensor = nib_tensor_set_at(source->set, i);
        for (uint64_t at = 0; at < tensor->bytes; at += PIECE)
            *next++ = (piece){tensor, at, tensor->bytes - at < PIECE ? tensor->bytes - at : PIECE, {0}};
    }
#pragma omp parallel for schedule(dynamic)
    for (uint64_t i = 0; i < count; i++) hash_piece(&pieces[i]);
    for (uint64_t i = 0; i < count; i++) nib_sha256_update(hash, pieces[i].digest, sizeof pieces[i].digest);
    nib_free(pieces);
    return NIB_OK;
}

nib_status nib_weight_hash(const nib_weight_source *source, char hex[65])
{
    nib_sha256 hash;
    uint8_t digest[32];
    nib_buffer config = {0};
    if (source->hash[0] != 0) {
        memcpy(hex, source->hash, sizeof source->hash);
        return NIB_OK;
    }
    nib_status status = nib_model_config_write(&source->config, source->quantized, &config);
    nib_sha256_begin(&hash);
    if (status == NIB_OK) nib_sha256_update(&hash, config.data, config.length);
    nib_buffer_free(&config);
    if (status == NIB_OK && !source->random) {
        nib_weight_source_hash_table(source, &hash);
        status = hash_tensors(source, &hash);
    }
    nib_sha256_end(&hash, digest);
    nib_sha256_hex(digest, hex);
    return status;
}
