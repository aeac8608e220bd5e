/* nibble pack: JSONL to shards that are read at any place, with a manifest. */
#include "command.h"
#include "open.h"
#include "options.h"

#include "base/log.h"
#include "data/shard_packer.h"

#include <stdio.h>

static nib_status report(const char *folder)
{
    nib_manifest m;
    NIB_TRY(nib_manifest_read(folder, &m));
    uint64_t bytes = 0;
    for (int i = 0; i < m.shards; i++) bytes += m.shard[i].bytes;
    nib_log("%s: %lld rows, %d shards, %.1f MB of %.1f MB", folder, (long long)m.rows, m.shards, (double)bytes / 1e6,
            (double)m.content_bytes / 1e6);
    if (m.has_samples)
        nib_log("%lld samples, %lld tokens, %lld supervised", (long long)m.samples.count, (long long)m.samples.tokens,
                (long long)m.samples.supervised_tokens);
    else
        nib_log("no --tokenizer, so no index of samples: every training tokenises all rows at its start");
    printf("%s\n", folder);
    nib_manifest_free(&m);
    return NIB_OK;
}

static nib_status run(int argc, char **argv)
{
    nib_option_list in = {0};
    const char *out = NULL, *tokenizer = NULL, *chat_template = NULL;
    nib_text text = {0};
    nib_status status;
    const nib_option options[] = {
        {.name = "--in", .kind = NIB_OPTION_LIST, .value = &in, .required = true},
        {.name = "--out", .kind = NIB_OPTION_PATH, .value = &out, .required = true},
        {.name = "--tokenizer", .kind = NIB_OPTION_PATH, .value = &tokenizer},
        {.name = "--template", .kind = NIB_OPTION_PATH, .value = &chat_template},
    };
    NIB_TRY_GOTO(nib_options_read(argc, argv, options, sizeof options / sizeof *options), done);
    if (chat_template != NULL && tokenizer == NULL) {
        status = NIB_FAIL(NIB_ERROR_USAGE, "--template goes with --tokenizer");
        goto done;
    }
    if (tokenizer != NULL) NIB_TRY_GOTO(nib_text_open(tokenizer, tokenizer, chat_template, &text), done);
    const nib_data_options data = {.tokenizer = text.tokenizer,
                                   .chat_template = text.chat_template,
                                   .bos_token = text.bos_token,
                                   .eos_token = text.eos_token};
    NIB_TRY_GOTO(nib_shards_pack(in.items, (int)in.count, out, tokenizer != NULL ? &data : NULL), done);
    status = report(out);
done:
    nib_text_close(&text);
    nib_free(in.items);
    return status;
}

const nib_command nib_command_pack = {
    .name = "pack",
    .summary = "packs rows into compressed shards with a manifest",
    .usage =
        "usage: nibble pack --in F... --out DIR [--tokenizer T] [--template J]\n"
        "\n"
        "Writes the rows of .jsonl and .jsonl.zst files into folder DIR, which must not be there: shards in zstd's\n"
        "seekable format (zstd reads them) and manifest.json with counts and SHA-256 of each. DIR is then a \"path\"\n"
        "of a config's data, and trains to the same bits as the files. The bytes are the same at any number of "
        "threads.\n"
        "\n"
        "  --tokenizer T   also counts tokens, and writes an index of all samples: training then opens data of any\n"
        "                  size at once and reads each sample when its step comes. T is a tokenizer.json, the folder "
        "of\n"
        "                  one, or a .gguf; training with another tokenizer or template is refused. Without T rows "
        "are\n"
        "                  only checked, and every training tokenises them all at its start, into memory\n"
        "  --template J    a chat template (Jinja) in place of the tokenizer's own\n"
        "\n"
        "Exit code 65 and the file and line if a row is not one of the formats that train reads.\n",
    .run = run,
};
