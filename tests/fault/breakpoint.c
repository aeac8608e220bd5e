/* Preloaded: something happens to the process as it enters one of its own functions, so that a test can hit each phase
 * of a step. NIB_BREAK is FUNCTION:CALLS:ACTION, CALLS being numbers from 1 on, "3" or "3,5,6", and ACTION
 *
 * - kill=MICROSECONDS: SIGKILL, so long after the call began
 * - stop: SIGSTOP
 * - sleep=SECONDS: the calling thread, and no other, stands still for so long
 * - nan: the first value of the array that is the function's third argument becomes a NaN
 *
 * The function has to be one that the program exports. x86-64 only: a trap takes the place of the function's first
 * byte, and one step past it puts it there again.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define TRAP      0xcc
#define STEP_FLAG 0x100 /* of EFLAGS: a trap after one instruction */

static uint8_t *function, original;
static int calls;
static const char *wanted, *action;

static int is_wanted(int call)
{
    const char *at = wanted;
    for (;; at++) {
        if (atoi(at) == call) return 1;
        at = strpbrk(at, ",:");
        if (*at == ':') return 0;
    }
}

static void kill_after(long microseconds)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    struct itimerspec when = {.it_value = {microseconds / 1000000, microseconds % 1000000 * 1000}};
    timer_t timer;
    if (microseconds <= 0 || timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 ||
        timer_settime(timer, 0, &when, NULL) != 0)
        kill(getpid(), SIGKILL);
}

static void trapped(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (registers[REG_RIP] != (greg_t)(function + 1)) { /* past the first instruction */
        *function = TRAP;
        registers[REG_EFL] &= ~(greg_t)STEP_FLAG;
        return;
    }
    if (is_wanted(++calls)) {
        float *values = (float *)registers[REG_RDX];
        if (strncmp(action, "kill=", 5) == 0)
            kill_after(atol(action + 5));
        else if (strcmp(action, "stop") == 0)
            kill(getpid(), SIGSTOP);
        else if (strncmp(action, "sleep=", 6) == 0)
            sleep((unsigned)atoi(action + 6));
        else
            values[0] = NAN;
    }
    *function = original;
    registers[REG_RIP] = (greg_t)function;
    registers[REG_EFL] |= STEP_FLAG;
}

__attribute__((constructor)) static void set(void)
{
    char name[80];
    const char *text = getenv("NIB_BREAK");
    if (text == NULL || sscanf(text, "%79[^:]", name) != 1) return;
    wanted = strchr(text, ':') + 1;
    action = strchr(wanted, ':') + 1;
    function = dlsym(RTLD_DEFAULT, name);
    uintptr_t page = (uintptr_t)function & ~(uintptr_t)4095;
    struct sigaction act = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO};
    if (function == NULL || sigaction(SIGTRAP, &act, NULL) != 0 ||
        mprotect((void *)page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) {
        fprintf(stderr, "breakpoint.c: %s cannot be set\n", text);
        _exit(1);
    }
    original = *function;
    *function = TRAP;
}
