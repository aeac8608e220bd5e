/* nibble-launch: starts the ranks of a job on this node, passes their output and signals on, and ends them together.
 *
 * Each rank is told its place by torchrun's variables (runtime/ranks.h) and is a process group of its own, so that a
 * terminal's Ctrl-C reaches it once, from here. If this program dies the kernel stops the ranks (PR_SET_PDEATHSIG);
 * what the ranks leave behind becomes its child (PR_SET_CHILD_SUBREAPER) and ends with the job.
 */
#include "lines.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_RANKS 1024
#define OWN_END   8.0 /* seconds that the other ranks have to end by themselves after one has failed */

enum { EXIT_USAGE = 64, EXIT_PEER = 69, EXIT_MEMORY = 71, EXIT_STOPPED = 75, EXIT_NOT_STARTED = 127 };

static const char usage[] =
    "usage: nibble-launch --nproc N [--nnodes K --node-rank R --master HOST:PORT] [options] COMMAND [ARGUMENT]...\n\n"
    "Starts N ranks of COMMAND on this node. On several nodes it is started once on each, with the same N, K and\n"
    "HOST:PORT, and NIBBLE_JOB_TOKEN set to the same secret, such as the output of 'openssl rand -hex 32'.\n\n"
    "  --nproc N           ranks on this node\n"
    "  --nnodes K          nodes (1)\n"
    "  --node-rank R       which of them this is, from 0\n"
    "  --master HOST:PORT  where rank 0, on node 0, listens (a free port of this machine)\n"
    "  --logs DIR          also writes what each rank prints into DIR/rank-R.log\n"
    "  --restarts N        starts all ranks again, up to N times, if one died of a signal or lost its device or a "
    "peer;\n"
    "                      COMMAND has to be one that continues, such as nibble train CONFIG --resume (0)\n"
    "  --grace SECONDS     from SIGTERM to SIGKILL (30)\n\n"
    "SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 are passed on to every rank. The exit code is that of the first rank that\n"
    "failed; 128 and the signal's number if it died of one.\n";

typedef struct {
    int nproc, nodes, node, port, restarts;
    double grace;
    const char *logs;
    char host[256], token[65];
    char **command;
} options;

typedef struct {
    pid_t pid; /* and process group; 0: has ended */
    nib_lines out, err;
} rank_process;

typedef struct {
    const options *o;
    int attempt;
    rank_process *rank;           /* [nproc] */
    int running, code;            /* code: of the first rank that failed */
    bool told;                    /* to stop, by a signal from outside */
    double terminate_at, kill_at; /* 0: not yet needed */
} job;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int complain(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int complain(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("nibble-launch: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    return code;
}

/* Whole text as a number of least .. most. */
static bool parse(const char *text, int least, int most, int *value)
{
    char *end;
    if (text == NULL || !isdigit((unsigned char)text[0]) || strlen(text) > 9) return false;
    long found = strtol(text, &end, 10);
    *value = (int)found;
    return *end == 0 && found >= least && found <= most;
}

static bool parse_master(const char *text, options *o)
{
    const char *colon = text == NULL ? NULL : strrchr(text, ':');
    if (colon == NULL || colon == text || colon - text >= (ptrdiff_t)sizeof o->host) return false;
    bool bracket = text[0] == '[' && colon[-1] == ']'; /* [::1]:29500 */
    snprintf(o->host, sizeof o->host, "%.*s", (int)(colon - text) - 2 * bracket, text + bracket);
    return o->host[0] != 0 && parse(colon + 1, 1, 65535, &o->port);
}

/* A port that is free now. */
static int free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = 0;
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
        getsockname(fd, (struct sockaddr *)&address, &length) == 0)
        port = ntohs(address.sin_port);
    if (fd >= 0) close(fd);
    return port;
}

/* 0, or an exit code. */
static int complete(options *o, bool node_given, bool master_given)
{
    const char *token = getenv("NIBBLE_JOB_TOKEN");
    uint8_t random[32];
    if (o->nproc == 0) return complain(EXIT_USAGE, "--nproc is missing; nibble-launch --help tells more");
    if (o->command[0] == NULL) return complain(EXIT_USAGE, "no command given; nibble-launch --help tells more");
    if (o->nodes > 1 && (!node_given || !master_given))
        return complain(EXIT_USAGE, "--nnodes %d needs --node-rank and --master", o->nodes);
    if (o->node >= o->nodes) return complain(EXIT_USAGE, "--node-rank %d, expected 0 to %d", o->node, o->nodes - 1);
    if ((long)o->nodes * o->nproc > 4096)
        return complain(EXIT_USAGE, "%d ranks on %d nodes: more than 4096 in all", o->nproc, o->nodes);
    if (!master_given) {
        strcpy(o->host, "127.0.0.1");
        o->port = free_port();
        if (o->port == 0) return complain(EXIT_PEER, "no free port: %s", strerror(errno));
    }
    if (token != NULL && token[0] != 0) return 0;
    if (o->nodes > 1)
        return complain(EXIT_USAGE, "set NIBBLE_JOB_TOKEN to the same secret on every node, such as the output of "
                                    "'openssl rand -hex 32'");
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return complain(1, "the system gives no random numbers: %s", strerror(errno));
    for (size_t i = 0; i < sizeof random; i++) snprintf(o->token + 2 * i, 3, "%02x", random[i]);
    return 0;
}

/* 0, or an exit code. */
static int parse_options(char **argv, options *o)
{
    int grace = 30;
    bool node_given = false, master_given = false;
    *o = (options){.nodes = 1};
    char **at = argv + 1;
    for (; *at != NULL && (*at)[0] == '-'; at += 2) {
        const char *name = *at, *value = at[1];
        bool good;
        if (strcmp(name, "--nproc") == 0)
            good = parse(value, 1, MAX_RANKS, &o->nproc);
        else if (strcmp(name, "--nnodes") == 0)
            good = parse(value, 1, 4096, &o->nodes);
        else if (strcmp(name, "--node-rank") == 0)
            good = node_given = parse(value, 0, 4095, &o->node);
        else if (strcmp(name, "--master") == 0)
            good = master_given = parse_master(value, o);
        else if (strcmp(name, "--restarts") == 0)
            good = parse(value, 0, 1000, &o->restarts);
        else if (strcmp(name, "--grace") == 0)
            good = parse(value, 0, 86400, &grace);
        else if (strcmp(name, "--logs") == 0)
            good = (o->logs = value) != NULL;
        else
            return complain(EXIT_USAGE, "unknown option %s; nibble-launch --help lists them", name);
        if (!good) return complain(EXIT_USAGE, "%s %s: not a value for it", name, value == NULL ? "" : value);
    }
    o->grace = grace;
    o->command = at;
    return complete(o, node_given, master_given);
}

static void set_number(const char *name, int value)
{
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    setenv(name, text, 1);
}

static int processors(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

/* Between fork and exec, in the rank's process. */
static void become_rank(const job *j, int local, pid_t launcher)
{
    const options *o = j->o;
    sigset_t none;
    int threads = processors() / o->nproc;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setpgid(0, 0);
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0 || getppid() != launcher) _exit(EXIT_NOT_STARTED);
    set_number("RANK", o->node * o->nproc + local);
    set_number("WORLD_SIZE", o->nodes * o->nproc);
    set_number("LOCAL_RANK", local);
    set_number("LOCAL_WORLD_SIZE", o->nproc);
    set_number("MASTER_PORT", o->port);
    set_number("NIBBLE_ATTEMPT", j->attempt);
    setenv("MASTER_ADDR", o->host, 1);
    if (o->token[0] != 0) setenv("NIBBLE_JOB_TOKEN", o->token, 1);
    if (getenv("OMP_NUM_THREADS") == NULL) set_number("OMP_NUM_THREADS", threads > 1 ? threads : 1);
    execvp(o->command[0], o->command);
    fprintf(stderr, "nibble-launch: %s: %s\n", o->command[0], strerror(errno));
    _exit(EXIT_NOT_STARTED);
}

static int open_log(const job *j, int rank)
{
    char path[PATH_MAX];
    if (j->o->logs == NULL) return -1;
    (void)mkdir(j->o->logs, 0777);
    snprintf(path, sizeof path, "%s/rank-%d.log", j->o->logs, rank);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) complain(0, "%s: cannot be written: %s; rank %d has no log", path, strerror(errno), rank);
    return fd;
}

/* false: no process or descriptor. */
static bool start_rank(job *j, int local)
{
    rank_process *r = &j->rank[local];
    int rank = j->o->node * j->o->nproc + local, out[2], err[2], null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    pid_t launcher = getpid();
    if (null < 0 || pipe2(out, O_CLOEXEC) != 0) return false;
    if (pipe2(err, O_CLOEXEC) != 0) return false;
    r->pid = fork();
    if (r->pid < 0) return false;
    if (r->pid == 0) {
        dup2(null, STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        dup2(err[1], STDERR_FILENO);
        become_rank(j, local, launcher);
    }
    setpgid(r->pid, r->pid); /* here too: whoever is first */
    close(null);
    close(out[1]);
    close(err[1]);
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    fcntl(err[0], F_SETFL, O_NONBLOCK);
    int log = open_log(j, rank);
    r->out = (nib_lines){.from = out[0], .to = STDOUT_FILENO, .log = log};
    r->err = (nib_lines){.from = err[0], .to = STDERR_FILENO, .log = log};
    snprintf(r->out.prefix, sizeof r->out.prefix, "[%d] ", rank);
    memcpy(r->err.prefix, r->out.prefix, sizeof r->err.prefix);
    j->running++;
    return true;
}

static void signal_all(const job *j, int number)
{
    for (int i = 0; i < j->o->nproc; i++)
        if (j->rank[i].pid > 0) kill(-j->rank[i].pid, number);
}

/* The first rank that fails decides, and the others have to end. */
static void note_end(job *j, int local, int status)
{
    int rank = j->o->node * j->o->nproc + local;
    int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    kill(-j->rank[local].pid, SIGKILL); /* what it has left behind */
    j->rank[local].pid = 0;
    j->running--;
    if (code == 0 || j->code != 0) return;
    j->code = code;
    if (WIFSIGNALED(status))
        complain(0, "rank %d died of signal %d", rank, WTERMSIG(status));
    else if (code != EXIT_STOPPED)
        complain(0, "rank %d failed with exit code %d", rank, code);
    /* A second signal would cut a checkpoint short. */
    if (j->running > 0 && code != EXIT_STOPPED) j->terminate_at = now() + OWN_END;
    if (j->kill_at == 0) j->kill_at = now() + OWN_END + j->o->grace;
}

static void reap(job *j)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (int i = 0; i < j->o->nproc; i++)
            if (j->rank[i].pid == pid) note_end(j, i, status);
}

static void take_signal(job *j, int signals)
{
    struct signalfd_siginfo info;
    while (read(signals, &info, sizeof info) == sizeof info) {
        int number = (int)info.ssi_signo;
        if (number == SIGCHLD) continue; /* reap looks at all ranks anyway */
        signal_all(j, number);
        if (number == SIGUSR2) continue;
        j->told = true;
        if (number != SIGUSR1 && j->kill_at == 0) j->kill_at = now() + j->o->grace;
    }
}

static void enforce_ends(job *j)
{
    double t = now();
    if (j->terminate_at > 0 && t >= j->terminate_at) {
        signal_all(j, SIGTERM);
        j->terminate_at = 0;
    }
    if (j->kill_at > 0 && t >= j->kill_at) {
        complain(0, "%d rank%s did not end in time: killed", j->running, j->running == 1 ? "" : "s");
        signal_all(j, SIGKILL);
        j->kill_at = t + 3600;
    }
}

static void copy_lines(job *j)
{
    for (int i = 0; i < j->o->nproc; i++) {
        nib_lines_copy(&j->rank[i].out);
        nib_lines_copy(&j->rank[i].err);
    }
}

static void finish_lines(job *j)
{
    copy_lines(j);
    for (int i = 0; i < j->o->nproc; i++) {
        rank_process *r = &j->rank[i];
        if (r->out.from >= 0) close(r->out.from);
        if (r->err.from >= 0) close(r->err.from);
        if (r->out.log >= 0) close(r->out.log);
    }
}

/* Ends what ranks have left behind in process groups of its own: since they have ended it is this process's children.
 */
static void end_strays(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    for (int found = 1; found > 0;) {
        FILE *children = fopen(path, "r");
        found = 0;
        for (int pid; children != NULL && fscanf(children, "%d", &pid) == 1;) found += kill(pid, SIGKILL) == 0;
        if (children != NULL) fclose(children);
        for (int i = 0; i < found; i++) waitpid(-1, NULL, 0); /* their children are ours then */
    }
}

/* All ranks once, until the last has ended. Returns the exit code. */
static int run_job(job *j, int signals)
{
    struct pollfd fds[2 * MAX_RANKS + 1];
    int n = j->o->nproc;
    for (int i = 0; i < n; i++)
        j->rank[i] = (rank_process){.out = {.from = -1, .log = -1}, .err = {.from = -1, .log = -1}};
    for (int i = 0; i < n && j->code == 0; i++) {
        if (start_rank(j, i)) continue;
        j->rank[i].pid = 0;
        j->code = complain(EXIT_MEMORY, "rank %d cannot be started: %s", j->o->node * n + i, strerror(errno));
        signal_all(j, SIGKILL);
    }
    while (j->running > 0) {
        for (int i = 0; i < n; i++) {
            fds[2 * i] = (struct pollfd){.fd = j->rank[i].out.from, .events = POLLIN};
            fds[2 * i + 1] = (struct pollfd){.fd = j->rank[i].err.from, .events = POLLIN};
        }
        fds[2 * n] = (struct pollfd){.fd = signals, .events = POLLIN};
        (void)poll(fds, (nfds_t)(2 * n) + 1, j->terminate_at > 0 || j->kill_at > 0 ? 100 : -1);
        copy_lines(j);
        take_signal(j, signals);
        reap(j);
        enforce_ends(j);
    }
    end_strays();
    finish_lines(j);
    return j->code;
}

/* A rank that died, or missed a device or a peer, may do better the next time; bad data, a full disk, too little memory
 * or a wrong configuration will not. */
static bool may_be_retried(int code) { return code == EXIT_PEER || code > 128; }

int main(int argc, char **argv)
{
    options o;
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(usage, stdout);
        return 0;
    }
    int code = parse_options(argv, &o);
    if (code != 0) return code;
    rank_process *ranks = calloc((size_t)o.nproc, sizeof *ranks);
    if (ranks == NULL) return complain(EXIT_MEMORY, "no memory for %d ranks", o.nproc);
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < 5; i++) sigaddset(&set, (const int[]){SIGCHLD, SIGTERM, SIGINT, SIGUSR1, SIGUSR2}[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) {
        free(ranks);
        return complain(1, "signals cannot be received: %s", strerror(errno));
    }
    for (int attempt = 0;; attempt++) {
        job j = {.o = &o, .attempt = attempt, .rank = ranks};
        code = run_job(&j, signals);
        if (j.told || attempt == o.restarts || !may_be_retried(code)) break;
        complain(0, "attempt %d of %d begins", attempt + 2, o.restarts + 1);
    }
    close(signals);
    free(ranks);
    return code;
}
