/* The names by which a verdict, a warning and `nibble doctor` speak of a kernel. */
#include "cuda/choice.h"

const char *const nib_cuda_choice_names[NIB_CUDA_CHOICES] = {"attention_forward_hopper",
                                                             "attention_backward_hopper",
                                                             "attention_forward",
                                                             "attention_backward",
                                                             "attention_cached",
                                                             "nf4_matmul_hopper",
                                                             "nf4_matmul_hopper_backward",
                                                             "matmul",
                                                             "linear",
                                                             "nf4_matvec",
                                                             "nf4_small_matmul",
                                                             "nf4_dequantize"};
