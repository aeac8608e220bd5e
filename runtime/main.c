/* nibble: the one binary. Finds the command, runs it, prints the error, exits with cli.md's code. */
#include "command.h"

#include "base/log.h"
#include "base/utf8.h"
#include "device.h"
#include "lost_file.h"
#include "version.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* In the order of `nibble --help`; one row a line, so that additions merge. */
/* clang-format off */
static const nib_command *const commands[] = {
    &nib_command_train,
    &nib_command_check,
    &nib_command_plan,
    &nib_command_score,
    &nib_command_pack,
    &nib_command_quantize,
    &nib_command_bench,
    &nib_command_tokenize,
    &nib_command_render,
    &nib_command_inspect,
    &nib_command_eval,
    &nib_command_chat,
    &nib_command_export,
    &nib_command_doctor,
    NULL,
};
/* clang-format on */

/* Messages quote names from files and from the command line. command: the one that failed, or NULL. */
static void print_error(const char *command, const char *text)
{
    nib_log_live(NULL); /* or the message would stand behind it */
    if (command != NULL) fprintf(stderr, "nibble %s: ", command);
    nib_utf8_print(stderr, text, strlen(text));
    fputc('\n', stderr);
}

/* --help behind the command, or behind words that follow it: `bench step --help`, `train CONFIG --help`. What follows
 * an option may be its value. */
static bool asks_for_help(int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
        if (argv[i][0] == '-') return false;
    }
    return false;
}

/* Commands print as they go; whether all of it was written is asked once. */
static nib_status finish_output(void)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_IO, "standard output: cannot be written: %s",
                    errno != 0 ? strerror(errno) : "an earlier write failed");
}

/* One that is closed would be the number of the next file that is opened, and messages would be written into it. What
 * takes its place fails as it did. */
static void hold_standard_descriptors(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF) (void)open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
}

/* OpenMP's threads spin while they wait for each other, GCC's some 17 ms: where other programs use the cores, that is
 * often for a thread that does not run. A tenth of a millisecond is as fast where none do. GCC's library reads the
 * limit as it is loaded, so the program begins again; one that is set is kept. */
static void limit_spinning(char **argv)
{
    if (getenv("GOMP_SPINCOUNT") != NULL || getenv("OMP_WAIT_POLICY") != NULL) return;
    if (setenv("GOMP_SPINCOUNT", "2000", 1) == 0)
        execv("/proc/self/exe", argv); /* without it all is the same, slower */
}

static void print_help(void)
{
    puts("Nibble fine-tunes large language models with LoRA on a 4-bit base.\n\nusage: nibble COMMAND [...]\n");
    for (int i = 0; commands[i] != NULL; i++) printf("  %-10s %s\n", commands[i]->name, commands[i]->summary);
    puts("\nnibble COMMAND --help tells more; nibble --version names commit, backends and CPU features.");
}

/* Commit, backends, and a line about each: what its device is, or why it has none. */
static void print_version(void)
{
    static const struct {
        nib_device device;
        const char *name;
    } backends[] = {{NIB_DEVICE_CPU, "cpu"}, {NIB_DEVICE_CUDA, "cuda"}, {NIB_DEVICE_EMULATED, "emulated"}};
    char text[3][512];
    printf("nibble %s (%s)\nbackends:", nib_version(), nib_commit());
    for (int i = 0; i < 3; i++)
        if (nib_device_describe(backends[i].device, 0, text[i], sizeof text[i]) == NIB_OK)
            printf(" %s", backends[i].name);
        else
            snprintf(text[i], sizeof text[i], "none: %s", nib_error_message());
    putchar('\n');
    for (int i = 0; i < 3; i++) printf("%s: %s\n", backends[i].name, text[i]);
}

/* The command that argv[1] names, or help; *command is what errors are headed by. */
static nib_status run(int argc, char **argv, const char **command)
{
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help();
        return NIB_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        print_version();
        return NIB_OK;
    }
    for (int i = 0; commands[i] != NULL; i++) {
        if (strcmp(argv[1], commands[i]->name) != 0) continue;
        *command = argv[1];
        if (!asks_for_help(argc - 2, argv + 2)) return commands[i]->run(argc - 2, argv + 2);
        fputs(commands[i]->usage, stdout);
        return NIB_OK;
    }
    return NIB_FAIL(NIB_ERROR_USAGE, "nibble: unknown command '%s'; nibble --help lists them", argv[1]);
}

int main(int argc, char **argv)
{
    const char *command = NULL;
    limit_spinning(argv);
    hold_standard_descriptors();
    if (argc < 2) {
        print_help();
        return nib_exit_code(NIB_ERROR_USAGE);
    }
    nib_lost_file_watch();
    nib_status status = run(argc, argv, &command);
    if (status == NIB_OK) status = finish_output();
    if (status != NIB_OK) print_error(command, nib_error_message());
    return nib_exit_code(status);
}
