/* Runs a row of the conformance list and compares. */
#include "cuda/conformance.cuh"

#include "cuda/backend.h"
#include "cuda/conformance_hopper.h"
#include "cuda/launch.cuh"

#include <stdio.h>

static const conformance_list *const lists[] = {&conformance_matrix, &conformance_memory, &conformance_warp,
                                                &conformance_number};

uint32_t conformance_word(uint32_t i)
{
    uint32_t word[4];
    nib_philox(0x5eed, 0, i, word);
    return word[0];
}

static const conformance_row *row_at(int i)
{
    for (const conformance_list *list : lists) {
        if (i < list->rows) return &list->row[i];
        i -= list->rows;
    }
    return NULL;
}

int nib_cuda_conformance_count(void)
{
    int rows = 0;
    for (const conformance_list *list : lists) rows += list->rows;
    return rows + NIB_CUDA_CONFORMANCE_HOPPER;
}

static bool agrees(const conformance_row *row, uint32_t found, uint32_t wanted)
{
    if (row->allowed == 0.0f) return found == wanted;
    const float difference = fabsf(float_of(found) - float_of(wanted));
    return difference <= row->allowed * fabsf(float_of(wanted));
}

static nib_status run(nib_ops *ops, const conformance_row *row, const uint32_t *in, uint32_t *out, uint32_t *block)
{
    uint32_t *results = block + CONFORMANCE_WORDS;
    NIB_TRY(ops->upload(ops, block, in, CONFORMANCE_WORDS * sizeof *in));
    NIB_TRY(ops->upload(ops, results, out, CONFORMANCE_WORDS * sizeof *out));
    NIB_TRY(nib_cuda_launch(row->kernel, dim3(1), dim3((unsigned)row->threads), (size_t)row->shared,
                            nib_cuda_stream(ops), (const uint32_t *)block, results));
    return ops->download(ops, out, results, CONFORMANCE_WORDS * sizeof *out);
}

/* Hopper's last instructions are checked together, since one brings what the next computes with. */
static nib_status check_hopper(nib_ops *ops, int i, nib_instruction_line *line)
{
    nib_cuda_conformance result[NIB_CUDA_CONFORMANCE_HOPPER];
    *line = {nib_cuda_conformance_hopper_name(i), NIB_INSTRUCTION_ABSENT, ""};
    if (nib_cuda_device_of(ops)->architecture != 90) return NIB_OK;
    NIB_TRY(nib_cuda_conformance_hopper(ops, result));
    line->verdict = result[i].wrong == 0 ? NIB_INSTRUCTION_AGREES : NIB_INSTRUCTION_DISAGREES;
    if (result[i].wrong > 0)
        snprintf(line->difference, sizeof line->difference, "%lld of %lld values are wrong", (long long)result[i].wrong,
                 (long long)result[i].values);
    return NIB_OK;
}

nib_status nib_cuda_conformance_check(nib_ops *ops, int i, nib_instruction_line *line)
{
    const conformance_row *row = row_at(i);
    if (row == NULL) return check_hopper(ops, i - (nib_cuda_conformance_count() - NIB_CUDA_CONFORMANCE_HOPPER), line);
    uint32_t in[CONFORMANCE_WORDS], out[CONFORMANCE_WORDS], wanted[CONFORMANCE_WORDS];
    void *block;
    *line = {row->name, NIB_INSTRUCTION_ABSENT, ""};
    if (nib_cuda_device_of(ops)->architecture < row->oldest) return NIB_OK;
    for (uint32_t k = 0; k < CONFORMANCE_WORDS; k++) in[k] = conformance_word(k);
    if (row->fill != NULL) row->fill(in);
    memset(out, 0xff, sizeof out); /* a NaN, if nothing is written there */
    memset(wanted, 0, sizeof wanted);
    row->expected(in, wanted);
    NIB_TRY(ops->allocate(ops, "an instruction's check", sizeof in + sizeof out, &block));
    nib_status status = run(ops, row, in, out, (uint32_t *)block);
    ops->release(ops, block, sizeof in + sizeof out);
    if (status != NIB_OK) return nib_error_context(status, "instruction %s", row->name);
    line->verdict = NIB_INSTRUCTION_AGREES;
    for (int k = 0; k < row->outputs && line->verdict == NIB_INSTRUCTION_AGREES; k++) {
        if (agrees(row, out[k], wanted[k])) continue;
        line->verdict = NIB_INSTRUCTION_DISAGREES;
        snprintf(line->difference, sizeof line->difference, "word %d of %d is 0x%08x, expected 0x%08x", k, row->outputs,
                 out[k], wanted[k]);
    }
    return NIB_OK;
}
