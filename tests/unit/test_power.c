/* SPDX-License-Identifier: Apache-2.0
 *
 * test_power.c - sensors from a laid tree of /sys and /proc, the models, and recordings.
 */
#include "laid.h"

#include <errno.h>
#include <fcntl.h>
#include <time.h>

enum { NOBODY = 65534 };

static void put_zone(const char *folder, const char *name, uint64_t energy_uj)
{
    char file[128];
    snprintf(file, sizeof(file), "/sys/class/powercap/%s/name", folder);
    put(file, "%s\n", name);
    snprintf(file, sizeof(file), "/sys/class/powercap/%s/max_energy_range_uj", folder);
    put(file, "262143328850\n");
    snprintf(file, sizeof(file), "/sys/class/powercap/%s/energy_uj", folder);
    put(file, "%llu\n", (unsigned long long)energy_uj);
}

static void put_rapl(void)
{
    put_zone("intel-rapl:0", "package-0", 262143000000);
    put_zone("intel-rapl:0:0", "core", 5);
    put_zone("intel-rapl:0:1", "dram", 1000);
    put_zone("intel-rapl:1", "package-1-die-0", 10);
    put_zone("intel-rapl:2", "psys", 20);
    put_zone("intel-rapl-mmio:0", "package-0", 77);
}

static void test_powercap_counts_and_wraps(void **state)
{
    (void)state;
    put_rapl();
    open_power("rapl_powercap");
    assert_true(statuses[0].accepted);
    assert_int_equal(channels_count, 4); /* core lies inside the package, mmio shows it again */
    assert_int_equal(channel_of("package-0")->component, KJ_COMPONENT_CPU);
    assert_int_equal(channel_of("package-1")->component, KJ_COMPONENT_CPU);
    assert_int_equal(channel_of("dram-0")->component, KJ_COMPONENT_DRAM);
    assert_int_equal(channel_of("node")->component, KJ_COMPONENT_NODE);
    assert_int_equal(channel_of("package-0")->method, KJ_MEASURED);
    assert_int_equal(reading("package-0"), 0);
    put_zone("intel-rapl:0", "package-0", 262143300000);
    assert_int_equal(reading("package-0"), 300000);
    put_zone("intel-rapl:0", "package-0", 1000000); /* wrapped at its range */
    assert_int_equal(reading("package-0"), 328850 + 1000000);
    put_zone("intel-rapl:0:1", "dram", 4000);
    assert_int_equal(reading("dram-0"), 3000);
}

static void test_powercap_without_permission(void **state)
{
    (void)state;
    put_rapl();
    const char *zones[] = {"0", "0:1", "1", "2"};
    for (size_t i = 0; i < 4; i++) {
        char path[PATH_MAX];
        snprintf(path, sizeof(path), "%s/sys/class/powercap/intel-rapl:%s/energy_uj", root, zones[i]);
        assert_int_equal(chmod(path, geteuid() ? 0 : 0400), 0);
    }
    put_zone("intel-rapl-mmio:0", "uncore", 1);
    bool root_user = geteuid() == 0;
    if (root_user)
        assert_int_equal(seteuid(NOBODY), 0);
    open_power("rapl_powercap");
    if (root_user)
        assert_int_equal(seteuid(0), 0);
    assert_false(statuses[0].accepted);
    assert_int_equal(channels_count, 0);
    assert_non_null(strstr(statuses[0].reason, "permission"));
    assert_non_null(strstr(statuses[0].reason, "package-0"));
    assert_non_null(strstr(statuses[0].remedy, "chmod"));
}

static void test_sensor_that_falls_silent(void **state)
{
    (void)state;
    put_rapl();
    open_power("rapl_powercap");
    put("/sys/class/powercap/intel-rapl:0/energy_uj", "%s", "");
    uint32_t channel;
    char reason[160];
    for (int i = 0; i < 3; i++) {
        assert_false(kj_power_lost(power, &channel, reason, sizeof(reason)));
        assert_int_equal(reading_now("package-0"), -1); /* left out, never 0 */
    }
    assert_true(kj_power_lost(power, &channel, reason, sizeof(reason)));
    assert_string_equal(channels[channel].device, "package-0");
    assert_non_null(strstr(reason, "package-0"));
    assert_false(kj_power_lost(power, &channel, reason, sizeof(reason)));
    assert_int_equal(reading("package-1"), 0);
}

static void test_excluded_device(void **state)
{
    (void)state;
    put_rapl();
    open_power("rapl_powercap");
    kj_power_exclude_device(power, "package-0");
    assert_int_equal(reading_now("package-0"), -1);
    assert_int_equal(reading("package-1"), 0);
    assert_int_equal(kj_power_channels(power, &channels), 4);
}

static void test_nothing_there(void **state)
{
    (void)state;
    const char *only[] = {"rapl_perf", "rapl_powercap", "hwmon", "cpu_model", "dram_model", NULL};
    struct kj_power_config config = {.sysfs_root = root, .only = only};
    struct kj_error error = {0};
    assert_int_equal(kj_power_open(&config, &power, &error), 0);
    assert_int_equal(kj_power_channels(power, &channels), 0);
    assert_int_equal(kj_power_statuses(power, &statuses), 5);
    for (int i = 0; i < 5; i++) {
        assert_false(statuses[i].accepted);
        assert_true(strlen(statuses[i].reason) > 10);
    }
    struct kj_sample samples[4];
    assert_int_equal(kj_power_read(power, samples, 4), 0);
}

static void test_cpu_model_curve(void **state)
{
    (void)state;
    static const char *const names[] = {"AMD EPYC 7763 64-Core Processor", "AMD EPYC", "no such processor",
                                        ""};
    for (size_t n = 0; n < 4; n++) {
        struct kj_cpu_model model;
        kj_cpu_model_of(names[n], n % 2, 128, &model);
        assert_true(model.low_factor > 0 && model.low_factor < 1 && model.high_factor > 1);
        assert_true(model.basis[0]);
        double before = 0;
        for (int i = 0; i <= 100; i++) {
            double mw = kj_cpu_model_power_mw(&model, i / 100.0);
            assert_true(mw > before);
            assert_true(mw * model.low_factor < mw && mw < mw * model.high_factor);
            before = mw;
        }
        assert_true(kj_cpu_model_power_mw(&model, 7) == before && before == model.full_mw);
        assert_true(kj_cpu_model_power_mw(&model, -1) == kj_cpu_model_power_mw(&model, 0));
    }
    struct kj_cpu_model whole, slice, other;
    kj_cpu_model_of("AMD EPYC 7763 64-Core Processor", false, 64, &whole);
    kj_cpu_model_of("AMD EPYC 7763 64-Core Processor", true, 8, &slice);
    assert_true(whole.full_mw == 280000 && slice.full_mw == 280000 / 16.0);
    kj_cpu_model_of("Intel(R) Xeon(R) Gold 6230R CPU @ 2.10GHz", false, 52, &other);
    assert_true(other.full_mw == 150000);
    assert_non_null(strstr(other.basis, "6230R"));
    assert_non_null(strstr(other.basis, "Xeon Gold"));
    assert_true(kj_cpu_model_power_mw(&other, 0) == 150000 * 0.257);
    assert_true(kj_cpu_load_curve("AMD EPYC 9654P 96-Core Processor", 0.5) == 0.784);
    assert_true(kj_cpu_load_curve("", 0.1) == 0.3);
}

/* Every curve of the table rises and bends down: the model's energy never falls then. */
static void test_cpu_curves(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *source;
        double p[4];
    } curves[] = {
#define CURVE(pattern, idle, tenth, half, source) {pattern, source, {idle, tenth, half, 1}},
#include "power/cpu_curves.def"
#undef CURVE
    };
    size_t count = sizeof(curves) / sizeof(curves[0]);
    for (size_t i = 0; i < count; i++) {
        double a = (curves[i].p[1] - curves[i].p[0]) / 0.1, b = (curves[i].p[2] - curves[i].p[1]) / 0.4,
               c = (curves[i].p[3] - curves[i].p[2]) / 0.5;
        assert_true(curves[i].p[0] > 0 && a >= b && b >= c && c > 0 && curves[i].source[0]);
    }
    assert_string_equal(curves[count - 1].pattern, "*");
}

static void put_cpus(unsigned long busy_ticks)
{
    put("/proc/stat",
        "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 %lu 0 0 9 0 0 0 0 0 0\ncpu1 %lu 0 0 9 0 0 0 0 0 0\nintr 1 2 3\n",
        busy_ticks, busy_ticks);
}

static void test_cpu_model_reads_proc(void **state)
{
    (void)state;
    put("/proc/cpuinfo",
        "processor\t: 0\nmodel name\t: AMD EPYC 7763 64-Core Processor\nphysical id\t: 0\nflags\t\t: fpu\n\n"
        "processor\t: 1\nmodel name\t: AMD EPYC 7763 64-Core Processor\nphysical id\t: 1\nflags\t\t: "
        "fpu\n\n");
    put_cpus(1000);
    uint64_t begin_ns = kj_power_now_ns();
    open_power("cpu_model");
    assert_int_equal(channels_count, 2);
    assert_int_equal(channels[0].method, KJ_MODELLED);
    assert_string_equal(channels[0].model, "AMD EPYC 7763 64-Core Processor");
    usleep(50000);
    int64_t idle_uj = reading("package-0"), after_ns = (int64_t)(kj_power_now_ns() - begin_ns);
    assert_true(idle_uj > 0); /* 0.233 of 280 W */
    assert_true((double)idle_uj <= 0.2331 * 280 * (double)after_ns * 1e-3);
    put_cpus(2000); /* ten seconds of work: full load, however short the time */
    usleep(50000);
    int64_t busy_uj = reading("package-0");
    assert_true((double)busy_uj > 280 * 0.1e6 * 0.99);
    put_cpus(2000);
    usleep(2000);
    assert_true(reading("package-0") >= busy_uj);
}

static void test_dram_model(void **state)
{
    (void)state;
    put("/proc/meminfo", "MemTotal:       67108864 kB\nMemFree: 1 kB\n");
    open_power("dram_model");
    assert_int_equal(channels_count, 1);
    assert_int_equal(channels[0].method, KJ_MODELLED);
    assert_true(channels[0].low_factor < 1 && channels[0].high_factor > 1);
    usleep(20000);
    int64_t uj = reading("dram-0"); /* 64 GiB x 0.17 W */
    assert_true(uj >= 10.88 * 20000 && uj < 10.88 * 2000000);
}

static void test_choice(void **state)
{
    (void)state;
    struct kj_channel list[] = {
        {.id = 0,
         .device = "package-0",
         .component = KJ_COMPONENT_CPU,
         .kind = KJ_POWER_MW,
         .method = KJ_MEASURED},
        {.id = 1,
         .device = "package-0",
         .component = KJ_COMPONENT_CPU,
         .kind = KJ_ENERGY_UJ,
         .method = KJ_MEASURED},
        {.id = 2,
         .device = "package-1",
         .component = KJ_COMPONENT_CPU,
         .kind = KJ_ENERGY_UJ,
         .method = KJ_MODELLED},
        {.id = 3,
         .device = "dram-0",
         .component = KJ_COMPONENT_DRAM,
         .kind = KJ_ENERGY_UJ,
         .method = KJ_MODELLED},
        {.id = 4,
         .device = "package-0",
         .component = KJ_COMPONENT_CPU,
         .kind = KJ_ENERGY_UJ,
         .method = KJ_MEASURED},
    };
    uint32_t ids[8];
    assert_int_equal(kj_channels_choose(list, 5, KJ_COMPONENT_CPU, ids, 8), 1);
    assert_int_equal(ids[0], 1);
    assert_int_equal(kj_channels_choose(list, 5, KJ_COMPONENT_DRAM, ids, 8), 1);
    assert_int_equal(ids[0], 3);
    assert_int_equal(kj_channels_choose(list, 5, KJ_COMPONENT_GPU, ids, 8), 0);
}

#define CHANNEL_0                                                                                            \
    "channel,7,nvml,energy_counter,GPU-1,NVIDIA H100\\x2c 80GB,1,1,1,0.05,1,1,0,100000000,by\\x5chand\n"
#define CHANNEL_1 "channel,8,nvml,power_instant,GPU-1,H100,gpu,power_mw,measured,0.05,1,1,25000000,0,\n"
#define CHANNEL_2 "channel,9,proc,tree,tree,,0,3,1,0,1,1,0,0,\n"
#define HEADER    "kjoule.series/1\n"

static int open_replay(const char *text, struct kj_error *error)
{
    char path[PATH_MAX];
    put("/series.000.csv", "%s", text);
    snprintf(path, sizeof(path), "%s/series.000.csv", root);
    struct kj_power_config config = {.replay_file = path};
    int result = kj_power_open(&config, &power, error);
    if (!result) {
        channels_count = kj_power_channels(power, &channels);
        statuses_count = kj_power_statuses(power, &statuses);
    }
    return result;
}

static void test_replay_gives_the_same(void **state)
{
    (void)state;
    static const struct kj_sample expected[] = {
        {0, 1000000, 0},    {1, 1000000, 60000},   {0, 6000000, 900},    {1, 6000000, 410000},
        {0, 9000000, 2400}, {1, 12000000, 350000}, {0, 30000000, 99000},
    };
    struct kj_error error = {0};
    assert_int_equal(open_replay(HEADER CHANNEL_0 CHANNEL_2 CHANNEL_1
                                 "s,7,1000000,0\ns,9,1000000,5\ns,8,1000000,60000\ns,7,6000000,900\n"
                                 "s,8,6000000,410000\nm,7,9000000,30000000,4,2400,2400,7000,99000,99000\n"
                                 "s,8,12000000,350000\nlost,8,13000000,bus\\x2c gone\ns,7,4000",
                                 &error),
                     0);
    assert_int_equal(channels_count, 2);
    assert_string_equal(channels[0].source, "nvml");
    assert_string_equal(channels[0].model, "NVIDIA H100, 80GB");
    assert_string_equal(channels[0].basis, "replayed: by\\hand");
    assert_int_equal(channels[1].kind, KJ_POWER_MW);
    assert_int_equal(channels[1].window_ns, 25000000);
    assert_true(statuses_count == 1 && statuses[0].accepted && !strcmp(statuses[0].name, "replay"));
    struct kj_sample got[16];
    size_t count = 0;
    bool lost[2] = {false, false};
    for (int i = 0; i < 2000 && !(lost[0] && lost[1]); i++) {
        uint32_t channel;
        char reason[160];
        count += kj_power_read(power, got + count, count < 12 ? 3 : 1);
        assert_true(count < 12);
        while (kj_power_lost(power, &channel, reason, sizeof(reason))) {
            assert_non_null(strstr(reason, channel ? "bus, gone" : "ended"));
            lost[channel] = true;
        }
        usleep(500);
    }
    assert_int_equal(count, 7);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(got[i].channel, expected[i].channel);
        assert_int_equal(got[i].value, expected[i].value);
        assert_int_equal(got[i].t_ns - got[0].t_ns, expected[i].t_ns - expected[0].t_ns);
    }
    assert_true(lost[0] && lost[1]);
}

static void test_replay_refuses_the_corrupt(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", "holds no power sample"},
        {"\x7f"
         "ELF\n",
         "line 1"},
        {"kjoule.series/2\n", "line 1"},
        {HEADER, "no power sample"},
        {HEADER CHANNEL_0, "no power sample"},
        {HEADER CHANNEL_2 "s,9,1,1\n", "no power sample"},
        {HEADER "s,7,1,1\n", "line 2"},
        {HEADER CHANNEL_0 CHANNEL_0, "line 3"},
        {HEADER CHANNEL_0 "s,7,1\n", "line 3"},
        {HEADER CHANNEL_0 "s,7,1,-4\n", "line 3"},
        {HEADER CHANNEL_0 "s,7,1,nan\n", "line 3"},
        {HEADER CHANNEL_0 "s,7,1,99999999999999999999999\n", "line 3"},
        {HEADER CHANNEL_0 "s,7,5,5\ns,7,4,6\n", "line 4: time runs backwards"},
        {HEADER CHANNEL_0 "s,7,5,5\ns,7,6,4\n", "line 4: an energy counter runs backwards"},
        {HEADER CHANNEL_0 "m,7,5,4,2,1,1,1,1,1\n", "line 3"},
        {HEADER CHANNEL_0 "s,7,1,1\n\n", "line 4"},
        {HEADER CHANNEL_0 "s,7,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1\n", "line 3"},
        {HEADER "channel,7,nvml,e,GPU-1,,5,1,1,0.05,1,1,0,0,\n", "line 2"},
        {HEADER "channel,7,nvml,e,GPU-1,,1,1,1,nan,1,1,0,0,\n", "line 2"},
        {HEADER "channel,7,nvml,e,GPU-1,,1,1,1,0.05,2,1,0,0,\n", "line 2"},
        {HEADER "channel,7,,e,GPU-1,,1,1,1,0.05,1,1,0,0,\n", "line 2"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kj_error error = {0};
        power = NULL;
        assert_int_equal(open_replay(cases[i].text, &error), -EINVAL);
        assert_non_null(strstr(error.text, "series.000.csv"));
        assert_non_null(strstr(error.text, cases[i].words));
        assert_null(strchr(error.text, '\n'));
    }
    struct kj_power_config config = {.replay_file = "/no/such/file"};
    struct kj_error error = {0};
    assert_int_equal(kj_power_open(&config, &power, &error), -EINVAL);
    assert_non_null(strstr(error.text, "/no/such/file"));
    config.replay_file = root;
    assert_int_equal(kj_power_open(&config, &power, &error), -EINVAL);
    assert_non_null(strstr(error.text, "not a plain file"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_powercap_counts_and_wraps),
        TEST(test_powercap_without_permission),
        TEST(test_sensor_that_falls_silent),
        TEST(test_excluded_device),
        TEST(test_nothing_there),
        TEST(test_cpu_model_curve),
        TEST(test_cpu_curves),
        TEST(test_cpu_model_reads_proc),
        TEST(test_dram_model),
        TEST(test_choice),
        TEST(test_replay_gives_the_same),
        TEST(test_replay_refuses_the_corrupt),
    };
    return cmocka_run_group_tests_name("power", tests, NULL, NULL);
}
