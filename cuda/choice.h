/* Kernels of which there are two. The fast one multiplies on tensor cores, copies asynchronously, or is a library's;
 * the plain one does the same without any of that, is its oracle on a card that nobody has tried, and takes its place
 * where they disagree (ops->use_plain). Kernels that only read, add and multiply have no second one.
 *
 * Another fast kernel: a value here, its name in choice.cu, the question at its launcher, and a case that exercises it
 * in runtime/self_check_cases.c. */
#ifndef NIB_CUDA_CHOICE_H
#define NIB_CUDA_CHOICE_H

#include "cuda/c_headers.h"

typedef enum {
    NIB_CUDA_ATTENTION_FORWARD_HOPPER, /* first: its plain one is attention_forward's fast one */
    NIB_CUDA_ATTENTION_BACKWARD_HOPPER,
    NIB_CUDA_ATTENTION_FORWARD,
    NIB_CUDA_ATTENTION_BACKWARD,
    NIB_CUDA_ATTENTION_CACHED,
    NIB_CUDA_NF4_MATMUL_HOPPER, /* before linear, which would do without it too; plain: dequantised, for matmul */
    NIB_CUDA_NF4_MATMUL_HOPPER_BACKWARD,
    NIB_CUDA_MATMUL, /* cublasLt's */
    NIB_CUDA_LINEAR, /* with its adapters one product, their gradients on tensor cores */
    NIB_CUDA_NF4_MATVEC,
    NIB_CUDA_NF4_SMALL_MATMUL,
    NIB_CUDA_NF4_DEQUANTIZE, /* eight weights at a time */
    NIB_CUDA_CHOICES
} nib_cuda_choice;

extern const char *const nib_cuda_choice_names[NIB_CUDA_CHOICES];

/* Has the plain one been asked for? */
bool nib_cuda_is_plain(nib_ops *ops, nib_cuda_choice choice);

#endif
