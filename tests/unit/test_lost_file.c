/* A mapped file that is cut ends the program with a message that names it; any other SIGBUS does what it did before.
 * The kernel raises the signals; processes of their own meet them. */
#include "check.h"
#include "folder.h"
#include "lost_file.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BYTES = 100000, THREADS = 8, SAID = 1 << 18 };

static char path[64];
static volatile uint8_t sink;

static void make_file(const char *name)
{
    char bytes[BYTES] = {0};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(nib_file_replace(path, bytes, sizeof bytes), NIB_OK);
}

/* What a process of its own says on standard error, and how it ends (waitpid's status). */
static int child(void (*body)(void), char said[SAID])
{
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        signal(SIGBUS, SIG_DFL); /* cmocka has a handler */
        dup2(ends[1], STDERR_FILENO);
        body();
        _exit(0);
    }
    close(ends[1]);
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL); /* for threads to come; fewer of them test less */
    size_t length = 0;
    for (ssize_t n; (n = read(ends[0], said + length, SAID - 1 - length)) > 0;) length += (size_t)n;
    said[length] = 0;
    close(ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static nib_file map_and_cut(off_t left)
{
    nib_file other, file;
    nib_lost_file_watch();
    if (nib_file_map(&other, path) != NIB_OK || nib_file_map(&file, path) != NIB_OK) _exit(1);
    nib_file_unmap(&other); /* what is no longer mapped is not in the way */
    if (truncate(path, left) != 0) _exit(1);
    return file;
}

static void read_behind_the_cut(void)
{
    nib_file file = map_and_cut(4096);
    sink = file.data[0];
    sink = file.data[BYTES - 1];
}

static void read_a_removed_file(void)
{
    nib_file file = map_and_cut(0);
    unlink(path);
    sink = file.data[0];
}

static void *read_last(void *file)
{
    sink = ((nib_file *)file)->data[BYTES - 1];
    return NULL;
}

/* Standard error is full, so that the first thread to tell waits in its write until all have come. */
static void read_in_threads(void)
{
    nib_file file = map_and_cut(0);
    fcntl(STDERR_FILENO, F_SETFL, O_NONBLOCK);
    while (write(STDERR_FILENO, "\n", 1) == 1) continue;
    fcntl(STDERR_FILENO, F_SETFL, 0);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, read_last, &file);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

static void the_file_is_named(void **state)
{
    static char said[SAID], want[512];
    (void)state;
    make_file("cut \x1b[2J\xc3\xa4\xff");
    int status = child(read_behind_the_cut, said);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 74);
    snprintf(want, sizeof want,
             "nibble: %s/cut ?[2J\xc3\xa4?: byte 99999 cannot be read any more: expected the 100000 bytes that the "
             "file had when it was opened, found 4096 bytes; ",
             folder);
    assert_int_equal(strncmp(said, want, strlen(want)), 0);
    assert_non_null(strstr(said, "--resume"));

    make_file("removed");
    status = child(read_a_removed_file, said);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 74);
    assert_non_null(strstr(said, "removed: byte 0 cannot"));
    assert_non_null(strstr(said, "found no file"));
}

static void threads_tell_it_once(void **state)
{
    static char said[SAID];
    (void)state;
    make_file("threads");
    int status = child(read_in_threads, said);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 74);
    const char *first = strstr(said, "nibble: ");
    assert_non_null(first);
    assert_null(strstr(first + 1, "nibble: "));
}

/* What is no mapping of ours: of a file that another part of the program mapped. */
static void read_another_mapping(void)
{
    FILE *file = fopen(path, "r");
    const uint8_t *data = mmap(NULL, BYTES, PROT_READ, MAP_PRIVATE, fileno(file), 0);
    if (truncate(path, 0) != 0) _exit(1);
    sink = data[BYTES - 1];
}

static void watch_and_read_another_mapping(void)
{
    nib_file file = map_and_cut(BYTES);
    nib_file_unmap(&file); /* where it was, the other one may come to lie */
    read_another_mapping();
}

static void be_sent(void) { kill(getpid(), SIGBUS); }

static void watch_and_be_sent(void)
{
    nib_lost_file_watch();
    be_sent();
}

static void any_other_does_what_it_did(void **state)
{
    static char said[SAID];
    void (*pairs[][2])(void) = {{read_another_mapping, watch_and_read_another_mapping}, {be_sent, watch_and_be_sent}};
    (void)state;
    for (int i = 0; i < 2; i++) {
        make_file("another");
        int want = child(pairs[i][0], said);
        assert_true(WIFSIGNALED(want) && WTERMSIG(want) == SIGBUS);
        make_file("another");
        assert_int_equal(child(pairs[i][1], said), want);
        assert_null(strstr(said, "nibble: "));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_file_is_named),
        cmocka_unit_test(threads_tell_it_once),
        cmocka_unit_test(any_other_does_what_it_did),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
