#include "cards.h"
#include <stdio.h>

#include <ctype.h>
#include <string.h>

#define GIB     ((double)(1 << 30))
#define LEAST   80 /* sm_80: the first with bf16 products and asynchronous copies */
#define TERA    1e12
#define NVLINK4 450e9 /* Hopper */
#define NVLINK3 300e9 /* Ampere */
#define PCIE4   28e9  /* 16 lanes, as measured rather than as named */
#define PCIE5   55e9

static const nib_card cards[] = {
    {"A100", 80, 79.1 * GIB, 312 * TERA, 2.04 * TERA, NVLINK3}, /* SXM, 80 GB */
    {"A6000", 86, 47.4 * GIB, 155 * TERA, 0.768 * TERA, PCIE4},
    {"RTX3090", 86, 23.6 * GIB, 71 * TERA, 0.936 * TERA, PCIE4},
    {"RTX4090", 89, 23.5 * GIB, 165 * TERA, 1.01 * TERA, PCIE4},
    {"L40S", 89, 44.4 * GIB, 362 * TERA, 0.864 * TERA, PCIE4},
    {"H100", 90, 79.1 * GIB, 989 * TERA, 3.35 * TERA, NVLINK4}, /* SXM */
    {"H200", 90, 139.8 * GIB, 989 * TERA, 4.8 * TERA, NVLINK4},
    {"B200", 100, 178.3 * GIB, 2250 * TERA, 8.0 * TERA, 900e9},
    {"RTX5090", 120, 31.4 * GIB, 209 * TERA, 1.79 * TERA, PCIE5},
    {"T4", 75, 14.6 * GIB, 0, 0.32 * TERA, 14e9},
    {"V100", 70, 31.7 * GIB, 0, 0.9 * TERA, 150e9},
};

/* "RTX 4090" and "4090" are RTX4090. */
static bool is_named(const nib_card *card, const char *name)
{
    const char *at = card->name;
    if (strncmp(at, "RTX", 3) == 0 && isdigit((unsigned char)name[0])) at += 3;
    for (; *name != 0; name++) {
        if (*name == ' ' || *name == '-' || *name == '_') continue;
        if (*at == 0 || toupper((unsigned char)*name) != *at++) return false;
    }
    return *at == 0;
}

nib_status nib_card_find(const char *name, const nib_card **card)
{
    char known[256] = "";
    size_t length = 0;
    for (size_t i = 0; i < sizeof cards / sizeof *cards; i++) {
        *card = &cards[i];
        if (is_named(*card, name)) {
            if ((*card)->capability >= LEAST) return NIB_OK;
            return NIB_FAIL(NIB_ERROR_DEVICE,
                            "%s: its compute capability %d.%d has no bf16 matrix products, which Nibble computes with; "
                            "sm_80 (A100, RTX 30) or later is needed",
                            (*card)->name, (*card)->capability / 10, (*card)->capability % 10);
        }
        if ((*card)->capability >= LEAST && length < sizeof known)
            length += (size_t)snprintf(known + length, sizeof known - length, " %s", (*card)->name);
    }
    return NIB_FAIL(NIB_ERROR_USAGE, "--card %s: no such card is known; expected one of%s", name, known);
}
