/* libFuzzer: any bytes as a file of rows, compressed if they begin as a frame does. */
#include "base/utf8.h"
#include "formats/row_reader.h"
#include "memory_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    nib_row_reader *reader;
    const char *line;
    size_t size;
    if (nib_row_reader_open(memory_file(bytes, length), &reader) != NIB_OK) return 0;
    for (uint64_t n = 1; nib_row_reader_next(reader, &line, &size) == NIB_OK && line != NULL; n++)
        if (nib_utf8_invalid_at(line, size) != size || nib_row_reader_line(reader) != n) abort();
    nib_row_reader_close(reader);
    return 0;
}
