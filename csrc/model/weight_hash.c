#include "model/weight_hash.h"
#include "base/memory.h"
#include "base/sha256.h"

#include <string.h>

#define PIECE ((uint64_t)4 << 20)

typedef struct {
    const nib_tensor_view *tensor;
    uint64_t first, bytes; /* of the tensor */
} piece;

typedef struct {
    uint8_t byte[32];
} digest;

static uint64_t pieces_of(const nib_tensor_view *tensor) { return (tensor->bytes + PIECE - 1) / PIECE; }

static void hash_piece(const piece *p, digest *out)
{
    nib_sha256 hash;
    nib_sha256_begin(&hash);
    nib_sha256_update(&hash, p->tensor->data + p->first, (size_t)p->bytes);
    nib_sha256_end(&hash, out->byte);
    nib_file_release(p->tensor->file, p->tensor->offset + p->first, p->bytes);
}

static void list_pieces(const nib_weight_source *source, piece *next)
{
    for (size_t i = 0; i < nib_tensor_set_count(source->set); i++) {
        const nib_tensor_view *tensor = nib_tensor_set_at(source->set, i);
        for (uint64_t at = 0; at < tensor->bytes; at += PIECE)
            *next++ = (piece){tensor, at, tensor->bytes - at < PIECE ? tensor->bytes - at : PIECE};
    }
}

/* Every rank has the pieces of one stretch of the files. */
static nib_status hash_tensors(const nib_weight_source *source, const nib_shards *among, nib_sha256 *hash)
{
    uint64_t count = 0, ranks = among != NULL ? (uint64_t)among->size : 1;
    for (size_t i = 0; i < nib_tensor_set_count(source->set); i++)
        count += pieces_of(nib_tensor_set_at(source->set, i));
    uint64_t share = (count + ranks - 1) / ranks, first = among != NULL ? (uint64_t)among->rank * share : 0;
    uint64_t end = first + share < count ? first + share : count;
    piece *pieces = nib_calloc((size_t)count, sizeof *pieces);
    digest *digests = nib_calloc((size_t)(share * ranks), sizeof *digests);
    nib_status status = NIB_OK;
    if (pieces == NULL || digests == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to hash it", source->path);
        goto done;
    }
    list_pieces(source, pieces);
#pragma omp parallel for schedule(dynamic)
    for (uint64_t i = first; i < end; i++) hash_piece(&pieces[i], &digests[i]);
    if (among != NULL) NIB_TRY_GOTO(among->share(among->context, digests, (size_t)share * sizeof *digests), done);
    nib_sha256_update(hash, digests, (size_t)count * sizeof *digests);
done:
    nib_free(pieces);
    nib_free(digests);
    return status;
}

nib_status nib_weight_hash(const nib_weight_source *source, const nib_shards *among, char hex[65])
{
    nib_sha256 hash;
    uint8_t whole[32];
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
        status = hash_tensors(source, among, &hash);
    }
    nib_sha256_end(&hash, whole);
    nib_sha256_hex(whole, hex);
    return status;
}
