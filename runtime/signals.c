#include "signals.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

static atomic_int requested; /* 0, or the last signal */

static bool is_ignored(int number)
{
    struct sigaction now;
    return sigaction(number, NULL, &now) == 0 && now.sa_handler == SIG_IGN;
}

static void *wait_for_signals(void *watched)
{
    for (int number; sigwait(watched, &number) == 0;) {
        if (is_ignored(number)) continue; /* a blocked signal is delivered all the same */
        if (requested != 0) _exit(128 + number);
        requested = number;
    }
    return NULL;
}

nib_status nib_signals_watch(void)
{
    static sigset_t watched;
    const int numbers[] = {SIGINT, SIGTERM, SIGUSR1};
    sigemptyset(&watched);
    for (int i = 0; i < 3; i++) {
        signal(numbers[i], SIG_DFL); /* a script's background job is started with SIGINT ignored */
        sigaddset(&watched, numbers[i]);
    }
    signal(SIGUSR2, SIG_IGN);
    /* Ctrl-C also ends the `tee` that a run is piped into, and a checkpoint matters more than the reader of its lines.
     */
    signal(SIGPIPE, SIG_IGN);
    pthread_t watcher;
    if (pthread_sigmask(SIG_BLOCK, &watched, NULL) != 0 ||
        pthread_create(&watcher, NULL, wait_for_signals, &watched) != 0)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the thread that waits for signals");
    pthread_detach(watcher);
    return NIB_OK;
}

void nib_signals_settled(void) { signal(SIGTERM, SIG_IGN); }

bool nib_signals_stop_requested(void) { return requested != 0; }

int nib_signals_last(void) { return requested; }

static sigset_t interrupt(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    return set;
}

void nib_interrupt_hold(bool held)
{
    sigset_t set = interrupt();
    pthread_sigmask(held ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}

bool nib_interrupt_take(void)
{
    sigset_t set = interrupt();
    return sigtimedwait(&set, NULL, &(struct timespec){0}) == SIGINT;
}
