#include "train.h"
#include "base/log.h"
#include "machine.h"
#include "plan.h"
#include "report.h"
#include "run_facts.h"
#include "signals.h"
#include "train_evaluate.h"
#include "train_open.h"
#include "train_state.h"
#include "train_step.h"

#include <stdio.h>
#include <time.h>

#define MAX_NONFINITE 3
#define PRINT_SECONDS 10.0 /* between plain progress lines */

double nib_train_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

bool nib_train_leads(const nib_training *t) { return t->collectives == NULL || t->collectives->rank == 0; }

static void show_progress(nib_training *t, const nib_step_result *result)
{
    char text[256];
    double now = nib_train_clock();
    int64_t done = t->state.step - t->first_step, left = t->schedule.steps - t->state.step;
    int seconds = (int)((now - t->started) / (double)done * (double)left);
    snprintf(text, sizeof text, "step %lld/%lld  loss %.4f  %.0f tok/s  %.2f GiB  %d:%02d:%02d left",
             (long long)t->state.step, (long long)t->schedule.steps, result->loss,
             (double)result->tokens / result->seconds, (double)nib_peak_memory() / (1 << 30), seconds / 3600,
             seconds / 60 % 60, seconds % 60);
    if (nib_log_is_terminal()) {
        nib_log_live(text);
    } else if (done == 1 || left == 0 || now - t->last_printed >= PRINT_SECONDS) {
        nib_log("%s", text);
        t->last_printed = now;
    }
}

static nib_status record_step(nib_training *t, const nib_step_result *result)
{
    if (!nib_train_leads(t)) return NIB_OK;
    nib_buffer line = {0};
    nib_buffer_format(&line, "{\"event\":\"step\",\"step\":%lld", (long long)(t->state.step - 1));
    nib_metrics_number(&line, "loss", result->loss);
    nib_metrics_number(&line, "grad_norm", result->gradient_norm);
    nib_metrics_number(&line, "learning_rate", result->learning_rate);
    nib_buffer_format(&line, ",\"supervised_tokens\":%lld,\"tokens\":%lld,\"computed_tokens\":%lld",
                      (long long)result->supervised_tokens, (long long)result->tokens,
                      (long long)result->computed_tokens);
    nib_metrics_number(&line, "tokens_per_second", (double)result->tokens / result->seconds);
    nib_metrics_number(&line, "seconds", result->seconds);
    nib_metrics_number(&line, "data_wait_seconds", result->data_wait);
    nib_buffer_format(&line, ",\"applied\":%s,\"peak_bytes\":%zu,\"time\":%lld", result->applied ? "true" : "false",
                      nib_peak_memory(), (long long)time(NULL));
    nib_status status = nib_metrics_line(&t->metrics, &line);
    nib_buffer_free(&line);
    return status;
}

static nib_status write_checkpoint(nib_training *t)
{
    if (!nib_train_leads(t)) return nib_train_state_send(t);
    NIB_TRY(nib_checkpointer_submit(t->checkpointer, nib_train_state_carrier(t), &t->state, t->tensors,
                                    t->parameter_count));
    nib_buffer line = {0};
    nib_buffer_format(&line, "{\"event\":\"checkpoint\",\"step\":%lld", (long long)t->state.step);
    nib_status status = nib_metrics_line(&t->metrics, &line);
    nib_buffer_free(&line);
    return status;
}

/* A checkpoint that is on disk before the run leaves. */
static nib_status write_last_checkpoint(nib_training *t)
{
    NIB_TRY(write_checkpoint(t));
    return nib_train_leads(t) ? nib_checkpointer_wait(t->checkpointer) : NIB_OK;
}

/* Logs every class of memory that `plan` states exactly; returns their sum. */
static size_t report_memory(const nib_training *t)
{
    const nib_memory_class *classes;
    int count = nib_model_memory(t->model, &classes);
    size_t slots = nib_train_slot_bytes(t, t->tree.n), sum = slots;
    for (int i = 0; i < count; i++) {
        nib_log("memory: %s %.1f MiB", classes[i].name, (double)classes[i].bytes / (1 << 20));
        sum += classes[i].bytes;
    }
    if (slots > 0) nib_log("memory: gradient slots %.1f MiB", (double)slots / (1 << 20));
    nib_log("memory: peak of the process %.1f MiB", (double)nib_peak_memory() / (1 << 20));
    return sum;
}

/* The facts again each time: scratch memory grows with what the run meets. */
static nib_status write_report(const nib_training *t)
{
    if (!nib_train_leads(t)) return NIB_OK;
    NIB_TRY(nib_run_facts_write(t));
    return nib_report_write(t->folder.path);
}

static nib_status finish(nib_training *t)
{
    t->state.finished = true;
    if (t->eval == NULL) NIB_TRY(nib_train_leads(t) ? nib_train_save(t) : nib_train_save_follow(t));
    NIB_TRY(write_last_checkpoint(t));
    if (!nib_train_leads(t)) return NIB_OK;
    nib_buffer line = {0};
    nib_buffer_format(&line,
                      "{\"event\":\"end\",\"step\":%lld,\"best_step\":%lld,\"peak_bytes\":%zu,\"arena_bytes\":%zu",
                      (long long)t->state.step, (long long)t->state.best_step, nib_peak_memory(), report_memory(t));
    nib_metrics_number(&line, "seconds", nib_train_clock() - t->started);
    nib_status status = nib_metrics_line(&t->metrics, &line);
    nib_buffer_free(&line);
    NIB_TRY(status);
    NIB_TRY(write_report(t));
    printf("%s\n", t->folder.result);
    return NIB_OK;
}

static nib_status evaluate(nib_training *t, bool *stop)
{
    NIB_TRY(nib_train_evaluate(t, stop));
    return write_report(t);
}

/* Ends steps until `left` are under way. */
static nib_status end_steps(nib_training *t, int left)
{
    while (t->under_way > left) {
        nib_step_result result;
        NIB_TRY(nib_train_step_end(t, &result));
        NIB_TRY(record_step(t, &result));
        show_progress(t, &result);
        if (t->state.nonfinite_steps >= MAX_NONFINITE)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%lld steps had a loss or gradient that is not finite; their rows are saved in %s; lower "
                            "train.learning_rate, or look at those rows",
                            (long long)t->state.nonfinite_steps, t->folder.path);
    }
    return NIB_OK;
}

/* Begins a step, and does what is due behind it once all have ended. */
static nib_status advance(nib_training *t, bool *stop)
{
    NIB_TRY(nib_train_step_begin(t));
    const int64_t begun = t->state.step + t->under_way;
    const bool last = begun == t->schedule.steps;
    const bool evaluated = t->eval != NULL && (last || begun % t->config->evaluate.every_steps == 0);
    const bool kept = !last && begun % t->config->checkpoint.every_steps == 0;
    NIB_TRY(end_steps(t, last || evaluated || kept ? 0 : nib_train_steps_ahead(t)));
    if (evaluated) NIB_TRY(evaluate(t, stop));
    if (kept && !*stop) NIB_TRY(write_checkpoint(t));
    return NIB_OK;
}

/* A signal that any rank has got stops all of them, before the same step. */
static nib_status stop_requested(nib_training *t, int64_t *signal_number)
{
    *signal_number = nib_signals_stop_requested() ? nib_signals_last() : 0;
    return nib_agree_largest(t->collectives, signal_number);
}

/* Before the first step of this process there is nothing new to keep. */
static nib_status stopped_by(nib_training *t, int64_t signal_number)
{
    NIB_TRY(end_steps(t, 0));
    if (t->state.step > t->first_step) {
        NIB_TRY(write_last_checkpoint(t));
        NIB_TRY(write_report(t));
    }
    return NIB_FAIL(NIB_STOPPED, "stopped by signal %lld after step %lld of %lld; continue with --resume",
                    (long long)signal_number, (long long)t->state.step, (long long)t->schedule.steps);
}

static nib_status run(nib_training *t)
{
    bool stop = false;
    int64_t signal_number;
    nib_step_plan plan = nib_train_step_plan(t);
    NIB_TRY(nib_prefetch_create(&plan, t->state.cursor, &t->prefetch));
    nib_device_exchange_watch(t->exchange);
    if (t->state.step == 0 && t->eval != NULL) NIB_TRY(nib_train_evaluate_before(t));
    t->started = nib_train_clock();
    t->first_step = t->state.step;
    while (t->state.step + t->under_way < t->schedule.steps && !stop) {
        NIB_TRY(stop_requested(t, &signal_number));
        if (signal_number != 0) return stopped_by(t, signal_number);
        NIB_TRY(advance(t, &stop));
    }
    if (stop) nib_log("stopped early: no better evaluation since step %lld", (long long)t->state.best_step);
    return finish(t);
}

/* Memory that was there for the plan was not there for the run: another process took it, or the plan is short. */
static nib_status explain_memory(const nib_training *t)
{
    const nib_config *c = t->config;
    return NIB_FAIL(
        NIB_ERROR_MEMORY,
        "%s\nplanned were: %s\nto need less, lower train.micro_batch_tokens (now %lld), data.max_length (%lld) "
        "or %s; activations are recomputed by policy %s already%s",
        nib_error_message(), t->planned, (long long)c->train.micro_batch_tokens, (long long)c->data.max_length,
        c->has_lora ? "lora.r" : "data.train's longest rows", nib_recompute_name(t->recompute),
        t->ops->memory_left != NULL ? "; nvidia-smi shows who else uses the GPU" : "");
}

nib_status nib_train(nib_config *config, bool resume, nib_collectives *collectives)
{
    nib_training training;
    nib_status status = nib_train_open(config, resume, collectives, &training);
    if (status == NIB_OK && training.state.finished)
        nib_log("%s: the run is finished; nothing to do", config->output);
    else if (status == NIB_OK)
        status = run(&training);
    if (status == NIB_ERROR_MEMORY && training.planned[0] != 0) status = explain_memory(&training);
    if (status != NIB_OK) nib_log_file_only("ended: %s", nib_error_message());
    nib_device_exchange_close(training.exchange, status);
    nib_train_close(&training);
    return status;
}
