/* What four warps do together: wgmma (PTX ISA, "Asynchronous warpgroup level matrix instructions") and setmaxnreg. */
#include "block.h"
#include "include/emulated_hopper.h"
#include "memory.h"

#include <algorithm>
#include <cstring>

namespace nib_emulator
{

constexpr unsigned rows = 64, depth = 16; /* of m64nNk16 */

/* ---- operands in shared memory ---- */

/* A descriptor's fields (PTX ISA, "Matrix Descriptor Format"), in bytes. */
struct Descriptor {
    size_t start, leading, stride;
    unsigned pattern; /* bytes of a row of the swizzle's pattern; 0: none */
    explicit Descriptor(uint64_t d)
        : start((d & 0x3fff) << 4), leading((d >> 16 & 0x3fff) << 4), stride((d >> 32 & 0x3fff) << 4),
          pattern(const_pattern[d >> 62])
    {
    }
    static constexpr unsigned const_pattern[4] = {0, 128, 64, 32};

    /* Byte of element (row, k), bf16; row is m or n. Blocks of eight rows (k-major) or of eight k (mn-major) lie
     * `stride` apart; blocks along the other axis, where the pattern is not wide enough, `leading`. */
    size_t byte_of(unsigned row, unsigned k, bool mn_major) const
    {
        size_t byte = start;
        if (pattern == 0 && !mn_major) byte += row % 8 * 16 + row / 8 * stride + k / 8 * leading + k % 8 * 2;
        if (pattern == 0 && mn_major) byte += k % 8 * 16 + k / 8 * leading + row / 8 * stride + row % 8 * 2;
        if (pattern != 0 && !mn_major) byte += row % 8 * pattern + row / 8 * stride + k * 2;
        if (pattern != 0 && mn_major)
            byte += row % (pattern / 2) * 2 + row / (pattern / 2) * leading + k % 8 * pattern + k / 8 * stride;
        return pattern == 0 ? byte : byte ^ (byte >> 7 & (pattern / 16 - 1)) << 4;
    }
};

/* [rows, 16], or false if some of it is not shared memory. */
static bool gather(const SharedOperand &operand, std::vector<uint16_t> &values)
{
    Block &block = *Block::current;
    Descriptor where(operand.descriptor);
    values.resize(operand.rows * depth);
    for (unsigned row = 0; row < operand.rows; row++)
        for (unsigned k = 0; k < depth; k++) {
            size_t byte = where.byte_of(row, k, operand.mn_major);
            if (byte + 2 > block.shared_bytes()) return false;
            std::memcpy(&values[row * depth + k], block.shared() + byte, 2);
        }
    return true;
}

/* The operand's values now; fails where another thread's writes are not seen by wgmma. */
static std::vector<uint16_t> read_operand(const char *name, Site site, const SharedOperand &operand)
{
    Block &block = *Block::current;
    Descriptor where(operand.descriptor);
    std::vector<uint16_t> values;
    if ((operand.descriptor >> 49 & 7) != 0) block.fail(site, "%s: a base offset is not modelled", name);
    if (!gather(operand, values))
        block.fail(site, "%s: the operand at byte %zu reaches beyond %zu bytes of shared memory", name, where.start,
                   block.shared_bytes());
    for (unsigned row = 0; row < operand.rows; row += operand.mn_major ? 8 : 1)
        for (unsigned k = 0; k < depth; k += operand.mn_major ? 1 : 8) {
            int writer = block.hopper().unfenced_writer(where.byte_of(row, k, operand.mn_major), 2);
            if (writer >= 0)
                block.fail(site, "%s: thread %d wrote its operand and has not called fence_proxy_async since", name,
                           writer);
        }
    return values;
}

/* Every warp of the group reads all of the operand, from its product's start until it has waited; a piece of 16 bytes
 * was written by one thread or copy. */
static void share_operand(Site site, unsigned thread, const SharedOperand &operand)
{
    Block &block = *Block::current;
    Descriptor where(operand.descriptor);
    for (unsigned row = 0; row < operand.rows; row += operand.mn_major ? 8 : 1)
        for (unsigned k = 0; k < depth; k += operand.mn_major ? 1 : 8) {
            size_t byte = where.byte_of(row, k, operand.mn_major);
            int other = block.races().access(thread, byte, 4, Access::read);
            if (other >= 0)
                block.fail(site,
                           "race: the operand at byte %zu of shared memory, no barrier orders that and what "
                           "thread %d wrote",
                           byte, other);
        }
}

/* ---- products ---- */

struct ProductArgument {
    const char *name;
    Site site;
    float *registers;
    unsigned n;
    const uint32_t *a; /* nullptr: in shared memory */
    SharedOperand shared_a, b;
    bool accumulate;
};

static float from_bf16(uint32_t bits) { return bits_as<float>(bits << 16); }

/* Lane 4 g + t of warp w holds rows 16 w + g and + 8, columns 2t and 2t + 1 of each 64 x 8. */
template <class Each> static void each_register(unsigned thread, unsigned n, Each each)
{
    unsigned row = thread / 32 * 16 + thread % 32 / 4, column = 2 * (thread % 4);
    for (unsigned i = 0; i < n / 2; i++) each(i, (row + i / 2 % 2 * 8) * n + i / 4 * 8 + column + i % 2);
}

/* [64, 16] from the registers of 128 threads, as mma.m16n8k16 holds a. */
static void unpack_left(void *const argument[group_size], float *a)
{
    for (unsigned thread = 0; thread < group_size; thread++) {
        const uint32_t *words = static_cast<ProductArgument *>(argument[thread])->a;
        unsigned row = thread / 32 * 16 + thread % 32 / 4, column = 2 * (thread % 4);
        for (unsigned i = 0; i < 4; i++)
            for (unsigned h = 0; h < 2; h++)
                a[(row + i % 2 * 8) * depth + column + i / 2 * 8 + h] = from_bf16(words[i] >> 16 * h & 0xffff);
    }
}

/* The sums that the product adds to: of one under way with the same registers, or what is in the registers. */
static void take_sums(GroupProduct &product, void *const argument[group_size], bool accumulate,
                      std::vector<std::shared_ptr<GroupProduct>> &flying)
{
    GroupProduct *before = nullptr;
    for (auto &other : flying)
        if (!other->superseded && other->registers[0] == product.registers[0]) before = other.get();
    if (before != nullptr && before->n != product.n)
        Block::current->fail(product.site, "%s: its registers are those of a product of another shape under way",
                             product.name);
    if (before != nullptr) before->superseded = true;
    if (!accumulate) return;
    if (before != nullptr) {
        product.result = std::move(before->result);
        return;
    }
    for (unsigned thread = 0; thread < group_size; thread++) {
        const float *registers = static_cast<ProductArgument *>(argument[thread])->registers;
        each_register(thread, product.n, [&](unsigned i, unsigned at) { product.result[at] = registers[i]; });
    }
}

/* Products of bf16 are exact; the chip's order of the sum is not known, this one is by k. */
static void add_products(float *sum, const float *a, const float *b, unsigned n)
{
    for (unsigned m = 0; m < rows; m++)
        for (unsigned k = 0; k < depth; k++) {
            float left = a[m * depth + k];
            for (unsigned j = 0; j < n; j++) sum[m * n + j] += left * b[k * n + j];
        }
}

static void start_product(unsigned group, void *const argument[group_size])
{
    Block &block = *Block::current;
    const ProductArgument &first = *static_cast<ProductArgument *>(argument[0]);
    auto product = std::make_shared<GroupProduct>();
    product->name = first.name;
    product->site = first.site;
    product->n = first.n;
    product->result.assign(rows * first.n, 0.0f);
    for (unsigned thread = 0; thread < group_size; thread++) {
        const ProductArgument &mine = *static_cast<ProductArgument *>(argument[thread]);
        product->registers[thread] = mine.registers;
        if (mine.b.descriptor != first.b.descriptor || mine.accumulate != first.accumulate ||
            (first.a == nullptr && mine.shared_a.descriptor != first.shared_a.descriptor))
            block.fail(first.site, "%s: the threads of a warp group name different operands", first.name);
    }
    if (first.a == nullptr) product->operands.push_back(first.shared_a);
    product->operands.push_back(first.b);
    for (const SharedOperand &operand : product->operands)
        product->contents.push_back(read_operand(first.name, first.site, operand));
    for (unsigned thread = group * group_size; thread < (group + 1) * group_size; thread += warp_size)
        for (const SharedOperand &operand : product->operands) share_operand(first.site, thread, operand);

    std::vector<float> a(rows * depth), b(depth * first.n);
    const std::vector<uint16_t> &right = product->contents.back();
    if (first.a != nullptr)
        unpack_left(argument, a.data());
    else
        std::transform(product->contents[0].begin(), product->contents[0].end(), a.begin(), from_bf16);
    for (unsigned j = 0; j < first.n; j++)
        for (unsigned k = 0; k < depth; k++) b[k * first.n + j] = from_bf16(right[j * depth + k]);
    auto &flying = block.hopper().flying[group];
    take_sums(*product, argument, first.accumulate, flying);
    add_products(product->result.data(), a.data(), b.data(), first.n);
    for (unsigned thread = 0; thread < group_size; thread++) {
        poison(product->registers[thread], first.n / 2 * sizeof(float));
        block.hopper().work(group * group_size + thread).open.push_back(product);
    }
    flying.push_back(product);
    block.counters().matrix_products++;
}

void multiply_group(const char *name, Site site, float *sum, unsigned n, const uint32_t *a, uint64_t a_descriptor,
                    bool a_mn_major, uint64_t b_descriptor, bool b_mn_major, bool accumulate)
{
    Block &block = hopper_block(name, site);
    if (!block.hopper().work(block.thread_index()).products_fenced)
        block.fail(site, "%s: no wgmma_fence since the thread's last wgmma_commit", name);
    ProductArgument argument{
        name, site, sum, n, a, {a_descriptor, a_mn_major, rows}, {b_descriptor, b_mn_major, n}, accumulate};
    block.meet_group(name, site, &argument, start_product);
}

void fence_products(Site site)
{
    Block &block = hopper_block("wgmma_fence", site);
    block.hopper().work(block.thread_index()).products_fenced = true;
}

void commit_products(Site site)
{
    Block &block = hopper_block("wgmma_commit", site);
    AsyncWork &work = block.hopper().work(block.thread_index());
    work.committed.push_back(std::move(work.open));
    work.open.clear();
    work.products_fenced = false;
}

/* A thread's part of a product reaches its registers. Operands must be as they were until all threads have waited. */
static void deliver(Block &block, Site site, unsigned index, GroupProduct &product)
{
    unsigned thread = index % group_size;
    float *registers = product.registers[thread];
    if (!product.superseded) {
        std::vector<float> poisoned(product.n / 2);
        poison(poisoned.data(), poisoned.size() * sizeof(float));
        if (std::memcmp(registers, poisoned.data(), poisoned.size() * sizeof(float)) != 0)
            block.fail(site, "the sums of %s (%s:%d) were written while it was under way", product.name,
                       product.site.file, product.site.line);
        each_register(thread, product.n, [&](unsigned i, unsigned at) { registers[i] = product.result[at]; });
    }
    if (thread % warp_size == 0)
        for (const SharedOperand &operand : product.operands) share_operand(site, index, operand);
    if (--product.left > 0) return;
    for (size_t i = 0; i < product.operands.size(); i++) {
        std::vector<uint16_t> now;
        gather(product.operands[i], now);
        if (now != product.contents[i])
            block.fail(site, "an operand of %s (%s:%d) was overwritten while it was under way", product.name,
                       product.site.file, product.site.line);
    }
    auto &flying = block.hopper().flying[index / group_size];
    flying.erase(std::find_if(flying.begin(), flying.end(), [&](auto &other) { return other.get() == &product; }));
}

struct WaitArgument {
    unsigned thread, pending;
    Site site;
};

/* The warp goes on together: one lane may speak for all that their products are done. */
void wait_products(Site site, unsigned pending)
{
    Block &block = hopper_block("wgmma_wait", site);
    WaitArgument argument{block.thread_index(), pending, site};
    block.meet("wgmma_wait", site, ~0u, true, &argument, [](uint32_t, void *const all[warp_size]) {
        for (unsigned lane = 0; lane < warp_size; lane++) {
            const WaitArgument &mine = *static_cast<WaitArgument *>(all[lane]);
            auto &committed = Block::current->hopper().work(mine.thread).committed;
            while (committed.size() > mine.pending) {
                for (auto &product : committed.front()) deliver(*Block::current, mine.site, mine.thread, *product);
                committed.erase(committed.begin());
            }
        }
    });
}

/* ---- setmaxnreg ---- */

/* Gives waiting groups what they asked for, first come first served, as far as it goes. */
static void grant(Block &block)
{
    Hopper &hopper = block.hopper();
    while (!hopper.requests.empty()) {
        RegisterRequest &request = hopper.requests.front();
        unsigned more = (request.registers - hopper.registers[request.group]) * group_size;
        if (more > hopper.free_registers) return;
        hopper.free_registers -= more;
        hopper.registers[request.group] = request.registers;
        for (unsigned thread : request.waiting) block.wake(thread);
        hopper.requests.erase(hopper.requests.begin());
    }
}

struct RegisterArgument {
    unsigned registers;
    bool raise, granted;
};

static void change_registers(unsigned group, void *const argument[group_size])
{
    Block &block = *Block::current;
    Hopper &hopper = block.hopper();
    const RegisterArgument wanted = *static_cast<RegisterArgument *>(argument[0]);
    if (wanted.raise) {
        hopper.requests.push_back({group, wanted.registers, {}});
    } else {
        hopper.free_registers += (hopper.registers[group] - wanted.registers) * group_size;
        hopper.registers[group] = wanted.registers;
    }
    grant(block);
    for (unsigned i = 0; i < group_size; i++)
        static_cast<RegisterArgument *>(argument[i])->granted = hopper.registers[group] == wanted.registers;
}

void limit_registers(const char *name, Site site, unsigned registers, bool raise)
{
    Block &block = hopper_block(name, site);
    unsigned group = block.thread_index() / group_size;
    if (registers < 24 || registers > 256 || registers % 8 != 0)
        block.fail(site, "%s: %u registers, expected a multiple of 8 from 24 to 256", name, registers);
    if (group >= block.hopper().registers.size()) block.fail(site, "%s outside of a whole warp group", name);
    unsigned has = block.hopper().registers[group];
    if (raise ? registers < has : registers > has)
        block.fail(site, "%s: to %u registers from %u", name, registers, has);
    RegisterArgument argument{registers, raise, false};
    block.meet_group(name, site, &argument, change_registers);
    if (argument.granted) return;
    for (RegisterRequest &request : block.hopper().requests)
        if (request.group == group) {
            request.waiting.push_back(block.thread_index());
            block.wait(name, site);
            return;
        }
}

} // namespace nib_emulator
