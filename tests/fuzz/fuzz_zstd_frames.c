/* libFuzzer: any bytes as a file of zstd frames with a table, read whole and in pieces. */
#include "formats/zstd_frames.h"
#include "memory_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    enum { PIECE = 1000 };
    nib_zstd_reader *reader;
    uint8_t piece[PIECE];
    if (nib_zstd_reader_open(memory_file(bytes, length), &reader) != NIB_OK) return 0;
    uint64_t content = nib_zstd_reader_content(reader);
    for (uint64_t at = 0, n; at < content; at += n) {
        n = content - at < PIECE ? content - at : PIECE;
        if (nib_zstd_reader_read(reader, at, piece, n) != NIB_OK) break;
    }
    if (content > 0 && nib_zstd_reader_read(reader, content - 1, piece, 2) == NIB_OK) abort();
    nib_zstd_reader_close(reader);
    return 0;
}
