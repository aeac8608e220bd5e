/* The calls of NVIDIA's NCCL that Nibble makes, between processes of this machine that each have an emulated device;
 * bytes go through shared memory. Communicators are nonblocking, moves run when the stream comes to them and wait there
 * for the other rank, and an abort, which may come from another thread, ends such a wait. Values as in NCCL 2.28.
 */
#ifndef NIB_EMULATOR_NCCL_H
#define NIB_EMULATOR_NCCL_H

#include "cuda_runtime.h"

enum ncclResult_t {
    ncclSuccess = 0,
    ncclSystemError = 2,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
};
enum ncclDataType_t { ncclUint8 = 1 };
struct ncclUniqueId {
    char internal[128];
};
struct ncclConfig_t {
    size_t size;
    unsigned magic, version;
    int blocking;
    int rest[16]; /* what is not looked at */
};
typedef struct nib_emulator_communicator *ncclComm_t;

extern "C" {
ncclResult_t ncclGetVersion(int *version);
ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error);
ncclResult_t ncclCommFinalize(ncclComm_t comm);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclCommAbort(ncclComm_t comm);
ncclResult_t ncclGroupStart();
ncclResult_t ncclGroupEnd();
ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream);
ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream);
const char *ncclGetErrorString(ncclResult_t result);
const char *ncclGetLastError(ncclComm_t comm);
}

#endif
