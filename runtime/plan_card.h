/* What training a model takes on a GPU that need not be there: memory by class, the largest micro-batch that fits, the
 * recompute policy, the time of a step, all modelled. */
#ifndef NIB_PLAN_CARD_H
#define NIB_PLAN_CARD_H

#include "cards.h"
#include "model/model.h"
#include "plan_rates.h"

#define NIB_CARD_CLASSES 16

typedef struct {
    const nib_card *card;
    int gpus;                         /* data parallel */
    double memory;                    /* bytes to plan for: the card's, or less */
    bool shard_base, shard_optimizer; /* divided among the GPUs of a node, of which it has eight at most */
    int64_t length;                   /* tokens of a document, all supervised; a micro-batch holds whole ones */
} nib_card_question;

typedef struct {
    int64_t T; /* tokens of a micro-batch: one is a step of one GPU */
    nib_recompute recompute;
    nib_memory_class memory[NIB_CARD_CLASSES];
    int arenas, classes; /* the first `arenas` of `classes` are counted by the model's own code */
    double peak;         /* bytes */
    nib_work_seconds step;
    double dequantize, exchange; /* seconds besides, of the NF4 base, of gradients between cards */
    double tokens_per_second;    /* of all GPUs */
} nib_card_plan;

/* The plan with the most tokens a second of those that fit. options->path needs no more than a config.json. Compute is
 * bf16. NIB_ERROR_MEMORY if none fits: *plan is then the smallest, without its time. */
nib_status nib_card_plan_make(const nib_model_options *options, const nib_card_question *question, nib_card_plan *plan);

#endif
