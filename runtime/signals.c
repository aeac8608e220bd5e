#include "signals.h"

#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static volatile sig_atomic_t requested;

static void on_signal(int number)
{
    if (requested != 0 && number != SIGUSR1) _exit(128 + number);
    requested = number;
}

void nib_signals_install(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    /* Ctrl-C also ends the `tee` that a run is piped into, and a checkpoint matters more than the reader of its lines.
     */
    signal(SIGPIPE, SIG_IGN);
}

void nib_signals_settled(void) { signal(SIGTERM, SIG_IGN); }

bool nib_signals_stop_requested(void) { return requested != 0; }

int nib_signals_last(void) { return (int)requested; }
