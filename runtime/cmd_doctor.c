#include "base/buffer.h"
#include "base/utf8.h"
#include "command.h"
#include "cpu/backend.h"
#include "device.h"
#include "doctor_links.h"
#include "doctor_machine.h"
#include "options.h"
#include "self_check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define SCRATCH_BYTES ((size_t)1 << 30) /* address space: pages that no op touches cost nothing */

/* The report as it goes: printed at once, or collected as JSON. The block to paste is the machine and what is wrong. */
typedef struct {
    bool json;
    nib_buffer out;   /* JSON */
    nib_buffer block; /* to paste */
    const char *separator;
    int cases, wrong;
} report;

static void add_fact(void *user, const char *name, const char *text)
{
    report *r = user;
    nib_buffer_format(&r->block, "  %-10s %s\n", name, text);
    if (r->json) {
        nib_buffer_format(&r->out, "%s\"%s\":", r->separator, name);
        nib_buffer_json_string(&r->out, text, strlen(text), true);
        r->separator = ",";
    } else {
        printf("  %-10s ", name);
        nib_utf8_print(stdout, text, strlen(text));
        putchar('\n');
    }
}

/* JSON has no infinity: a difference that is not finite is null. */
static void add_number(nib_buffer *out, const char *name, double value)
{
    if (isfinite(value))
        nib_buffer_format(out, ",\"%s\":%.3g", name, value);
    else
        nib_buffer_format(out, ",\"%s\":null", name);
}

static const char *number(char text[16], double value)
{
    if (isnan(value)) return "-";
    snprintf(text, 16, "%.2g", value);
    return text;
}

static void add_case(void *user, const nib_check_line *line)
{
    static const char *const verdicts[] = {"agrees", "only the plain kernel agrees", "disagrees"};
    report *r = user;
    char text[512], fast[16], plain[16];
    r->cases++;
    r->wrong += line->verdict != NIB_CHECK_AGREES;
    snprintf(text, sizeof text, "  %-20s %-66s %-13s %8s %8s %8.2g  %s\n", line->op, line->shape, line->which,
             number(fast, line->fast), number(plain, line->plain), line->allowed, verdicts[line->verdict]);
    if (line->verdict != NIB_CHECK_AGREES) nib_buffer_text(&r->block, text);
    if (!r->json) {
        fputs(text, stdout);
        fflush(stdout);
        return;
    }
    nib_buffer_format(&r->out, "%s{\"kind\":\"op\",\"name\":\"%s\",\"shape\":\"%s\",\"result\":\"%s\"", r->separator,
                      line->op, line->shape, line->which);
    add_number(&r->out, "difference", line->fast);
    add_number(&r->out, "plain_difference", line->plain);
    add_number(&r->out, "allowed", line->allowed);
    nib_buffer_format(&r->out, ",\"verdict\":\"%s\"}", verdicts[line->verdict]);
    r->separator = ",";
}

static void add_instruction(void *user, const nib_instruction_line *line)
{
    static const char *const verdicts[] = {"agrees", "this device does not have it", "disagrees"};
    report *r = user;
    char text[320];
    r->cases++;
    r->wrong += line->verdict == NIB_INSTRUCTION_DISAGREES;
    snprintf(text, sizeof text, "  %-36s %s%s%s\n", line->name, verdicts[line->verdict],
             line->difference[0] != 0 ? ": " : "", line->difference);
    if (line->verdict == NIB_INSTRUCTION_DISAGREES) nib_buffer_text(&r->block, text);
    if (!r->json) {
        fputs(text, stdout);
        return;
    }
    nib_buffer_format(&r->out, "%s{\"kind\":\"instruction\",\"name\":\"%s\",\"verdict\":\"%s\",\"difference\":\"%s\"}",
                      r->separator, line->name, verdicts[line->verdict], line->difference);
    r->separator = ",";
}

static nib_status check_ops(report *r, nib_ops *ops, nib_check_size size, uint32_t *off)
{
    nib_ops *reference;
    bool refused;
    NIB_TRY(nib_cpu_backend_create(SCRATCH_BYTES, &reference));
    if (!r->json)
        printf("\n  %-20s %-66s %-13s %8s %8s %8s  %s\n", "op", "shape", "result", "off by", "plain", "allowed",
               "verdict");
    nib_status status = nib_self_check(ops, reference, size, add_case, r, off, &refused);
    nib_cpu_backend_free(reference);
    return status;
}

/* The GPU if there is one, else the CPU; the machine's facts have said why. */
static nib_status open_device(nib_device *device, nib_ops **ops)
{
    if (*device == NIB_DEVICE_AUTO) {
        char text[512];
        const bool gpu = nib_device_describe(NIB_DEVICE_CUDA, 0, text, sizeof text) == NIB_OK;
        *device = gpu ? NIB_DEVICE_CUDA : NIB_DEVICE_CPU;
    }
    nib_status status = nib_open_device(*device, 0, ops);
    return status == NIB_OK ? NIB_OK : nib_error_context(status, "--device %s", nib_device_name(*device));
}

static void finish(report *r, const nib_ops *ops, uint32_t off, double seconds)
{
    nib_buffer_format(&r->block, "  %s: %d of %d cases agree, %.1f s\n", ops->name, r->cases - r->wrong, r->cases,
                      seconds);
    for (int i = 0; i < ops->choices; i++)
        if ((off >> i & 1) != 0) nib_buffer_format(&r->block, "  switched off: %s\n", ops->choice[i]);
    if (!r->json) {
        printf("\nTo paste into a report:\n\n");
        nib_utf8_print(stdout, r->block.data, r->block.length);
        return;
    }
    nib_buffer_format(&r->out, "],\"switched_off\":[");
    const char *separator = "";
    for (int i = 0; i < ops->choices; i++)
        if ((off >> i & 1) != 0) {
            nib_buffer_format(&r->out, "%s\"%s\"", separator, ops->choice[i]);
            separator = ",";
        }
    nib_buffer_format(&r->out, "],\"cases\":%d,\"agree\":%s}\n", r->cases, r->wrong == 0 ? "true" : "false");
    fwrite(r->out.data, 1, r->out.length, stdout);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static nib_status examine(report *r, nib_device device)
{
    nib_ops *ops;
    uint32_t off;
    char libraries[256];
    const double begun = now();
    nib_buffer_text(&r->out, "{\"machine\":{");
    nib_doctor_machine(add_fact, r);
    NIB_TRY(open_device(&device, &ops));
    NIB_TRY(nib_device_libraries(device, libraries, sizeof libraries));
    if (libraries[0] != 0) add_fact(r, "CUDA", libraries);
    nib_buffer_format(&r->out, "},\"device\":\"%s\",\"checks\":[", ops->name);
    r->separator = "";
    nib_status status =
        check_ops(r, ops, device == NIB_DEVICE_EMULATED ? NIB_CHECK_SHORT : NIB_CHECK_FULL, &off); /* emulated: slow */
    if (status == NIB_OK) {
        if (!r->json && device != NIB_DEVICE_CPU) puts("\n  instruction");
        status = nib_device_instructions(device, ops, add_instruction, r);
    }
    if (status == NIB_OK && (r->out.failed || r->block.failed))
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the report");
    if (status == NIB_OK) finish(r, ops, off, now() - begun);
    if (status == NIB_OK && r->wrong > 0)
        status = NIB_FAIL(NIB_ERROR_DEVICE, "%s: %d of %d cases disagree with their reference", ops->device, r->wrong,
                          r->cases);
    ops->close(ops);
    return status;
}

static nib_status run(int argc, char **argv)
{
    nib_device device = NIB_DEVICE_AUTO;
    report r = {.separator = ""};
    const nib_option options[] = {
        {.name = "--device", .kind = NIB_OPTION_DEVICE, .value = &device},
        {.name = "--json", .kind = NIB_OPTION_FLAG, .value = &r.json},
    };
    nib_ranks ranks;
    NIB_TRY(nib_options_read(argc, argv, options, sizeof options / sizeof *options));
    NIB_TRY(nib_ranks_read(&ranks));
    nib_ranks_share_processors(&ranks);
    if (ranks.size > 1) return nib_doctor_links(&ranks, device, r.json);
    nib_status status = examine(&r, device);
    nib_buffer_free(&r.out);
    nib_buffer_free(&r.block);
    return status;
}

const nib_command nib_command_doctor = {
    .name = "doctor",
    .summary = "says what this machine has, and checks every op on it, or the links between ranks",
    .usage =
        "usage: nibble doctor [--device auto|cpu|cuda|emulated] [--json]\n\n"
        "Lists processor, memory, disk, GPUs, driver, CUDA, NCCL and MPI. Then every op runs on random data by its\n"
        "fast kernel and by its plain one, and both are held against the CPU's plain arithmetic in fp32. A line names\n"
        "op, shape and the result that is furthest off, relative to its size; on a GPU the instructions that kernels\n"
        "build on are tried one by one besides. Ends with a block for a report.\n"
        "Exit code 0 if all agree, 69 if not.\n\n"
        "Started by nibble-launch, mpirun, torchrun or srun it checks the links between the ranks instead: known\n"
        "bytes between every two, over what carries the collectives and, where every rank has a GPU, over NCCL.\n"
        "Rank 0 prints latency and bandwidth of each pair, in both directions; slow pairs are named. Exit code 0 if\n"
        "all bytes arrive right, 69 with the pair or the rank if not.\n\n"
        "  --device D  what is checked; auto: the GPU if there is one, else the CPU's vector kernels\n"
        "  --json      one object on standard output\n",
    .run = run,
};
