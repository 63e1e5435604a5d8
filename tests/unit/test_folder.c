/* SPDX-License-Identifier: Apache-2.0
 *
 * test_folder.c - the files of a run folder: written and read back, then cut, bent and forged.
 */
#include "folder/folder.h"
#include "folder/series.h"
#include "forged.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static int make_run(const char *name, char **ret_path)
{
    char template_path[128];
    struct kj_error error = {0};
    snprintf(template_path, sizeof(template_path), "%s/%s", place, name);
    return kj_folder_create(template_path, "20260101-000000-h-1", ret_path, &error);
}

static void put(int dir_fd, const char *name, const void *data, size_t size)
{
    int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, size), size);
    close(fd);
}

static void test_create(void **state)
{
    (void)state;
    char *path = NULL, *again = NULL;
    struct stat st;
    int fd = make_run("a.%i.%%", &path);
    assert_true(fd >= 0);
    assert_string_equal(strrchr(path, '/') + 1, "a.20260101-000000-h-1.%");
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    put(fd, "mine", "x", 1);
    assert_int_equal(make_run("a.%i.%%", &again), -EEXIST);
    assert_int_equal(faccessat(fd, "mine", F_OK, 0), 0);
    close(fd);
    free(path);
}

static void test_run_info(void **state)
{
    (void)state;
    char *path, odd[] = "sh -c 'echo \"<script>\"\n\xff'";
    struct kj_error error = {0};
    int fd = make_run("info", &path);
    struct kj_run_info info = {.run_id = strdup("id"),
                               .command_line = strdup(odd),
                               .wrapped = true,
                               .root_pid = 7,
                               .start_mono_ns = 1234567890123456789u,
                               .exited = true,
                               .exit_status = 137,
                               .exit_signal = 9,
                               .rank = -1,
                               .local_rank = -1,
                               .world_size = -1,
                               .carbon_intensity_g_per_kwh = -1};
    struct kj_run_info back;
    assert_int_equal(kj_folder_write_run(fd, &info), 0);
    assert_int_equal(kj_folder_read_run(fd, &back, &error), 0);
    assert_string_equal(back.run_id, "id");
    assert_int_equal(back.start_mono_ns, info.start_mono_ns);
    assert_int_equal(back.exit_status, 137);
    assert_true(back.wrapped && back.exited);
    assert_true(strstr(back.command_line, "<script>") != NULL);
    kj_run_info_clear(&back);
    kj_run_info_clear(&info);
    put(fd, KJ_RUN_FILE, "{\"schema\": \"kjoule.run/2\"}", 26);
    assert_int_equal(kj_folder_read_run(fd, &back, &error), -ENOTSUP);
    put(fd, KJ_RUN_FILE, "{\"schema\": \"kjoule.ru", 21);
    assert_int_equal(kj_folder_read_run(fd, &back, &error), -EPROTO);
    assert_null(strchr(error.text, '\n'));
    close(fd);
    free(path);
}

static const struct kj_channel channels[] = {
    {.id = 0,
     .source = "nvml",
     .name = "energy_counter",
     .device = "GPU-1",
     .model = "a, \"b\"\\ \n",
     .component = KJ_COMPONENT_GPU,
     .kind = KJ_ENERGY_UJ,
     .method = KJ_MEASURED,
     .gain_sd = 0.05,
     .low_factor = 1,
     .high_factor = 1,
     .period_ns = 100000000},
    {.id = 1,
     .source = "nvml",
     .name = "power_instant",
     .device = "GPU-1",
     .component = KJ_COMPONENT_GPU,
     .kind = KJ_POWER_MW,
     .method = KJ_MEASURED,
     .gain_sd = 0.05,
     .low_factor = 1,
     .high_factor = 1,
     .window_ns = 25000000},
};

static struct kj_series *write_series(int fd)
{
    struct kj_series_writer *writer;
    struct kj_series *series;
    struct kj_error error = {0};
    assert_int_equal(kj_series_create(fd, channels, 2, &writer), 0);
    for (uint64_t t = 1; t <= 100; t++) {
        const struct kj_sample samples[] = {{0, t * 1000, t * 7}, {1, t * 1000 + 1, 300000 + t}};
        assert_int_equal(kj_series_append(writer, samples, 2), 0);
    }
    assert_int_equal(kj_series_lost(writer, 1, 200000, "gone, \"for\" good\n"), 0);
    kj_series_close(writer);
    assert_int_equal(kj_series_read(fd, &series, &error), 0);
    return series;
}

static void test_series(void **state)
{
    (void)state;
    char *path;
    int fd = make_run("series", &path);
    struct kj_series *series = write_series(fd);
    assert_int_equal(series->count, 2);
    assert_int_equal(series->bad_lines, 0);
    assert_string_equal(series->channels[0].channel.model, channels[0].model);
    assert_int_equal(series->channels[0].count, 100);
    assert_int_equal(series->channels[0].points[99].t_ns, 100000);
    assert_int_equal(series->channels[0].points[99].value, 700);
    assert_int_equal(series->channels[1].lost_ns, 200000);
    assert_string_equal(series->channels[1].lost_reason, "gone, \"for\" good\n");
    kj_series_free(series);
    close(fd);
    free(path);
}

/* Cut anywhere, and with any byte bent: never a crash, and what is whole is read. */
static void test_series_broken(void **state)
{
    (void)state;
    char *path, text[16384];
    int fd = make_run("broken", &path);
    kj_series_free(write_series(fd));
    int file = openat(fd, "series.000.csv", O_RDONLY);
    ssize_t size = read(file, text, sizeof(text));
    close(file);
    assert_in_range(size, 1000, sizeof(text) - 1);
    struct kj_error error = {0};
    for (ssize_t cut = 0; cut < size; cut += 13) {
        struct kj_series *series = NULL;
        put(fd, "series.000.csv", text, (size_t)cut);
        if (!kj_series_read(fd, &series, &error))
            kj_series_free(series);
    }
    unsigned seed = 1;
    for (int i = 0; i < 1000; i++) {
        char bent[sizeof(text)];
        struct kj_series *series = NULL;
        memcpy(bent, text, (size_t)size);
        for (int k = 0; k < 4; k++)
            bent[(unsigned)rand_r(&seed) % (unsigned)size] = (char)rand_r(&seed);
        put(fd, "series.000.csv", bent, (size_t)size);
        if (!kj_series_read(fd, &series, &error))
            kj_series_free(series);
    }
    close(fd);
    free(path);
}

static void look_everywhere(int fd, const struct kj_ledger_view *view)
{
    struct kj_ledger_interval *intervals;
    size_t count;
    uint64_t dropped;
    union {
        struct kj_ledger_activity activity;
        char bytes[512];
    } row;
    for (int s = 0; s < KJ_SECTION_RING; s++)
        for (uint32_t i = 0; i < 64 && kj_ledger_view_row(view, (enum kj_ledger_section)s, i, &row); i++)
            if (s == KJ_SECTION_ACTIVITIES)
                assert_non_null(kj_ledger_view_name(view, row.activity.name));
    kj_ledger_view_launches(view, UINT32_MAX);
    assert_string_equal(kj_ledger_view_name(view, UINT32_MAX), "");
    if (!kj_ledger_view_intervals(fd, view, &intervals, &count, &dropped))
        free(intervals);
}

static int open_ledger(int fd, const struct kj_ledger_header *h, uint64_t size)
{
    struct kj_ledger_view *view = NULL;
    struct kj_error error = {0};
    put(fd, "ledger.1.1", h, sizeof(*h));
    int file = openat(fd, "ledger.1.1", O_WRONLY);
    assert_int_equal(ftruncate(file, (off_t)size), 0);
    close(file);
    int status = kj_ledger_view_open(fd, "ledger.1.1", &view, &error);
    if (!status) {
        look_everywhere(fd, view);
        kj_ledger_drain(fd, "ledger.1.1");
        kj_ledger_view_close(view);
    } else {
        assert_true(*error.text && !strchr(error.text, '\n'));
    }
    return status;
}

static void test_ledger_forged(void **state)
{
    (void)state;
    char *path;
    int fd = make_run("ledger", &path);
    const struct kj_ledger_header good = empty_ledger();
    assert_int_equal(open_ledger(fd, &good, good.file_size), 0);
    assert_int_equal(open_ledger(fd, &good, good.file_size / 2), -EPROTO);
    assert_int_equal(open_ledger(fd, &good, 100), -EPROTO);
    struct kj_ledger_header bad = good;
    bad.magic++;
    assert_int_equal(open_ledger(fd, &bad, good.file_size), -EPROTO);
    bad = good;
    bad.version++;
    assert_int_equal(open_ledger(fd, &bad, good.file_size), -ENOTSUP);
    bad = good;
    bad.sections[KJ_SECTION_NAMES].offset = UINT64_MAX - 63;
    assert_int_equal(open_ledger(fd, &bad, good.file_size), -EPROTO);
    bad = good;
    bad.sections[KJ_SECTION_ACTIVITIES].used = UINT64_MAX;
    assert_int_equal(open_ledger(fd, &bad, good.file_size), -EPROTO);
    bad = good;
    bad.sections[KJ_SECTION_RING].used = UINT64_MAX;
    bad.ring_tail = 5;
    open_ledger(fd, &bad, good.file_size);
    unsigned seed = 1;
    for (int i = 0; i < 400; i++) {
        bad = good;
        for (int k = 0; k < 3; k++)
            ((char *)&bad)[(unsigned)rand_r(&seed) % sizeof(bad)] = (char)rand_r(&seed);
        open_ledger(fd, &bad, good.file_size);
    }
    close(fd);
    free(path);
}

/* A disk that is full in the middle of the magic, and has room later. */
static void test_rests_of_a_full_disk(void **state)
{
    (void)state;
    char *path;
    struct kj_ledger_watch *watch;
    struct kj_ledger_view *view;
    struct kj_ledger_rest *rests;
    struct kj_error error = {0};
    struct rlimit unlimited, four;
    size_t count;
    int fd = make_run("full", &path);
    const struct kj_ledger_header good = empty_ledger();
    assert_int_equal(open_ledger(fd, &good, good.file_size), 0);
    assert_int_equal(kj_ledger_watch_open(fd, "ledger.1.1", &watch), 0);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &unlimited), 0);
    four = (struct rlimit){4, unlimited.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &four), 0);
    int status = kj_ledger_watch_save(watch, &(struct kj_ledger_rest){1, 2});
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &unlimited), 0);
    assert_true(status < 0);
    assert_int_equal(kj_ledger_watch_save(watch, &(struct kj_ledger_rest){3, 4}), 0);
    assert_int_equal(kj_ledger_view_open(fd, "ledger.1.1", &view, &error), 0);
    assert_int_equal(kj_ledger_view_rests(fd, view, &rests, &count), 0);
    assert_int_equal(count, 1);
    assert_int_equal(rests[0].start_ns, 3);
    free(rests);
    kj_ledger_view_close(view);
    kj_ledger_watch_close(watch);
    close(fd);
    free(path);
}

static void test_no_links(void **state)
{
    (void)state;
    char *path, link[160];
    struct kj_error error = {0};
    struct kj_ledger_view *view;
    int fd = make_run("links", &path);
    assert_int_equal(symlinkat("/etc/passwd", fd, "ledger.2.2"), 0);
    assert_true(kj_ledger_view_open(fd, "ledger.2.2", &view, &error) < 0);
    assert_int_equal(mkfifoat(fd, "ledger.3.3", 0600), 0);
    assert_true(kj_ledger_view_open(fd, "ledger.3.3", &view, &error) < 0);
    snprintf(link, sizeof(link), "%s/link", place);
    assert_int_equal(symlink(path, link), 0);
    assert_true(kj_folder_open(link, &error) < 0);
    close(fd);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create),
        cmocka_unit_test(test_run_info),
        cmocka_unit_test(test_series),
        cmocka_unit_test(test_series_broken),
        cmocka_unit_test(test_ledger_forged),
        cmocka_unit_test(test_no_links),
        cmocka_unit_test(test_rests_of_a_full_disk),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
