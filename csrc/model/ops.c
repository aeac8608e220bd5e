#include "model/ops.h"

#include <math.h>

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

nib_adamw_factors nib_adamw_factors_of(nib_adamw o)
{
    return (nib_adamw_factors){.decay = (float)(1.0 - o.learning_rate * o.weight_decay),
                               .beta1 = (float)o.beta1,
                               .beta2 = (float)o.beta2,
                               .rest1 = (float)(1.0 - o.beta1),
                               .rest2 = (float)(1.0 - o.beta2),
                               .step_size = (float)(o.learning_rate / (1.0 - pow(o.beta1, (double)o.step))),
                               .root = (float)sqrt(1.0 - pow(o.beta2, (double)o.step)),
                               .epsilon = (float)o.epsilon};
}
