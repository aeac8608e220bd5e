#include "cpu/target_chunk.h"

int64_t nib_target_chunk_next(nib_targets targets, int64_t at, nib_target_chunk *chunk)
{
    chunk->rows = 0;
    while (at < targets.N && chunk->rows < NIB_CHUNK_ROWS) {
        chunk->row[chunk->rows] = targets.row[at];
        chunk->first_target[chunk->rows++] = at;
        int32_t row = targets.row[at];
        while (at < targets.N && targets.row[at] == row) at++;
    }
    chunk->first_target[chunk->rows] = at;
    return at;
}
