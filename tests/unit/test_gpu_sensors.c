/* SPDX-License-Identifier: Apache-2.0
 *
 * test_gpu_sensors.c - what is known of a board's sensors: the published table, a calibration from the user's
 * cache, and their way through the files of a run.
 */
#include "base/file.h"
#include "folder/series.h"
#include "power/calibration.h"
#include "power/gpu_sensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char place[64];

static struct kj_channel look_up(unsigned architecture, unsigned driver, const char *name,
                                 enum kj_gpu_field field)
{
    const struct kj_gpu_board board = {.architecture = architecture, .driver_major = driver, .name = name};
    struct kj_channel channel = {.kind = field == KJ_GPU_COUNTER ? KJ_ENERGY_UJ : KJ_POWER_MW};
    kj_gpu_sensor_shape(&board, field, &channel);
    return channel;
}

/* Each kind of the published table, and what is not in it. */
static void test_table(void **state)
{
    (void)state;
    static const struct {
        unsigned architecture, driver;
        const char *name;
        enum kj_gpu_field field;
        enum kj_shape_origin origin;
        enum kj_sensor_kernel kernel;
        double window_ms, period_ms;
    } rows[] = {
        {9, 580, "NVIDIA H100 80GB HBM3", KJ_GPU_INSTANT, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 25, 100},
        {9, 580, "NVIDIA H100 PCIe", KJ_GPU_USAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 1000, 100},
        {9, 580, "NVIDIA H100 PCIe", KJ_GPU_AVERAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 1000, 100},
        {9, 525, "NVIDIA H100 PCIe", KJ_GPU_USAGE, KJ_ORIGIN_INFERRED, KJ_SENSOR_BOX, 0, 0},
        {9, 580, "NVIDIA H200", KJ_GPU_INSTANT, KJ_ORIGIN_INFERRED, KJ_SENSOR_BOX, 0, 0},
        {10, 580, "NVIDIA B200", KJ_GPU_INSTANT, KJ_ORIGIN_INFERRED, KJ_SENSOR_BOX, 0, 0},
        {8, 530, "NVIDIA GeForce RTX 4090", KJ_GPU_USAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 100, 100},
        {8, 525, "NVIDIA GeForce RTX 4090", KJ_GPU_USAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 1000, 100},
        {8, 535, "NVIDIA GeForce RTX 4090", KJ_GPU_USAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 1000, 100},
        {8, 0, "NVIDIA L4", KJ_GPU_INSTANT, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 100, 100},
        {7, 535, "NVIDIA A100-SXM4-80GB", KJ_GPU_USAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 25, 100},
        {7, 535, "NVIDIA RTX A3000", KJ_GPU_USAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 1000, 100},
        {0, 535, "NVIDIA A30-24C", KJ_GPU_USAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 25, 100},
        {7, 535, "NVIDIA A30", KJ_GPU_USAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 25, 100},
        {7, 535, "NVIDIA GeForce RTX 3090", KJ_GPU_USAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 1000, 100},
        {7, 535, "NVIDIA GeForce RTX 3090", KJ_GPU_INSTANT, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 100, 100},
        {0, 535, "NVIDIA GeForce RTX 3090", KJ_GPU_INSTANT, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 100, 100},
        {6, 535, "Tesla T4", KJ_GPU_USAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 100, 100},
        {5, 535, "Tesla V100-SXM2-32GB", KJ_GPU_INSTANT, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 10, 20},
        {4, 535, "Tesla P100-PCIE-16GB", KJ_GPU_USAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_BOX, 10, 20},
        {3, 470, "Tesla M40", KJ_GPU_USAGE, KJ_ORIGIN_INFERRED, KJ_SENSOR_LAG, 0, 100},
        {2, 470, "Tesla K40m", KJ_GPU_USAGE, KJ_ORIGIN_TABLE, KJ_SENSOR_LAG, 53.5, 15.4},
        {0, 0, "", KJ_GPU_INSTANT, KJ_ORIGIN_INFERRED, KJ_SENSOR_BOX, 0, 0},
        {9, 580, "NVIDIA H100 80GB HBM3", KJ_GPU_COUNTER, KJ_ORIGIN_INFERRED, KJ_SENSOR_BOX, 0, 0},
        {9, 580, "NVIDIA H100 80GB HBM3", KJ_GPU_RING, KJ_ORIGIN_INFERRED, KJ_SENSOR_BOX, 0, 0},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct kj_channel c = look_up(rows[i].architecture, rows[i].driver, rows[i].name, rows[i].field);
        assert_int_equal(c.shape, rows[i].origin);
        assert_int_equal(c.kernel, rows[i].kernel);
        assert_int_equal(c.window_ns, (uint64_t)(rows[i].window_ms * 1e6));
        assert_int_equal(c.period_ns, (uint64_t)(rows[i].period_ms * 1e6));
        assert_true(c.gain_mean > 0.9 && c.gain_mean < 1.1 && c.gain_sd > 0.01);
        assert_true(strlen(c.basis) > 20 && strlen(c.basis) + 1 < sizeof(c.basis));
        assert_non_null(strstr(c.basis, "2312.02741"));
    }
}

static struct kj_calibration some_calibration(void)
{
    struct kj_calibration c = {.uuid = "GPU-5eed0000-6b6a-4075-806c-6573696d7500",
                               .driver = "580.65.06",
                               .model = "NVIDIA H100, \"80GB\"",
                               .date = "2026-01-02T03:04:05Z",
                               .gain = 0.954,
                               .gain_sd = 0.015,
                               .steady_on_mw = {400e3, 399e3, 401e3},
                               .steady_off_mw = {85e3, 84e3, 86e3},
                               .count = 2};
    c.sensors[0] = (struct kj_calibrated_sensor){"power_instant",
                                                 false,
                                                 {.kernel = KJ_SENSOR_LAG,
                                                  .window_ns = {24.5e6, 24e6, 25e6},
                                                  .period_ns = {100e6, 99.9e6, 100.1e6},
                                                  .delay_ns = {8e6, 7e6, 9e6},
                                                  .on_mw = {400e3, 399e3, 401e3},
                                                  .off_mw = {85e3, 84e3, 86e3},
                                                  .noise_mw = 1500,
                                                  .unexplained = 0.01,
                                                  .updates = 400}};
    c.sensors[1] = (struct kj_calibrated_sensor){"energy_counter",
                                                 true,
                                                 {.window_ns = {25e6, 24e6, 26e6},
                                                  .period_ns = {100e6, 99.9e6, 100.1e6},
                                                  .delay_ns = {0, 0, 1e6},
                                                  .on_mw = {400e3, 399e3, 401e3},
                                                  .off_mw = {85e3, 84e3, 86e3},
                                                  .sub_sampled = true,
                                                  .wander = 0.2,
                                                  .updates = 300}};
    return c;
}

static int enter(void **state)
{
    (void)state;
    strcpy(place, "/tmp/kjoule-unit-sensors.XXXXXX");
    return mkdtemp(place) && !setenv("XDG_CACHE_HOME", place, 1) ? 0 : -1;
}

static int leave(void **state)
{
    (void)state;
    char command[128];
    unsetenv("XDG_CACHE_HOME");
    snprintf(command, sizeof(command), "rm -rf '%s'", place);
    return system(command);
}

static void test_cache(void **state)
{
    (void)state;
    struct kj_calibration saved = some_calibration(), loaded = {0};
    struct kj_error error = {0};
    char path[4300];
    struct stat st;
    assert_int_equal(kj_calibration_load(saved.uuid, saved.driver, &loaded, &error), -ENOENT);
    assert_int_equal(kj_calibration_save(&saved, path, sizeof(path), &error), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    *strrchr(path, '/') = 0;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(kj_calibration_load(saved.uuid, saved.driver, &loaded, &error), 0);
    assert_string_equal(loaded.model, saved.model);
    assert_true(loaded.gain == saved.gain && loaded.gain_sd == saved.gain_sd);
    assert_int_equal(loaded.count, 2);
    assert_int_equal(loaded.sensors[0].shape.kernel, KJ_SENSOR_LAG);
    assert_true(loaded.sensors[0].shape.delay_ns.high == 9e6);
    assert_true(loaded.sensors[1].counter && loaded.sensors[1].shape.sub_sampled);
    /* another driver, another board: not this one's */
    assert_int_equal(kj_calibration_load(saved.uuid, "580.65.07", &loaded, &error), -ENOENT);
    assert_int_equal(kj_calibration_load("GPU-other", saved.driver, &loaded, &error), -ENOENT);
}

/* Files that are not to be believed are named with the reason, in one line. */
static void test_cache_distrusted(void **state)
{
    (void)state;
    struct kj_calibration saved = some_calibration(), loaded;
    struct kj_error error = {0};
    char path[4300], other[4400], *text = kj_calibration_text(&saved);
    assert_int_equal(kj_calibration_save(&saved, path, sizeof(path), &error), 0);
    assert_int_equal(chmod(path, 0666), 0);
    assert_int_equal(kj_calibration_load(saved.uuid, saved.driver, &loaded, &error), -EPERM);
    assert_non_null(strstr(error.text, "written by others"));
    if (geteuid() == 0) { /* only root can give files away */
        assert_int_equal(chmod(path, 0600), 0);
        assert_int_equal(chown(path, 65534, 65534), 0);
        assert_int_equal(kj_calibration_load(saved.uuid, saved.driver, &loaded, &error), -EPERM);
        assert_non_null(strstr(error.text, "another user"));
    }
    snprintf(other, sizeof(other), "%s.real", path);
    assert_int_equal(rename(path, other), 0);
    assert_int_equal(symlink(other, path), 0);
    assert_int_equal(kj_calibration_load(saved.uuid, saved.driver, &loaded, &error), -ELOOP);
    assert_non_null(strstr(error.text, "link"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0); /* must not wait for a writer */
    assert_int_equal(kj_calibration_load(saved.uuid, saved.driver, &loaded, &error), -EINVAL);
    assert_int_equal(unlink(path), 0);
    text[strlen(text) / 2] = 0;
    FILE *file = fopen(path, "w");
    fputs(text, file);
    fclose(file);
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(kj_calibration_load(saved.uuid, saved.driver, &loaded, &error), -EINVAL);
    assert_non_null(strstr(error.text, "no JSON"));
    assert_null(strchr(error.text, '\n'));
    free(text);
    /* a folder that others may write to holds nothing to be believed */
    assert_int_equal(kj_calibration_save(&saved, path, sizeof(path), &error), 0);
    *strrchr(path, '/') = 0;
    assert_int_equal(chmod(path, 0777), 0);
    assert_int_equal(kj_calibration_load(saved.uuid, saved.driver, &loaded, &error), -EPERM);
    assert_int_equal(kj_calibration_save(&saved, path, sizeof(path), &error), -EPERM);
}

static void test_parse_nonsense(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to;
    } changes[] = {
        {"kjoule.sensor/1", "kjoule.sensor/9"},
        {"\"lag\"", "\"triangle\""},
        {"24500000.0", "-1.0"},
        {"24500000.0", "1e30"},
        {"24500000.0", "\"wide\""},
        {"0.954", "0.0"},
        {"0.954", "99.0"},
        {"\"power_mw\"", "\"miles\""},
        {"\"uuid\"", "\"guid\""},
        {"24000000.0", "25500000.0"},
        {"true", "false"},
    };
    struct kj_calibration saved = some_calibration(), parsed;
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        struct kj_error error = {0};
        char *text = kj_calibration_text(&saved), *at = strstr(text, changes[i].from), changed[8192];
        assert_non_null(at);
        assert_int_equal(kj_calibration_parse(text, &parsed, &error), 0);
        snprintf(changed, sizeof(changed), "%.*s%s%s", (int)(at - text), text, changes[i].to,
                 at + strlen(changes[i].from));
        assert_int_equal(kj_calibration_parse(changed, &parsed, &error), -EINVAL);
        assert_true(error.text[0]);
        free(text);
    }
}

static void test_apply(void **state)
{
    (void)state;
    struct kj_calibration calibration = some_calibration();
    struct kj_channel power = look_up(9, 580, "NVIDIA H100 80GB HBM3", KJ_GPU_INSTANT), counter, ring;
    strcpy(power.name, "power_instant");
    kj_calibration_apply(&calibration, &power);
    assert_int_equal(power.shape, KJ_ORIGIN_CALIBRATED);
    assert_int_equal(power.window_ns, 24500000); /* cached beats table */
    assert_int_equal(power.delay_ns, 8000000);
    assert_true(power.gain == 0.954 && power.gain_mean == 1 && fabs(power.gain_sd - 0.015 / 0.954) < 1e-9);
    counter = look_up(9, 580, "NVIDIA H100 80GB HBM3", KJ_GPU_COUNTER);
    strcpy(counter.name, "energy_counter");
    kj_calibration_apply(&calibration, &counter);
    assert_int_equal(counter.window_ns, 25000000);
    ring = look_up(9, 580, "NVIDIA H100 80GB HBM3", KJ_GPU_RING);
    strcpy(ring.name, "power_samples");
    calibration.gain = 0;
    kj_calibration_apply(&calibration, &ring);
    assert_int_equal(ring.shape, KJ_ORIGIN_INFERRED);
    assert_true(ring.gain == 0 && ring.gain_mean == 0.97);
}

/* The shape survives the files of a run, and files of before there were shapes are still read. */
static void test_series(void **state)
{
    (void)state;
    struct kj_channel channel = look_up(9, 580, "NVIDIA H100 80GB HBM3", KJ_GPU_INSTANT);
    struct kj_calibration calibration = some_calibration();
    struct kj_series_writer *writer = NULL;
    struct kj_series *series = NULL;
    struct kj_error error = {0};
    const struct kj_sample sample = {0, 1000, 60000};
    strcpy(channel.source, "nvml");
    strcpy(channel.name, "power_instant");
    strcpy(channel.device, "GPU-1");
    channel.component = KJ_COMPONENT_GPU;
    channel.method = KJ_MEASURED;
    channel.low_factor = channel.high_factor = 1;
    channel.limit_mw = 450000;
    strcpy(channel.pci, "0:18:0");
    kj_calibration_apply(&calibration, &channel);
    int dir = open(place, O_RDONLY | O_DIRECTORY);
    assert_int_equal(kj_series_create(dir, &channel, 1, &writer), 0);
    kj_series_append(writer, &sample, 1);
    kj_series_close(writer);
    assert_int_equal(kj_series_read(dir, &series, &error), 0);
    assert_int_equal(series->bad_lines, 0);
    const struct kj_channel *c = &series->channels[0].channel;
    assert_int_equal(c->shape, KJ_ORIGIN_CALIBRATED);
    assert_int_equal(c->kernel, KJ_SENSOR_LAG);
    assert_int_equal(c->delay_ns, 8000000);
    assert_true(fabs(c->gain - 0.954) < 1e-6 && c->gain_mean == 1 && c->noise_mw == 1500);
    assert_true(c->limit_mw == 450000);
    assert_string_equal(c->pci, "0:18:0");
    assert_true(fabs(c->delay_sd_ns * 2 * KJ_Z90 / 2e6 - 1) < 1e-4);
    kj_series_free(series);

    static const char old[] =
        "kjoule.series/1\nchannel,0,nvml,power_instant,GPU-1,H100,gpu,power_mw,measured,"
        "0.05,1,1,25000000,0,\ns,0,5,7\nshape,0,table,box,0,0,nan,0\nshape,0,table,box,-1,0,0,0\n"
        "shape,0,magic,box,0,0,0,0\nshape,7,table,box,0,0,0,0\n"
        "shape,0,table,lag,3,0,0.97,0,a,later,version\ns,0,6,8\n";
    assert_int_equal(kj_file_replace(dir, "series.000.csv", old, strlen(old)), 0);
    assert_int_equal(kj_series_read(dir, &series, &error), 0);
    assert_int_equal(series->bad_lines, 4);
    assert_int_equal(series->channels[0].count, 2);
    assert_int_equal(series->channels[0].channel.kernel, KJ_SENSOR_LAG);
    assert_int_equal(series->channels[0].channel.delay_ns, 3);
    assert_true(series->channels[0].channel.limit_mw == 0 && series->channels[0].channel.delay_sd_ns == 0);
    kj_series_free(series);
    close(dir);
}

/* A recording is replayed with its shape. */
static void test_replay(void **state)
{
    (void)state;
    char path[128];
    struct kj_power *power = NULL;
    struct kj_error error = {0};
    const struct kj_channel *channels;
    static const char text[] =
        "kjoule.series/1\nchannel,3,nvml,power_samples,GPU-1,H100,gpu,power_mw,measured,"
        "0.05,1,1,25000000,0,\nshape,3,calibrated,box,2000000,0.95,1,100\ns,3,5,7\n";
    snprintf(path, sizeof(path), "%s/series.csv", place);
    assert_int_equal(kj_file_replace(AT_FDCWD, path, text, strlen(text)), 0);
    const struct kj_power_config config = {.replay_file = path};
    assert_int_equal(kj_power_open(&config, &power, &error), 0);
    assert_int_equal(kj_power_channels(power, &channels), 1);
    assert_int_equal(channels[0].shape, KJ_ORIGIN_CALIBRATED);
    assert_int_equal(channels[0].delay_ns, 2000000);
    assert_true(kj_channel_own_times(&channels[0]));
    kj_power_close(power);
    static const char bad[] = "kjoule.series/1\nchannel,3,nvml,p,GPU-1,H100,gpu,power_mw,measured,"
                              "0.05,1,1,25000000,0,\nshape,3,calibrated,box,x,0.95,1,100\ns,3,5,7\n";
    assert_int_equal(kj_file_replace(AT_FDCWD, path, bad, strlen(bad)), 0);
    assert_int_equal(kj_power_open(&config, &power, &error), -EINVAL);
    assert_non_null(strstr(error.text, "line 3"));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, enter, leave)
    const struct CMUnitTest tests[] = {
        TEST(test_table), TEST(test_cache),  TEST(test_cache_distrusted), TEST(test_parse_nonsense),
        TEST(test_apply), TEST(test_series), TEST(test_replay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
