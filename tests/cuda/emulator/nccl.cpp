#include "include/nccl.h"

#include "fault.h"
#include "include/emulator.h"
#include "memory.h"
#include "stream.h"

#include <atomic>
#include <cstring>
#include <fcntl.h>
#include <mutex>
#include <random>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

using namespace nib_emulator;

namespace
{

constexpr int most_ranks = 8;
constexpr uint64_t pipe_bytes = 64 * 1024; /* small, so that moves go in pieces and both sides have to take turns */

/* From one rank to another: bytes head .. tail - 1 are under way. */
struct Pipe {
    std::atomic<uint64_t> head, tail;
    uint8_t data[pipe_bytes];
};

/* What the ranks share; the system gives it filled with zeros. */
struct Shared {
    std::atomic<int> attached;
    Pipe pipe[most_ranks][most_ranks];
};

struct Move {
    bool send;
    uint8_t *data;
    size_t left;
    int peer;
};

} // namespace

struct nib_emulator_communicator {
    Shared *shared = nullptr;
    int ranks = 0, rank = 0;
    std::string name;
    std::atomic<bool> aborted{false};
    std::atomic<int> error{ncclSuccess}; /* found while a move ran */
    std::atomic<int> unsettled{1};       /* so often it is still in progress when it is asked */
    std::string text;
};

namespace
{

struct Group {
    int depth = 0;
    ncclComm_t comm = nullptr;
    cudaStream_t stream = nullptr;
    std::vector<Move> moves;
};
thread_local Group group;

int claimed_version = 22809, damaged_peer = -1;

/* A piece of a move; whether anything went. */
bool advance(Shared *shared, int rank, Move *move)
{
    Pipe &pipe = move->send ? shared->pipe[rank][move->peer] : shared->pipe[move->peer][rank];
    uint64_t head = pipe.head.load(), tail = pipe.tail.load(), at = move->send ? tail : head;
    uint64_t room = move->send ? pipe_bytes - (tail - head) : tail - head;
    uint64_t count = std::min({room, uint64_t{move->left}, pipe_bytes - at % pipe_bytes});
    if (count == 0) return false;
    if (move->send) {
        std::memcpy(pipe.data + at % pipe_bytes, move->data, count);
        if (move->peer == damaged_peer) {
            pipe.data[at % pipe_bytes] ^= 1;
            damaged_peer = -1;
        }
        pipe.tail.store(tail + count);
    } else {
        std::memcpy(move->data, pipe.data + at % pipe_bytes, count);
        pipe.head.store(head + count);
    }
    move->data += count;
    move->left -= count;
    return true;
}

/* The moves between two ranks one after the other, those of different pairs and directions at once. */
cudaError_t run_moves(ncclComm_t comm, std::vector<Move> moves)
{
    for (bool open = true; open && !comm->aborted.load();) {
        bool busy[2][most_ranks] = {}, moved = false;
        open = false;
        for (Move &move : moves) {
            if (move.left == 0 || busy[move.send][move.peer]) continue;
            busy[move.send][move.peer] = true;
            moved = advance(comm->shared, comm->rank, &move) || moved;
            open = open || move.left > 0;
        }
        for (const Move &move : moves) open = open || move.left > 0;
        if (open && !moved) sched_yield();
    }
    return cudaSuccess; /* an abort ends the kernel, and the stream goes on */
}

ncclResult_t add_move(bool send, const void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    Buffer buffer;
    if (group.depth == 0 || type != ncclUint8 || peer < 0 || peer >= comm->ranks) return ncclInvalidArgument;
    if (group.comm != nullptr && (group.comm != comm || group.stream != stream)) return ncclInvalidUsage;
    if (!find_buffer(data, &buffer) || buffer.space != Space::device || !buffer.holds(data, count)) {
        comm->text = std::to_string(count) + " bytes do not fit at " + describe_address(data);
        return ncclInvalidArgument;
    }
    group.comm = comm;
    group.stream = stream;
    group.moves.push_back({send, const_cast<uint8_t *>(static_cast<const uint8_t *>(data)), count, peer});
    return ncclInProgress;
}

} // namespace

void nib_emulator::set_nccl_version(int version) { claimed_version = version; }
void nib_emulator::set_nccl_damage(int rank) { damaged_peer = rank; }

ncclResult_t ncclGetVersion(int *version)
{
    read_environment();
    *version = claimed_version;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    std::random_device random;
    std::memset(id, 0, sizeof *id);
    std::snprintf(id->internal, sizeof id->internal, "/nibble-nccl-%08x%08x", random(), random());
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    *comm = nullptr;
    if (config->magic != 0xcafebeef || config->blocking != 0 || ranks > most_ranks || rank < 0 || rank >= ranks)
        return ncclInvalidArgument;
    int fd = shm_open(id.internal, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(Shared)) != 0) return ncclSystemError;
    void *memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) return ncclSystemError;
    *comm = new nib_emulator_communicator;
    (*comm)->shared = static_cast<Shared *>(memory);
    (*comm)->ranks = ranks;
    (*comm)->rank = rank;
    (*comm)->name = id.internal;
    (*comm)->shared->attached++;
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    *error = static_cast<ncclResult_t>(comm->error.load());
    if (*error != ncclSuccess) return ncclSuccess;
    if (comm->shared->attached.load() < comm->ranks) {
        *error = ncclInProgress;
    } else if (comm->unsettled.load() > 0) {
        comm->unsettled--;
        *error = ncclInProgress;
        shm_unlink(comm->name.c_str()); /* all have it; only the first succeeds */
    }
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    comm->unsettled = 1;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    munmap(comm->shared, sizeof(Shared));
    delete comm;
    return ncclSuccess;
}

/* The memory stays: a move that is under way may still look at it, as a kernel would until it sees the abort. */
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    comm->aborted = true;
    shm_unlink(comm->name.c_str());
    return ncclSuccess;
}

ncclResult_t ncclGroupStart()
{
    group.depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd()
{
    if (group.depth != 1) return ncclInvalidUsage;
    Group done = std::move(group);
    group = Group();
    if (done.comm == nullptr) return ncclSuccess;
    ncclComm_t comm = done.comm;
    if (cudaError_t injected = injected_error("ncclGroupEnd"); injected != cudaSuccess) {
        comm->text = "injected by a test";
        comm->error = static_cast<int>(injected);
        return ncclInProgress;
    }
    comm->unsettled = 1;
    if (enqueue(done.stream, [comm, moves = done.moves] { return run_moves(comm, moves); }) != cudaSuccess)
        return ncclSystemError;
    return ncclInProgress;
}

ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return add_move(true, data, count, type, peer, comm, stream);
}

ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream)
{
    return add_move(false, data, count, type, peer, comm, stream);
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclRemoteError       ? "remote process exited or there was a network error"
           : result == ncclInvalidArgument ? "invalid argument"
           : result == ncclInvalidUsage    ? "invalid usage"
                                           : "unhandled system error";
}

const char *ncclGetLastError(ncclComm_t comm) { return comm != nullptr ? comm->text.c_str() : ""; }
