/* The part of NVIDIA's NCCL that Nibble uses, found at run time, so that neither a build nor a machine without GPUs
 * needs it. Names and values are those of nccl.h 2.28.9, with nib_ before them; tests/cuda/nccl_declarations.c compares
 * the two where the header is installed.
 */
#ifndef NIB_NCCL_API_H
#define NIB_NCCL_API_H

#include "base/status.h"

#include <stddef.h>

#define NIB_NCCL_OLDEST    22800 /* major * 10000 + minor * 100 + patch; its ncclConfig_t is the one below */
#define NIB_NCCL_UNDEFINED (-2147483647 - 1) /* NCCL_CONFIG_UNDEF_INT */
#define NIB_NCCL_MAGIC     0xcafebeefu
#define NIB_NCCL_UINT8     1 /* ncclUint8 */

enum { NIB_NCCL_SUCCESS = 0, NIB_NCCL_IN_PROGRESS = 7 }; /* of ncclResult_t */

typedef struct nib_nccl_comm *nib_nccl_comm;
typedef struct {
    char internal[128];
} nib_nccl_id;

/* ncclConfig_t */
typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking, cga_cluster_size, min_ctas, max_ctas;
    const char *net_name;
    int split_share, traffic_class;
    const char *comm_name;
    int collnet_enable, cta_policy, shrink_share, nvls_ctas, channels_per_net_peer, nvlink_centric;
} nib_nccl_config;

typedef struct {
    int version;
    int (*get_unique_id)(nib_nccl_id *id);
    int (*comm_init_rank_config)(nib_nccl_comm *comm, int ranks, nib_nccl_id id, int rank, nib_nccl_config *config);
    int (*comm_get_async_error)(nib_nccl_comm comm, int *error);
    int (*comm_finalize)(nib_nccl_comm comm);
    int (*comm_destroy)(nib_nccl_comm comm);
    int (*comm_abort)(nib_nccl_comm comm);
    int (*group_start)(void);
    int (*group_end)(void);
    int (*send)(const void *data, size_t count, int type, int peer, nib_nccl_comm comm, void *stream);
    int (*receive)(void *data, size_t count, int type, int peer, nib_nccl_comm comm, void *stream);
    const char *(*get_error_string)(int result);
    const char *(*get_last_error)(nib_nccl_comm comm);
} nib_nccl_api;

/* From libnccl.so.2; for the backend "emulated" from its plugin, which has a stand-in. NIB_ERROR_DEVICE: it is not
 * there, or older than NIB_NCCL_OLDEST. */
nib_status nib_nccl_load(const char *backend, nib_nccl_api *api);

#endif
