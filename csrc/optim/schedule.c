#include "optim/schedule.h"

#include <math.h>

double nib_schedule_rate(const nib_schedule *schedule, int64_t step)
{
    double s = (double)step, W = (double)schedule->warmup, S = (double)schedule->steps;
    if (step < schedule->warmup) return schedule->peak * (s + 1) / W;
    switch (schedule->scheduler) {
    case NIB_SCHEDULER_COSINE:
        return schedule->peak * 0.5 * (1 + cos(3.14159265358979323846 * (s - W) / (S - W)));
    case NIB_SCHEDULER_LINEAR:
        return schedule->peak * (S - s) / (S - W);
    case NIB_SCHEDULER_CONSTANT:
        break;
    }
    return schedule->peak;
}
