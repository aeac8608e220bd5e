/* Two ranks' control channels in one process: ranks that all stand still, none of them in a collective, are ended where
 * they have promised to note what they do, with what each was last seen at, and not where they have not. Run under
 * ThreadSanitizer. */
#include "check.h"

#include "tcp_control.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static nib_status poll_well(void *context)
{
    (void)context;
    return NIB_OK;
}

static void count_abort(void *context) { ++*(atomic_int *)context; }

static void stay(nib_status status, const char *message) { (void)status, (void)message; }

typedef struct {
    nib_control *control[2];
    atomic_int aborts;
} pair;

static void open_pair(pair *p, bool noted)
{
    static const nib_control_limits limits = {.silent = 60, .absent = 2, .grace = 60, .end = stay};
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    const int peers[2] = {-1, ends[0]};
    p->aborts = 0;
    assert_int_equal(nib_control_start(&(nib_ranks){.rank = 0, .size = 2}, peers, &limits, &p->control[0]), NIB_OK);
    assert_int_equal(nib_control_start(&(nib_ranks){.rank = 1, .size = 2}, &ends[1], &limits, &p->control[1]), NIB_OK);
    for (int r = 0; r < 2; r++) {
        nib_control_guard(p->control[r], &(nib_guard){&p->aborts, poll_well, count_abort, noted});
        nib_control_note(p->control[r], r == 0 ? "step 7, layer 3 of the base" : "step 7, layer 2 of the base");
    }
}

static void close_pair(pair *p)
{
    for (int r = 1; r >= 0; r--) {
        nib_control_guard(p->control[r], NULL);
        nib_control_stop(p->control[r], NIB_OK, "");
    }
}

static void test_standstill_ends(void **state)
{
    (void)state;
    pair p;
    open_pair(&p, true);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(nib_control_verdict(p.control[r], 100, NIB_OK), NIB_ERROR_DEVICE);
        assert_non_null(strstr(nib_error_message(), "all 2 ranks hang"));
        assert_non_null(strstr(nib_error_message(), "step 7, layer 3 of the base"));
    }
    for (int i = 0; i < 1000 && p.aborts < 2; i++) usleep(10000);
    assert_int_equal(p.aborts, 2);
    close_pair(&p);
}

/* A sign from any rank is enough. */
static void test_one_goes_on(void **state)
{
    (void)state;
    pair p;
    open_pair(&p, true);
    for (int i = 0; i < 50; i++) {
        usleep(100000);
        nib_control_note(p.control[1], "step 7, layer 1 of the base");
    }
    assert_false(nib_control_failed(p.control[0]));
    close_pair(&p);
}

static void test_others_compute_as_long_as_they_like(void **state)
{
    (void)state;
    pair p;
    open_pair(&p, false);
    assert_int_equal(nib_control_verdict(p.control[0], 5, NIB_OK), NIB_OK);
    close_pair(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_standstill_ends),
        cmocka_unit_test(test_one_goes_on),
        cmocka_unit_test(test_others_compute_as_long_as_they_like),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
