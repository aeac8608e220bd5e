#include "hopper.h"

#include "block.h"

#include <algorithm>
#include <cstring>

namespace nib_emulator
{

/* A block alone on a multiprocessor has all its registers: what __launch_bounds__(threads, 1) gives a kernel that uses
 * setmaxnreg. */
void Hopper::prepare(unsigned threads, size_t shared_bytes)
{
    unsigned groups = threads / group_size, each = std::min(65536 / threads / 8 * 8, 248u);
    work_.assign(threads, AsyncWork{});
    barriers.clear();
    copies.clear();
    flying.assign(groups, {});
    registers.assign(groups, each);
    free_registers = 0;
    requests.clear();
    writers_.assign((shared_bytes + granule - 1) / granule, Writer{0, 0});
}

void Hopper::wrote(unsigned thread, size_t byte, size_t bytes)
{
    for (size_t i = byte / granule; i <= (byte + bytes - 1) / granule; i++)
        writers_[i] = {static_cast<uint16_t>(thread + 1), work_[thread].fences};
}

void Hopper::engine_wrote(size_t byte, size_t bytes)
{
    for (size_t i = byte / granule; i <= (byte + bytes - 1) / granule; i++) writers_[i] = {0, 0};
}

void Hopper::fence(unsigned thread)
{
    work_[thread].fences++;
    for (auto &entry : barriers)
        if (entry.second.owner == thread) entry.second.visible = true;
}

int Hopper::unfenced_writer(size_t byte, size_t bytes) const
{
    for (size_t i = byte / granule; i <= (byte + bytes - 1) / granule; i++)
        if (writers_[i].thread != 0 && writers_[i].fences == work_[writers_[i].thread - 1u].fences)
            return writers_[i].thread - 1;
    return -1;
}

void Hopper::land(Block &block, unsigned choice) { land(block, copies.begin() + choice % copies.size()); }

void Hopper::land(Block &block, std::vector<BulkCopy>::iterator at)
{
    BulkCopy copy = *at;
    copies.erase(at);
    if (copy.kind != BulkCopy::tensor_store) {
        TransactionBarrier &barrier = barriers.at(copy.barrier);
        size_t byte = static_cast<size_t>(copy.shared - block.shared());
        int other = block.races().land(copy.thread, copy.known, barrier.index, barrier.phase, byte, copy.bytes);
        if (other >= 0)
            block.note(copy.site, "race: this copy to byte " + std::to_string(byte) +
                                      " of shared memory lands where thread " + std::to_string(other) +
                                      " may still read or write");
        block.races().release_copies(barrier.index, barrier.phase, barrier.arrived);
    }
    if (copy.kind == BulkCopy::linear_load)
        std::memcpy(copy.shared, copy.global, copy.bytes);
    else
        move_tensor(copy.map, copy.coordinate, copy.shared, block.shared(), copy.kind == BulkCopy::tensor_store);
    if (copy.kind != BulkCopy::tensor_store) advance(block, barriers.at(copy.barrier), 0, -int64_t{copy.bytes});
}

std::string Hopper::left_by(unsigned thread) const
{
    for (const BulkCopy &copy : copies)
        if (copy.kind == BulkCopy::tensor_store && copy.thread == thread)
            return "ended while its tma_store has not read shared memory: tma_store_wait_read is missing";
    if (!work_[thread].open.empty() || !work_[thread].committed.empty())
        return "ended while a wgmma is under way: wgmma_wait is missing";
    return "";
}

std::string Hopper::left_by_block() const
{
    if (copies.empty()) return "";
    return std::string(copies[0].site.file) + ":" + std::to_string(copies[0].site.line) +
           ": all threads ended while this copy into shared memory is on its way: nobody waited for it";
}

std::string Hopper::describe_waits() const
{
    std::string text;
    for (const auto &[byte, barrier] : barriers) {
        if (barrier.waiting.empty()) continue;
        text += " the mbarrier at byte " + std::to_string(byte) + " (" + barrier.site.file + ":" +
                std::to_string(barrier.site.line) + ") is in phase " + std::to_string(barrier.phase) + " and misses " +
                std::to_string(barrier.pending) + " of " + std::to_string(barrier.count) + " arrivals and " +
                std::to_string(barrier.bytes) + " bytes, " + std::to_string(barrier.waiting.size()) +
                " threads wait for it (first thread " + std::to_string(barrier.waiting.front()) + ");";
    }
    for (const RegisterRequest &request : requests)
        text += " warp group " + std::to_string(request.group) + " wants " + std::to_string(request.registers) +
                " registers a thread, it has " + std::to_string(registers[request.group]) + " and " +
                std::to_string(free_registers / group_size) + " a thread are free;";
    return text;
}

} // namespace nib_emulator
