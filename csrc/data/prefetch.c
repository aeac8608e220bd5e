#include "data/prefetch.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { AHEAD = 2 };

struct nib_prefetch {
    nib_step_plan plan;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* Below the lock. */
    nib_step_data step[AHEAD]; /* a ring: made and not taken are [taken, made) */
    int64_t made, taken;
    bool stop;
    nib_status status; /* of the thread; after an error it makes no more */
    char message[2048];
    /* The thread's own. */
    int64_t cursor;
};

nib_status nib_step_data_make(const nib_step_plan *plan, int64_t cursor, nib_step_data *step)
{
    nib_status status = NIB_OK;
    nib_rows rows = {0};
    int64_t left = plan->samples - cursor, count = left < plan->batch_size ? left : plan->batch_size;
    *step = (nib_step_data){.cursor = cursor, .count = count};
    step->samples = nib_calloc((size_t)count, sizeof *step->samples);
    if (step->samples == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the %lld rows of a step", (long long)count);
    for (int64_t i = 0; i < count; i++)
        NIB_TRY_GOTO(nib_mixture_sample(plan->mixture, cursor + i, &step->samples[i]), done);
    NIB_TRY_GOTO(nib_dataset_rows(plan->data, step->samples, count, &rows), done);
    status = nib_pack_step(rows.row, count, plan->pack, &step->pack);
done:
    nib_rows_free(&rows);
    if (status != NIB_OK) nib_step_data_free(step);
    return status;
}

void nib_step_data_free(nib_step_data *step)
{
    nib_pack_free(&step->pack);
    nib_free(step->samples);
    *step = (nib_step_data){0};
}

/* Waits until a step may be made; false: no more of them. */
static bool may_make(nib_prefetch *p)
{
    pthread_mutex_lock(&p->lock);
    while (!p->stop && p->made - p->taken == AHEAD) pthread_cond_wait(&p->changed, &p->lock);
    bool may = !p->stop;
    pthread_mutex_unlock(&p->lock);
    return may;
}

static void hand_over(nib_prefetch *p, nib_status status, const nib_step_data *step)
{
    pthread_mutex_lock(&p->lock);
    p->status = status;
    if (status == NIB_OK)
        p->step[p->made++ % AHEAD] = *step;
    else
        snprintf(p->message, sizeof p->message, "%s", nib_error_message());
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static void *make_steps(void *argument)
{
    nib_prefetch *p = argument;
    nib_status status = NIB_OK;
    while (status == NIB_OK && p->cursor < p->plan.samples && may_make(p)) {
        nib_step_data step;
        status = nib_step_data_make(&p->plan, p->cursor, &step);
        p->cursor += step.count;
        hand_over(p, status, &step);
    }
    return NULL;
}

nib_status nib_prefetch_create(const nib_step_plan *plan, int64_t cursor, nib_prefetch **prefetch)
{
    *prefetch = NULL;
    nib_prefetch *p = nib_calloc(1, sizeof *p);
    if (p == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to read data ahead");
    p->plan = *plan;
    p->cursor = cursor;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    if (pthread_create(&p->thread, NULL, make_steps, p) != 0) {
        pthread_cond_destroy(&p->changed);
        pthread_mutex_destroy(&p->lock);
        nib_free(p);
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the thread that reads data ahead");
    }
    *prefetch = p;
    return NIB_OK;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

nib_status nib_prefetch_take(nib_prefetch *p, int64_t cursor, nib_step_data *step, double *waited)
{
    double begun = seconds();
    nib_status status = NIB_OK;
    *step = (nib_step_data){0};
    if (cursor >= p->plan.samples)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "no step begins at sample %lld of %lld", (long long)cursor,
                        (long long)p->plan.samples);
    pthread_mutex_lock(&p->lock);
    while (p->made == p->taken && p->status == NIB_OK) pthread_cond_wait(&p->changed, &p->lock);
    if (p->made == p->taken) { /* what was made before an error is still good */
        status = NIB_FAIL(p->status, "%s", p->message);
    } else {
        *step = p->step[p->taken++ % AHEAD];
        pthread_cond_broadcast(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
    *waited = seconds() - begun;
    if (status != NIB_OK || step->cursor == cursor) return status;
    status = NIB_FAIL(NIB_ERROR_INTERNAL, "data was read ahead from sample %lld, the run stands at %lld",
                      (long long)step->cursor, (long long)cursor);
    nib_step_data_free(step);
    return status;
}

void nib_prefetch_free(nib_prefetch *p)
{
    if (p == NULL) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    while (p->taken < p->made) nib_step_data_free(&p->step[p->taken++ % AHEAD]);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    nib_free(p);
}
