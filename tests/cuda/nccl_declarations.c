/* Compiled, never run: Nibble's own declarations of NCCL against the library's header, where that is installed. */
#include "nccl/nccl_api.h"

#include <nccl.h>

#define SAME(a, b)               _Static_assert((long long)(a) == (long long)(b), #a " is not " #b)
#define SAME_FIELD(ours, theirs) SAME(offsetof(nib_nccl_config, ours), offsetof(ncclConfig_t, theirs))

SAME(NIB_NCCL_SUCCESS, ncclSuccess);
SAME(NIB_NCCL_IN_PROGRESS, ncclInProgress);
SAME(NIB_NCCL_UINT8, ncclUint8);
SAME(NIB_NCCL_UNDEFINED, NCCL_CONFIG_UNDEF_INT);
SAME(sizeof(nib_nccl_id), sizeof(ncclUniqueId));
SAME_FIELD(magic, magic);
SAME_FIELD(version, version);
SAME_FIELD(blocking, blocking);
SAME_FIELD(net_name, netName);
SAME_FIELD(split_share, splitShare);
SAME_FIELD(comm_name, commName);
SAME_FIELD(shrink_share, shrinkShare);
SAME_FIELD(nvlink_centric, nvlinkCentricSched);
#if NCCL_VERSION_CODE < 22900
SAME(sizeof(nib_nccl_config), sizeof(ncclConfig_t));
#endif

/* The same arguments. Enums are ints, and handles are pointers. */
void nib_nccl_same_calls(nib_nccl_api *api);
void nib_nccl_same_calls(nib_nccl_api *api)
{
    ncclResult_t (*init)(ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *) = ncclCommInitRankConfig;
    ncclResult_t (*send)(const void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t) = ncclSend;
    ncclResult_t (*receive)(void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t) = ncclRecv;
    ncclResult_t (*state)(ncclComm_t, ncclResult_t *) = ncclCommGetAsyncError;
    *(void **)&api->comm_init_rank_config = *(void **)&init;
    *(void **)&api->send = *(void **)&send;
    *(void **)&api->receive = *(void **)&receive;
    *(void **)&api->comm_get_async_error = *(void **)&state;
}
