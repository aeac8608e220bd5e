#include "model/ops.h"

nib_matrix nib_matrix_columns(nib_matrix matrix, int64_t first, int64_t columns)
{
    if (matrix.data != NULL) matrix.data = nib_matrix_at(matrix, 0, first);
    matrix.columns = columns;
    return matrix;
}

nib_matrix nib_matrix_rows(nib_matrix matrix, int64_t first, int64_t rows)
{
    if (matrix.data != NULL) matrix.data = nib_matrix_at(matrix, first, 0);
    matrix.rows = rows;
    return matrix;
}

int64_t nib_linear_outputs(const nib_linear *linear)
{
    int64_t outputs = 0;
    for (int p = 0; p < linear->parts; p++) outputs += linear->part[p].rows;
    return outputs;
}

int64_t nib_linear_ranks(const nib_linear *linear)
{
    int64_t ranks = 0;
    for (int p = 0; p < linear->parts; p++) ranks += linear->part[p].lora.rank;
    return ranks;
}

int64_t nib_linear_padded_ranks(const nib_linear *linear)
{
    int64_t ranks = 0;
    for (int p = 0; p < linear->parts; p++) ranks += (linear->part[p].lora.rank + 7) / 8 * 8;
    return ranks;
}

bool nib_linear_is_dora(const nib_linear *linear)
{
    bool dora = false;
    for (int p = 0; p < linear->parts; p++) dora = dora || linear->part[p].lora.dora.gain != NULL;
    return dora;
}

int64_t nib_linear_room(const nib_linear *linear)
{
    bool bias = false;
    for (int p = 0; p < linear->parts; p++) bias = bias || linear->part[p].bias != NULL;
    return nib_linear_padded_ranks(linear) + (bias ? 8 : 0);
}
