#include "ranks.h"
#include "base/sha256.h"

#include <ctype.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PORTS      16
#define FIRST_PORT 20000 /* of the ports that jobs under Slurm share out among themselves */

static const char *variable(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != 0 ? value : NULL;
}

/* The variable's number, which has to be there and in least .. most. */
static nib_status number(const char *name, int least, int most, int *value)
{
    const char *text = variable(name);
    char *end = NULL;
    if (text == NULL)
        return NIB_FAIL(NIB_ERROR_USAGE, "environment: %s is not set, though other variables of a launcher are", name);
    long found = isdigit((unsigned char)text[0]) && strlen(text) < 12 ? strtol(text, &end, 10) : -1;
    if (found < least || found > most || *end != 0)
        return NIB_FAIL(NIB_ERROR_USAGE, "environment: %s=%.80s, expected a number from %d to %d", name, text, least,
                        most);
    *value = (int)found;
    return NIB_OK;
}

static nib_status number_or(const char *name, int least, int most, int missing, int *value)
{
    *value = missing;
    return variable(name) == NULL ? NIB_OK : number(name, least, most, value);
}

typedef struct {
    const char *rank, *size, *local_rank, *local_size;
} names;

static nib_status read_numbers(const names *name, nib_ranks *r)
{
    NIB_TRY(number(name->size, 1, NIB_MAX_RANKS, &r->size));
    NIB_TRY(number(name->rank, 0, r->size - 1, &r->rank));
    NIB_TRY(number_or(name->local_rank, 0, r->size - 1, 0, &r->local_rank));
    return number_or(name->local_size, 1, r->size, 1, &r->local_size);
}

static nib_status set_address(const char *name, const char *text, size_t length, nib_ranks *r)
{
    if (length == 0 || length >= sizeof r->address)
        return NIB_FAIL(NIB_ERROR_USAGE, "environment: %s: a host name of %zu characters, expected 1 to %zu", name,
                        length, sizeof r->address - 1);
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)text[i]) && strchr(".-_:%", text[i]) == NULL)
            return NIB_FAIL(NIB_ERROR_USAGE, "environment: %s=%.80s is no host name or address", name, text);
    memcpy(r->address, text, length);
    r->address[length] = 0;
    return NIB_OK;
}

/* torchrun's agent listens on MASTER_PORT itself, so the ranks take the ports after it. */
static nib_status read_address(int first, int ports, nib_ranks *r)
{
    const char *address = variable("MASTER_ADDR");
    if (address == NULL)
        return NIB_FAIL(NIB_ERROR_USAGE, "environment: MASTER_ADDR is not set; set it to the host of rank 0");
    NIB_TRY(set_address("MASTER_ADDR", address, strlen(address), r));
    NIB_TRY(number("MASTER_PORT", 1, 65535 - first - ports + 1, &r->port));
    r->port += first;
    r->ports = ports;
    return NIB_OK;
}

static nib_status read_torch(nib_ranks *r)
{
    static const names name = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"};
    bool agent = variable("TORCHELASTIC_RUN_ID") != NULL;
    r->launcher = agent ? "torchrun" : "nibble-launch";
    NIB_TRY(read_numbers(&name, r));
    NIB_TRY(number_or(agent ? "TORCHELASTIC_RESTART_COUNT" : "NIBBLE_ATTEMPT", 0, 1 << 20, 0, &r->attempt));
    return agent ? read_address(1, PORTS, r) : read_address(0, 1, r);
}

static nib_status read_open_mpi(nib_ranks *r)
{
    static const names name = {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
                               "OMPI_COMM_WORLD_LOCAL_SIZE"};
    r->launcher = "mpirun";
    NIB_TRY(read_numbers(&name, r));
    r->mpi = variable("MASTER_ADDR") == NULL;
    return r->mpi ? NIB_OK : read_address(0, 1, r);
}

/* The first host of a list as Slurm writes it: "n7", "n7,n9", "n[3-5,9]", "rack2-n[07-09],m1". */
static nib_status first_host(nib_ranks *r)
{
    static const char list_name[] = "SLURM_STEP_NODELIST";
    const char *list = variable(list_name);
    char host[256];
    if (list == NULL) return NIB_FAIL(NIB_ERROR_USAGE, "environment: neither MASTER_ADDR nor %s is set", list_name);
    size_t prefix = strcspn(list, "[,"), digits = 0;
    if (list[prefix] == '[') digits = strcspn(list + prefix + 1, "-,]");
    if (prefix + digits >= sizeof host) return set_address(list_name, list, prefix + digits, r);
    memcpy(host, list, prefix);
    memcpy(host + prefix, list + prefix + 1, digits);
    host[prefix + digits] = 0;
    return set_address(list_name, host, prefix + digits, r);
}

static nib_status read_slurm(nib_ranks *r)
{
    static const names name = {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"};
    int job, step;
    r->launcher = "srun";
    NIB_TRY(number(name.size, 1, NIB_MAX_RANKS, &r->size));
    NIB_TRY(number(name.rank, 0, r->size - 1, &r->rank));
    NIB_TRY(number_or(name.local_rank, 0, r->size - 1, 0, &r->local_rank));
    const char *tasks = variable(name.local_size); /* "2(x3),1": at the first node, and nearly always at all */
    r->local_size = tasks != NULL ? atoi(tasks) : 1;
    if (r->local_size < 1 || r->local_size > r->size) r->local_size = 1;
    NIB_TRY(number_or("SLURM_RESTART_COUNT", 0, 1 << 20, 0, &r->attempt));
    if (r->size == 1) return NIB_OK;
    if (variable("MASTER_ADDR") != NULL) return read_address(0, 1, r);
    NIB_TRY(number_or("SLURM_JOB_ID", 0, INT32_MAX, 0, &job));
    NIB_TRY(number_or("SLURM_STEP_ID", 0, INT32_MAX, 0, &step));
    r->port = FIRST_PORT + (int)(((int64_t)job * 7 + step) % 500) * PORTS;
    r->ports = PORTS;
    return first_host(r);
}

/* A token of the user's or the launcher's is a secret; a job number only tells jobs apart. */
static void derive_token(nib_ranks *r)
{
    static const char *const jobs[] = {"TORCHELASTIC_RUN_ID", "PMIX_NAMESPACE", "SLURM_JOB_ID", "SLURM_STEP_ID"};
    nib_sha256 hash;
    nib_sha256_begin(&hash);
    const char *token = variable("NIBBLE_JOB_TOKEN");
    if (token != NULL) {
        nib_sha256_update(&hash, token, strlen(token));
    } else {
        for (size_t i = 0; i < sizeof jobs / sizeof jobs[0]; i++) {
            const char *part = variable(jobs[i]);
            if (part != NULL) nib_sha256_update(&hash, part, strlen(part) + 1);
        }
    }
    nib_sha256_end(&hash, r->token);
}

nib_status nib_ranks_read(nib_ranks *r)
{
    *r = (nib_ranks){.launcher = "", .size = 1, .local_size = 1};
    nib_status status = NIB_OK;
    if (variable("RANK") != NULL || variable("WORLD_SIZE") != NULL)
        status = read_torch(r);
    else if (variable("OMPI_COMM_WORLD_RANK") != NULL || variable("OMPI_COMM_WORLD_SIZE") != NULL)
        status = read_open_mpi(r);
    else if (variable("SLURM_PROCID") != NULL && variable("SLURM_STEP_NUM_TASKS") != NULL)
        status = read_slurm(r);
    derive_token(r);
    return status;
}

void nib_ranks_share_processors(const nib_ranks *r)
{
#ifdef _OPENMP
    int share = (int)sysconf(_SC_NPROCESSORS_ONLN) / r->local_size;
    if (variable("OMP_NUM_THREADS") == NULL && share < omp_get_max_threads())
        omp_set_num_threads(share > 1 ? share : 1);
#else
    (void)r;
#endif
}
