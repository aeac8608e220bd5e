/* The learning rate of a step: linear warm-up, then constant, linear or cosine decay (Loshchilov & Hutter, "SGDR",
 * 2017). */
#ifndef NIB_SCHEDULE_H
#define NIB_SCHEDULE_H

#include <stdint.h>

typedef enum { NIB_SCHEDULER_COSINE, NIB_SCHEDULER_LINEAR, NIB_SCHEDULER_CONSTANT } nib_scheduler;

typedef struct {
    nib_scheduler scheduler;
    double peak;
    int64_t warmup, steps; /* W and S; a run may end in its warm-up */
} nib_schedule;

/* Rate of step s, 0 <= s < S: (s + 1) / W of the peak while s < W; then 0.5 (1 + cos(pi (s - W) / (S - W))),
 * (S - s) / (S - W), or 1. */
double nib_schedule_rate(const nib_schedule *schedule, int64_t step);

#endif
