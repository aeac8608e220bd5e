/* Element types as CUDA's libraries name them. */
#ifndef NIB_EMULATOR_LIBRARY_TYPES_H
#define NIB_EMULATOR_LIBRARY_TYPES_H

enum cudaDataType { CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF, CUDA_R_8F_E4M3 };
typedef enum cudaDataType cudaDataType_t;

#endif
