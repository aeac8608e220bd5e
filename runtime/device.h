/* Where a run computes: the CPU, which is part of the program, or a backend that is loaded at need (model/plugin.h).
 *
 * libnibble_cuda.so and libnibble_cuda_emulated.so lie beside the program, or in ../lib/nibble from it. */
#ifndef NIB_RUNTIME_DEVICE_H
#define NIB_RUNTIME_DEVICE_H

#include "model/ops.h"
#include "model/plugin.h"

/* AUTO: a GPU if there is one, else the CPU. EMULATED: the CUDA kernels' own source, compiled for the CPU; for tests.
 */
typedef enum { NIB_DEVICE_AUTO, NIB_DEVICE_CPU, NIB_DEVICE_CUDA, NIB_DEVICE_EMULATED } nib_device;
#define NIB_DEVICE_CHOICES "auto|cpu|cuda|emulated"

/* "auto", "cpu", "cuda" or "emulated". NIB_ERROR_USAGE. */
nib_status nib_parse_device(const char *text, nib_device *device);
const char *nib_device_name(nib_device device);

/* The backend of `device` for activations of type `compute`; of the GPUs of this machine the one whose number is
 * local_rank. AUTO: the CPU for fp32, which GPUs do not compute in here; else it logs why there is no GPU.
 * NIB_ERROR_DEVICE if build or machine lack an explicit one, or one for this rank where there is one for rank 0. A GPU
 * is checked first (self_check_once.h). */
nib_status nib_open_backend(nib_device device, nib_dtype compute, int local_rank, nib_ops **ops);
void nib_close_backend(nib_ops *ops);

/* Not for AUTO: the backend of one device without a check, and one line about it, "NVIDIA H200, ..."; devices of a kind
 * are numbered from 0. NIB_ERROR_DEVICE says why there is none. */
nib_status nib_open_device(nib_device device, int number, nib_ops **ops);
nib_status nib_device_describe(nib_device device, int number, char *text, size_t bytes);
/* The versions of the libraries that a GPU's backend computes with; "" on the CPU. */
nib_status nib_device_libraries(nib_device device, char *text, size_t bytes);

/* Each instruction that the kernels of `device` build on, tried on ops, which it opened; none on the CPU. */
typedef void (*nib_instruction_visit)(void *user, const nib_instruction_line *line);
nib_status nib_device_instructions(nib_device device, nib_ops *ops, nib_instruction_visit visit, void *user);

#endif
