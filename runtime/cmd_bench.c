/* nibble bench: how fast this machine is at whole steps, at generating, at each op. */
#include "bench.h"
#include "command.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static const struct {
    const char *kind;
    nib_status (*run)(int argc, char **argv);
} benches[] = {{"step", nib_bench_step}, {"generate", nib_bench_generate}, {"ops", nib_bench_ops}};

static nib_status run(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++)
        if (argc > 0 && strcmp(argv[0], benches[i].kind) == 0) return benches[i].run(argc - 1, argv + 1);
    return NIB_FAIL(NIB_ERROR_USAGE, "%s '%s'; nibble bench --help lists the kinds",
                    argc > 0 ? "unknown kind" : "expected a kind of benchmark, found", argc > 0 ? argv[0] : "");
}

double nib_bench_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

size_t nib_bench_peak_bytes(void)
{
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    unsigned long long kib = 0;
    while (status != NULL && fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "VmHWM: %llu", &kib) == 1) break;
    if (status != NULL) fclose(status);
    return (size_t)kib * 1024;
}

const nib_command nib_command_bench = {
    .name = "bench",
    .summary = "times training steps, generation and single ops on this machine",
    .usage =
        "usage: nibble bench step --model M [--random] [--batch 4] [--length 512] [--rank 16] [--compute bf16|fp32] "
        "[--fp8]\n"
        "                         [--device D] [--breakdown] [--json]\n"
        "       nibble bench generate --model M [--random] [--adapter A] [--prompt-tokens 512]\n"
        "                             [--new-tokens 100] [--quant nf4|none] [--compute bf16|fp32] [--device D] "
        "[--json]\n"
        "       nibble bench ops [--op NAME] [--model M] [--tokens 2048] [--length 512]\n"
        "                         [--seconds 0.3] [--device D] [--json]\n"
        "\n"
        "step       whole training steps on random tokens, all of them supervised: LoRA on every linear over an\n"
        "           NF4 base; the best of several is reported. --random: M needs only a config.json, its weights are\n"
        "           made up. --fp8: the linears multiply in 8-bit floating point, on a GPU alone.\n"
        "           --breakdown: where the time goes, op by op, each waited for\n"
        "generate   one prompt of random tokens, then greedy decoding; the best of three\n"
        "ops        each op at the shapes of M, of which only the config.json is read (without it SmolLM2-135M's), in\n"
        "           documents of --length tokens, against a plain product or a copy of as many bytes on the same "
        "device\n",
    .run = run,
};
