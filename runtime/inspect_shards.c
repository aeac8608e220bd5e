#include "inspect_shards.h"

#include "base/file.h"
#include "data/manifest.h"
#include "formats/zstd_frames.h"

#include <stdio.h>
#include <string.h>

static void put_text(nib_buffer *out, const char *text) { nib_buffer_json_string(out, text, strlen(text), false); }

static void put_sources(nib_buffer *out, const nib_manifest *m)
{
    nib_buffer_text(out, "\nsources\n");
    for (int i = 0; i < m->sources; i++) {
        nib_buffer_text(out, "  ");
        put_text(out, m->source[i].path);
        nib_buffer_format(out, "  %lld rows\n", (long long)m->source[i].rows);
    }
}

static void put_samples(nib_buffer *out, const nib_packed_samples *s)
{
    nib_buffer_format(out,
                      "\nsamples\n  count              %lld\n  tokens             %lld\n  supervised tokens  %lld\n"
                      "  longest            %lld\n  duplicates         %lld\n  tokenizer          SHA-256 %s\n",
                      (long long)s->count, (long long)s->tokens, (long long)s->supervised_tokens, (long long)s->longest,
                      (long long)s->duplicates, s->tokenizer_hash);
    nib_buffer_format(out,
                      s->template_hash[0] == 0 ? "  chat template      none\n" : "  chat template      SHA-256 %s\n",
                      s->template_hash);
    nib_buffer_text(out, "  turns end with     ");
    for (int i = 0; i < s->terminators; i++) nib_buffer_format(out, i == 0 ? "%d" : ", %d", s->terminator[i]);
    nib_buffer_text(out, s->terminators == 0 ? "(no turns)\n" : "\n");
}

static nib_status put_shard(nib_buffer *out, const char *folder, const nib_shard *shard)
{
    nib_file file;
    char *path = nib_path_join(folder, shard->file);
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to describe it", folder);
    nib_status status = nib_file_map(&file, path);
    if (status == NIB_OK && file.size != shard->bytes)
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: %llu bytes, the manifest states %llu; restore the file, or pack again",
                          path, (unsigned long long)file.size, (unsigned long long)shard->bytes);
    if (status == NIB_OK) {
        nib_buffer_text(out, "  ");
        put_text(out, shard->file);
        nib_buffer_format(out, "  %lld rows  %lld frames  %llu of %llu bytes  SHA-256 %s\n", (long long)shard->rows,
                          (long long)shard->frames, (unsigned long long)shard->bytes,
                          (unsigned long long)shard->content_bytes, shard->hash);
    }
    nib_file_unmap(&file);
    nib_free(path);
    return status;
}

nib_status nib_inspect_packed(const char *folder, nib_buffer *out)
{
    nib_manifest m;
    nib_status status = NIB_OK;
    uint64_t bytes = 0;
    NIB_TRY(nib_manifest_read(folder, &m));
    for (int i = 0; i < m.shards; i++) bytes += m.shard[i].bytes;
    nib_buffer_format(out, "%s: packed data, %lld rows, %d shard%s, %llu of %llu bytes\n", folder, (long long)m.rows,
                      m.shards, m.shards == 1 ? "" : "s", (unsigned long long)bytes,
                      (unsigned long long)m.content_bytes);
    put_sources(out, &m);
    if (m.has_samples)
        put_samples(out, &m.samples);
    else
        nib_buffer_text(out, "\nsamples\n  not counted: packed without --tokenizer\n");
    nib_buffer_text(out, "\nshards\n");
    for (int i = 0; i < m.shards && status == NIB_OK; i++) status = put_shard(out, folder, &m.shard[i]);
    nib_manifest_free(&m);
    if (status == NIB_OK && out->failed) status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to describe it", folder);
    return status;
}

bool nib_inspect_is_shard(const char *path)
{
    size_t length = strlen(path);
    return length > 4 && strcmp(path + length - 4, ".zst") == 0;
}

nib_status nib_inspect_shard(const char *path, nib_buffer *out)
{
    nib_zstd_reader *reader;
    NIB_TRY(nib_zstd_reader_open(path, &reader));
    nib_buffer_format(out, "%s: zstd frames with a table, %u frames, %llu of %llu bytes\n", path,
                      nib_zstd_reader_frames(reader), (unsigned long long)nib_zstd_reader_size(reader),
                      (unsigned long long)nib_zstd_reader_content(reader));
    nib_zstd_reader_close(reader);
    return NIB_OK;
}
