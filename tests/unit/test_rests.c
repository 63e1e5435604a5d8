/* SPDX-License-Identifier: Apache-2.0
 *
 * test_rests.c - rests found in forged ledgers: of this process, which lives, and of others that do not.
 */
#include "base/units.h"
#include "forged.h"
#include "record/parts.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ENDED = 300, TICKS = 20 };

static int dir_fd = -1;

static uint64_t own_start_ticks(void)
{
    char line[1024] = "";
    FILE *file = fopen("/proc/self/stat", "re");
    assert_non_null(file);
    assert_non_null(fgets(line, sizeof(line), file));
    fclose(file);
    char *p = strrchr(line, ')');
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    assert_non_null(p);
    return strtoull(p, NULL, 10);
}

/* Of a process that has a context and nothing to run. */
static void put_ledger(const char *name, int32_t pid, uint64_t start_ticks, uint32_t state)
{
    struct kj_ledger_header h = empty_ledger();
    h.pid = pid;
    h.start_ticks = start_ticks;
    h.state = state;
    h.settled_calls = 1;
    int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, &h, sizeof(h)), sizeof(h));
    assert_int_equal(ftruncate(fd, (off_t)h.file_size), 0);
    close(fd);
}

static size_t rests_of(const char *name)
{
    struct kj_ledger_view *view;
    struct kj_ledger_rest *rests;
    struct kj_error error = {0};
    size_t count;
    assert_int_equal(kj_ledger_view_open(dir_fd, name, &view, &error), 0);
    assert_int_equal(kj_ledger_view_rests(dir_fd, view, &rests, &count), 0);
    for (size_t i = 0; i < count; i++)
        assert_true(rests[i].start_ns < rests[i].end_ns);
    free(rests);
    kj_ledger_view_close(view);
    return count;
}

static int descriptors(void)
{
    int count = 0;
    DIR *open_files = opendir("/proc/self/fd");
    assert_non_null(open_files);
    while (readdir(open_files))
        count++;
    closedir(open_files);
    return count;
}

static void tick(struct kj_rests *rests)
{
    for (int i = 0; i < TICKS; i++) {
        kj_rests_tick(rests);
        nanosleep(&(struct timespec){.tv_nsec = 12 * KJ_NS_PER_MS}, NULL);
    }
}

static int32_t ended_pid(void)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid)
        _exit(0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    return pid;
}

/* Half of them were killed, half ended by themselves; one more lives, and is found after all of these. */
static void test_after_many_processes(void **state)
{
    (void)state;
    int32_t pid = ended_pid();
    char name[64];
    for (int i = 0; i < ENDED; i++) {
        snprintf(name, sizeof(name), "ledger.%d.%d", 1000 + i, i);
        put_ledger(name, pid, 1, i % 2 ? KJ_LEDGER_OPEN : KJ_LEDGER_CLOSED);
    }
    struct kj_rests *rests = kj_rests_new(dir_fd);
    assert_non_null(rests);
    int before = descriptors();
    tick(rests);
    assert_int_equal(descriptors(), before);
    put_ledger("ledger.9.lives", getpid(), own_start_ticks(), KJ_LEDGER_OPEN);
    tick(rests);
    assert_int_equal(descriptors(), before + 1);
    assert_null(kj_rests_close(rests));
    assert_int_equal(descriptors(), before);
    assert_int_equal(rests_of("ledger.9.lives"), 1);
    for (int i = 0; i < ENDED; i++) {
        snprintf(name, sizeof(name), "ledger.%d.%d", 1000 + i, i);
        assert_int_equal(rests_of(name), 0);
    }
}

static void test_a_pid_used_again(void **state)
{
    (void)state;
    struct kj_rests *rests = kj_rests_new(dir_fd);
    put_ledger("ledger.9.before", getpid(), own_start_ticks() - 1, KJ_LEDGER_OPEN);
    tick(rests);
    kj_rests_close(rests);
    assert_int_equal(rests_of("ledger.9.before"), 0);
}

static int open_place(void **state)
{
    dir_fd = set_up(state) ? -1 : open(place, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return dir_fd < 0 ? -1 : 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_pid_used_again),
        cmocka_unit_test(test_after_many_processes),
    };
    return cmocka_run_group_tests(tests, open_place, tear_down);
}
