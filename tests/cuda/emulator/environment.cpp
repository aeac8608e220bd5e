/* NIBBLE_EMULATOR: the device that a program under test finds, and what is wrong with it.
 *
 * - devices=N  architecture=75  memory=BYTES: the card that the emulator claims to be
 * - seed=N: another schedule of warps and blocks
 * - products=NS:NS:NS: what cublasLt's algorithms take
 * - early=1: streams but the first run as soon as they are asked, not as late as possible
 * - nccl=21903: the version of NCCL that it claims to have
 * - damage=RANK: the next bytes that NCCL brings to that rank are damaged
 * - waits=FILE: each call that makes the host wait for the device is written there by its name, and how many of the
 *   stream's tasks need not be done for it
 * - fail=FUNCTION:AFTER:ERROR: the (AFTER + 1)-th call of a function of CUDA fails, once; ERROR is its number
 * - skip=NAME: kernels whose name begins so, or cublasLtMatmul, do nothing: outputs stay as they were
 * - crash=NAME:ERROR: kernels whose name begins so end with ERROR
 *
 * separated by commas; skip and crash may come several times. What cannot be read ends the process: a test that asks
 * for nothing would pass. */
#include "include/emulator.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

namespace nib_emulator
{

[[noreturn]] static void refuse(const std::string &item)
{
    std::fprintf(stderr, "NIBBLE_EMULATOR: cannot read '%s'\n", item.c_str());
    std::abort();
}

static std::vector<std::string> split(const std::string &text, char separator)
{
    std::vector<std::string> parts;
    size_t begin = 0, end;
    while ((end = text.find(separator, begin)) != std::string::npos) {
        parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    parts.push_back(text.substr(begin));
    return parts;
}

static long number(const std::string &text, const std::string &item)
{
    char *end;
    long value = std::strtol(text.c_str(), &end, 10);
    if (text.empty() || *end != 0 || value < 0) refuse(item);
    return value;
}

static void apply(const std::string &item, long *architecture, long *memory)
{
    const size_t at = item.find('=');
    if (at == std::string::npos) refuse(item);
    const std::string key = item.substr(0, at);
    const std::vector<std::string> value = split(item.substr(at + 1), ':');
    if (key == "devices" && value.size() == 1)
        set_device_count(static_cast<int>(number(value[0], item)));
    else if (key == "architecture" && value.size() == 1)
        *architecture = number(value[0], item);
    else if (key == "memory" && value.size() == 1)
        *memory = number(value[0], item);
    else if (key == "seed" && value.size() == 1)
        set_first_seed(static_cast<uint64_t>(number(value[0], item)));
    else if (key == "products" && value.size() == 3)
        set_products(3, {static_cast<uint64_t>(number(value[0], item)), static_cast<uint64_t>(number(value[1], item)),
                         static_cast<uint64_t>(number(value[2], item))});
    else if (key == "early" && value.size() == 1)
        set_early(number(value[0], item) != 0);
    else if (key == "nccl" && value.size() == 1)
        set_nccl_version(static_cast<int>(number(value[0], item)));
    else if (key == "damage" && value.size() == 1)
        set_nccl_damage(static_cast<int>(number(value[0], item)));
    else if (key == "waits" && value.size() == 1)
        log_host_waits(value[0].c_str());
    else if (key == "fail" && value.size() == 3)
        inject_error(value[0].c_str(), static_cast<int>(number(value[1], item)),
                     static_cast<cudaError_t>(number(value[2], item)));
    else if (key == "skip" && value.size() == 1)
        break_kernel(value[0].c_str(), cudaSuccess);
    else if (key == "crash" && value.size() == 2)
        break_kernel(value[0].c_str(), static_cast<cudaError_t>(number(value[1], item)));
    else
        refuse(item);
}

static void read()
{
    const char *text = std::getenv("NIBBLE_EMULATOR");
    long architecture = 90, memory = 2L << 30;
    if (text == nullptr || *text == 0) return;
    for (const std::string &item : split(text, ',')) apply(item, &architecture, &memory);
    set_device(static_cast<int>(architecture / 10), static_cast<int>(architecture % 10), 4,
               static_cast<size_t>(memory));
}

void read_environment()
{
    static std::once_flag once;
    std::call_once(once, read);
}

} // namespace nib_emulator
