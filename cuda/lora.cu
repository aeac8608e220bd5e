/* What the backend calls. There is no tensor-core form yet: each is its plain sibling. */
#include "cuda/lora.h"

nib_status nib_cuda_lora_down(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u)
{
    return nib_cuda_lora_down_plain(ops, linear, x, dropout, u);
}

nib_status nib_cuda_lora_up(nib_ops *ops, const nib_linear *linear, nib_matrix u, nib_matrix y)
{
    return nib_cuda_lora_up_plain(ops, linear, u, y);
}

nib_status nib_cuda_lora_du(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_matrix du)
{
    return nib_cuda_lora_du_plain(ops, linear, dy, du);
}

nib_status nib_cuda_lora_dx(nib_ops *ops, const nib_linear *linear, nib_matrix du, nib_dropout dropout, nib_matrix dx)
{
    return nib_cuda_lora_dx_plain(ops, linear, du, dropout, dx);
}

nib_status nib_cuda_lora_gradients(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                   nib_matrix u, nib_matrix dy, nib_matrix du)
{
    return nib_cuda_lora_gradients_plain(ops, linear, x, dropout, u, dy, du);
}
