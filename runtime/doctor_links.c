#include "doctor_links.h"
#include "base/buffer.h"
#include "base/log.h"
#include "base/memory.h"
#include "collectives.h"
#include "collectives_check.h"
#include "link_check.h"
#include "nccl/device_exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A pair is slow by the median of the pairs of its kind, within a machine or between two. */
#define SLOW_BANDWIDTH (1.0 / 3)
#define SLOW_LATENCY   10.0
#define MOST_NAMED     16

typedef struct {
    float latency, bandwidth;
} medians;

/* At rank 0: what it knows of the ranks, and the report as it goes. */
typedef struct {
    nib_collectives *c;
    bool json;
    int64_t *machine; /* [size] other numbers on other machines */
    nib_link *link;   /* [pairs] */
    float *sorted;    /* [2 * pairs] room */
    nib_buffer out;   /* JSON */
    const char *separator;
    int wrong; /* pairs */
} report;

static int64_t pairs_of(const nib_collectives *c) { return (int64_t)c->size * (c->size - 1) / 2; }

/* Of this machine, by its name. */
static int64_t machine_number(void)
{
    char name[256] = "";
    uint64_t number = 0xcbf29ce484222325u; /* FNV-1a */
    (void)gethostname(name, sizeof name - 1);
    for (const char *at = name; *at != 0; at++) number = (number ^ (unsigned char)*at) * 0x100000001b3u;
    return (int64_t)number;
}

static bool is_apart(const report *r, int a, int b) { return r->machine[a] != r->machine[b]; }

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The upper one of two in the middle: of a few pairs, half may be slow. */
static float median(float *values, size_t count)
{
    if (count == 0) return 0;
    qsort(values, count, sizeof *values, by_value);
    return values[count / 2];
}

static medians find_medians(const report *r, bool apart)
{
    medians m;
    size_t latencies = 0, bandwidths = 0;
    for (int b = 1; b < r->c->size; b++)
        for (int a = 0; a < b; a++)
            if (is_apart(r, a, b) == apart) r->sorted[latencies++] = r->link[nib_link_index(a, b)].latency;
    m.latency = median(r->sorted, latencies);
    for (int b = 1; b < r->c->size; b++)
        for (int a = 0; a < b; a++) {
            const nib_link *link = &r->link[nib_link_index(a, b)];
            if (is_apart(r, a, b) != apart) continue;
            r->sorted[bandwidths++] = link->there;
            r->sorted[bandwidths++] = link->back;
        }
    m.bandwidth = median(r->sorted, bandwidths);
    return m;
}

static const char *verdict_on(const nib_link *link, medians m)
{
    if (link->wrong != 0) return "wrong bytes";
    if (link->there < SLOW_BANDWIDTH * m.bandwidth || link->back < SLOW_BANDWIDTH * m.bandwidth) return "slow";
    return link->latency > SLOW_LATENCY * m.latency ? "slow to answer" : "well";
}

static void add_link(report *r, const char *transport, int a, int b, medians m)
{
    const nib_link *link = &r->link[nib_link_index(a, b)];
    const char *verdict = verdict_on(link, m), *where = is_apart(r, a, b) ? "between machines" : "in a machine";
    const double us = 1e6 * (double)link->latency, there = (double)link->there, back = (double)link->back;
    r->wrong += link->wrong != 0;
    if (!r->json) {
        printf("  %5d %5d  %-16s %10.1f us %9.3f GB/s %9.3f GB/s  %s\n", a, b, where, us, 1e-9 * there, 1e-9 * back,
               verdict);
        return;
    }
    nib_buffer_format(&r->out,
                      "%s{\"transport\":\"%s\",\"ranks\":[%d,%d],\"machines\":%d,\"latency_us\":%.4g,"
                      "\"there_bytes_s\":%.4g,\"back_bytes_s\":%.4g,\"verdict\":\"%s\"}",
                      r->separator, transport, a, b, is_apart(r, a, b) ? 2 : 1, us, there, back, verdict);
    r->separator = ",";
}

static void name_bad(const report *r, const char *transport, const medians m[2])
{
    int64_t bad = 0;
    for (int b = 1; b < r->c->size; b++)
        for (int a = 0; a < b; a++) {
            const char *verdict = verdict_on(&r->link[nib_link_index(a, b)], m[is_apart(r, a, b)]);
            if (strcmp(verdict, "well") != 0 && bad++ < MOST_NAMED)
                nib_warn("ranks %d and %d over %s: %s", a, b, transport, verdict);
        }
    if (bad > MOST_NAMED)
        nib_warn("%lld more pairs over %s are marked in the table", (long long)bad - MOST_NAMED, transport);
}

static void print_links(report *r, const char *transport)
{
    const medians m[2] = {find_medians(r, false), find_medians(r, true)};
    if (!r->json) printf("\n  %s\n  ranks a, b  %-16s %13s %14s %14s\n", transport, "", "latency", "a to b", "b to a");
    for (int b = 1; b < r->c->size; b++)
        for (int a = 0; a < b; a++) add_link(r, transport, a, b, m[is_apart(r, a, b)]);
    fflush(stdout);
    name_bad(r, transport, m);
}

/* Every rank fails if a pair is wrong. */
static nib_status settle_links(report *r, const char *transport)
{
    int64_t wrong = 0; /* 1 + (index of the pair) * 4 + directions, of the last such pair */
    for (int64_t i = 0; r->c->rank == 0 && i < pairs_of(r->c); i++)
        if (r->link[i].wrong != 0) wrong = 1 + 4 * i + r->link[i].wrong;
    NIB_TRY(nib_agree_largest(r->c, &wrong));
    if (wrong == 0) return NIB_OK;
    int b = 1;
    while (nib_link_index(0, b + 1) <= (wrong - 1) / 4) b++;
    const int a = (int)((wrong - 1) / 4 - nib_link_index(0, b));
    const bool back = ((wrong - 1) & 1) == 0;
    return NIB_FAIL(NIB_ERROR_DEVICE, "a message over %s from rank %d to rank %d delivers wrong bytes", transport,
                    back ? b : a, back ? a : b);
}

static nib_status measure(report *r, nib_ops *ops, nib_device_exchange *exchange, const char *transport)
{
    NIB_TRY(nib_link_check(r->c, ops, exchange, r->link));
    if (r->c->rank == 0) print_links(r, transport);
    return settle_links(r, transport);
}

/* This rank's GPU; *ops NULL where any rank has none. */
static nib_status open_devices(nib_collectives *c, nib_device device, nib_ops **ops)
{
    char text[512];
    *ops = NULL;
    if (device == NIB_DEVICE_AUTO && nib_device_describe(NIB_DEVICE_CUDA, c->local_rank, text, sizeof text) == NIB_OK)
        device = NIB_DEVICE_CUDA;
    if (device == NIB_DEVICE_CUDA || device == NIB_DEVICE_EMULATED) {
        nib_status status = nib_open_device(device, c->local_rank, ops);
        if (status != NIB_OK)
            return nib_error_context(status, "rank %d, --device %s", c->rank, nib_device_name(device));
    }
    int64_t missing = *ops == NULL;
    nib_status status = nib_agree_largest(c, &missing);
    if (missing != 0 && *ops != NULL) nib_warn("not every rank has a GPU: the links between GPUs are not measured");
    if (status == NIB_OK && missing == 0) return NIB_OK;
    nib_close_backend(*ops);
    *ops = NULL;
    return status;
}

static nib_status check_devices(report *r, nib_device device)
{
    nib_ops *ops;
    nib_device_exchange *exchange = NULL;
    NIB_TRY(open_devices(r->c, device, &ops));
    if (ops == NULL) return NIB_OK;
    nib_status status = nib_device_exchange_open(r->c, ops, &exchange);
    if (status == NIB_OK && exchange != NULL) status = measure(r, ops, exchange, "NCCL");
    nib_device_exchange_close(exchange, status);
    nib_close_backend(ops);
    return status;
}

static nib_status examine(report *r, const nib_ranks *ranks, nib_device device)
{
    nib_collectives *c = r->c;
    NIB_TRY(nib_gather_values(c, machine_number(), r->machine));
    if (r->json)
        nib_buffer_format(&r->out,
                          "{\"launcher\":\"%s\",\"ranks\":%d,\"transport\":\"%s\",\"check_ms\":%.4g,\"links\":[",
                          ranks->launcher, c->size, c->name, 1e3 * c->check_seconds);
    else if (c->rank == 0)
        printf("  %d ranks over %s, started by %s; the start's check of them takes %.1f ms\n", c->size, c->name,
               ranks->launcher, 1e3 * c->check_seconds);
    nib_status status = measure(r, NULL, NULL, c->name);
    if (status == NIB_OK) status = check_devices(r, device);
    return status;
}

static nib_status report_all(nib_collectives *c, const nib_ranks *ranks, nib_device device, bool json)
{
    const size_t pairs = (size_t)pairs_of(c);
    report r = {.c = c,
                .json = json,
                .separator = "",
                .machine = nib_calloc((size_t)c->size, sizeof *r.machine),
                .link = nib_calloc(c->rank == 0 ? pairs : 0, sizeof *r.link),
                .sorted = nib_calloc(c->rank == 0 ? 2 * pairs : 0, sizeof *r.sorted)};
    nib_status status = NIB_OK;
    if (r.machine == NULL || r.link == NULL || r.sorted == NULL)
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the links of %d ranks", c->size);
    if (status == NIB_OK) status = examine(&r, ranks, device);
    if (c->rank == 0 && json) {
        nib_buffer_format(&r.out, "],\"well\":%s}\n", status == NIB_OK ? "true" : "false");
        if (!r.out.failed) fwrite(r.out.data, 1, r.out.length, stdout);
        fflush(stdout); /* the close below may not come back */
    }
    nib_free(r.machine);
    nib_free(r.link);
    nib_free(r.sorted);
    nib_buffer_free(&r.out);
    return status;
}

nib_status nib_doctor_links(const nib_ranks *ranks, nib_device device, bool json)
{
    nib_collectives *c;
    if (ranks->rank > 0) nib_log_quiet();
    NIB_TRY(nib_collectives_open(ranks, &c));
    nib_status status = report_all(c, ranks, device, json);
    nib_status closed = c->close(c, status);
    return status == NIB_OK ? closed : status;
}
