/* SPDX-License-Identifier: Apache-2.0
 *
 * test_meters.c - meters that are asked by more than a read: perf events, management controllers, hwmon.
 */
#include "laid.h"

#include <errno.h>
#include <linux/ipmi.h>

static int perf_pipe[2], perf_error, perf_cpu;
static uint64_t perf_config;

static int fake_perf(struct perf_event_attr *attr, pid_t pid, int cpu)
{
    assert_int_equal(pid, -1);
    assert_int_equal(attr->type, 21);
    perf_cpu = cpu;
    perf_config = attr->config;
    return perf_error ? perf_error : dup(perf_pipe[0]);
}

static void put_pmu(void)
{
    put("/sys/bus/event_source/devices/power/type", "21\n");
    put("/sys/bus/event_source/devices/power/cpumask", "3\n");
    put("/sys/bus/event_source/devices/power/events/energy-pkg", "event=0x02\n");
    put("/sys/bus/event_source/devices/power/events/energy-pkg.scale", "2.3283064365386962890625e-10\n");
    put("/sys/bus/event_source/devices/power/events/energy-pkg.unit", "Joules\n");
    put("/sys/devices/system/cpu/cpu3/topology/physical_package_id", "1\n");
    put("/proc/sys/kernel/perf_event_paranoid", "2\n");
}

static void count(uint64_t value)
{
    assert_int_equal(write(perf_pipe[1], &value, sizeof(value)), sizeof(value));
}

static void test_perf(void **state)
{
    (void)state;
    put_pmu();
    assert_int_equal(pipe(perf_pipe), 0);
    int (*before)(struct perf_event_attr *, pid_t, int) = kj_perf_event_open;
    kj_perf_event_open = fake_perf;
    perf_error = 0;
    count(1000);
    open_power("rapl_perf");
    assert_int_equal(channels_count, 1);
    assert_string_equal(channels[0].device, "package-1");
    assert_int_equal(perf_cpu, 3);
    assert_int_equal(perf_config, 2);
    count(1000 + (5ULL << 32)); /* 5 J by the scale of 2^-32 */
    assert_int_equal(reading("package-1"), 5000000);
    kj_power_close(power);
    perf_error = -EACCES;
    open_power("rapl_perf");
    assert_int_equal(channels_count, 0);
    assert_non_null(strstr(statuses[0].reason, "perf_event_paranoid is 2"));
    assert_non_null(strstr(statuses[0].remedy, "sysctl"));
    kj_perf_event_open = before;
    close(perf_pipe[0]);
    close(perf_pipe[1]);
}

static int core_pipes[4][2], cores_refused;

/* Four cores by CPU number, the package by CPU 0. */
static int fake_cores(struct perf_event_attr *attr, pid_t pid, int cpu)
{
    assert_int_equal(pid, -1);
    if (attr->type == 21)
        return dup(perf_pipe[0]);
    assert_int_equal(attr->type, 22);
    assert_int_equal(attr->config, 1);
    return cores_refused && cpu == cores_refused ? -EMFILE : dup(core_pipes[cpu][0]);
}

static void count_core(int core, uint64_t value)
{
    assert_int_equal(write(core_pipes[core][1], &value, sizeof(value)), sizeof(value));
}

/* AMD: each core has a counter, and they lie within the package. */
static void test_perf_cores(void **state)
{
    (void)state;
    put_pmu();
    put("/sys/bus/event_source/devices/power/cpumask", "0\n");
    put("/sys/bus/event_source/devices/power_core/type", "22\n");
    put("/sys/bus/event_source/devices/power_core/cpumask", "0-3\n");
    put("/sys/bus/event_source/devices/power_core/events/energy-core", "event=0x01\n");
    put("/sys/bus/event_source/devices/power_core/events/energy-core.scale", "1.52587890625e-05\n");
    put("/sys/bus/event_source/devices/power_core/events/energy-core.unit", "Joules\n");
    for (int i = 0; i < 4; i++) {
        char path[96];
        snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/topology/physical_package_id", i);
        put(path, "%d\n", i / 2);
        assert_int_equal(pipe(core_pipes[i]), 0);
        count_core(i, 100);
    }
    assert_int_equal(pipe(perf_pipe), 0);
    int (*before)(struct perf_event_attr *, pid_t, int) = kj_perf_event_open;
    kj_perf_event_open = fake_cores;
    count(7);
    open_power("rapl_perf");
    assert_int_equal(channels_count, 3);
    count(7);
    for (int i = 0; i < 4; i++)
        count_core(i, 100 + 65536 * (uint64_t)(i + 1)); /* 1, 2, 3 and 4 J */
    struct kj_sample samples[8];
    assert_int_equal(kj_power_read(power, samples, 8), 3);
    uint32_t ids[8];
    for (uint32_t i = 0; i < 3; i++)
        if (!strcmp(channels[i].device, "cores-0"))
            assert_int_equal(samples[i].value, 3000000);
        else if (!strcmp(channels[i].device, "cores-1"))
            assert_int_equal(samples[i].value, 7000000);
    assert_int_equal(kj_channels_choose(channels, 3, KJ_COMPONENT_CPU, ids, 8), 1); /* the package alone */
    kj_power_close(power);
    cores_refused = 2; /* one core less is no sum */
    count(7);
    count_core(0, 1), count_core(1, 1), count_core(3, 1);
    open_power("rapl_perf");
    assert_int_equal(channels_count, 1);
    cores_refused = 0;
    kj_perf_event_open = before;
    for (int i = 0; i < 4; i++)
        close(core_pipes[i][0]), close(core_pipes[i][1]);
    close(perf_pipe[0]);
    close(perf_pipe[1]);
}

/* The last CPU of a package is taken offline: its events end, and so does the channel, with a reason. */
static void test_perf_unplugged(void **state)
{
    (void)state;
    put_pmu();
    assert_int_equal(pipe(perf_pipe), 0);
    int (*before)(struct perf_event_attr *, pid_t, int) = kj_perf_event_open;
    kj_perf_event_open = fake_perf;
    perf_error = 0;
    count(1);
    open_power("rapl_perf");
    assert_int_equal(channels_count, 1);
    close(perf_pipe[1]); /* read() gives 0 from now on */
    struct kj_sample samples[4];
    uint32_t lost = 9;
    char reason[160] = "";
    for (int i = 0; i < 3; i++)
        assert_int_equal(kj_power_read(power, samples, 4), 0);
    assert_true(kj_power_lost(power, &lost, reason, sizeof(reason)));
    assert_int_equal(lost, 0);
    assert_non_null(strstr(reason, "package-1"));
    assert_false(kj_power_lost(power, &lost, reason, sizeof(reason)));
    kj_perf_event_open = before;
    close(perf_pipe[0]);
}

static void test_hwmon(void **state)
{
    (void)state;
    put("/sys/class/hwmon/hwmon0/name", "nvme\n");
    put("/sys/class/hwmon/hwmon0/power1_average", "1000000\n");
    put("/sys/class/hwmon/hwmon1/name", "power_meter\n");
    put("/sys/class/hwmon/hwmon1/power1_average", "312000000\n");
    put("/sys/class/hwmon/hwmon2/name", "power_meter\n");
    put("/sys/class/hwmon/hwmon2/power1_oem_info", "CPU Power Socket 1\n");
    put("/sys/class/hwmon/hwmon2/power1_average", "90000000\n");
    put("/sys/class/hwmon/hwmon3/name", "power_meter\n");
    put("/sys/class/hwmon/hwmon3/power1_oem_info", "Grace Power Socket 1\n");
    put("/sys/class/hwmon/hwmon3/power1_average", "95000000\n");
    open_power("hwmon");
    assert_int_equal(channels_count, 2);
    assert_int_equal(reading("node"), 312000);
    assert_int_equal(reading("package-1"), 90000);
}

static unsigned char bmc_answer[32];
static int bmc_bytes, bmc_late; /* how many receives find nothing */
static long bmc_id;
static unsigned bmc_asked;

static int fake_ipmi(int fd, unsigned long request, void *argument)
{
    (void)fd;
    if (request == IPMICTL_SEND_COMMAND) {
        const struct ipmi_req *asked = argument;
        const unsigned char wanted[] = {0xdc, 0x01, 0, 0};
        assert_int_equal(asked->msg.netfn, 0x2c);
        assert_int_equal(asked->msg.cmd, 0x02);
        assert_int_equal(asked->msg.data_len, sizeof(wanted));
        assert_memory_equal(asked->msg.data, wanted, sizeof(wanted));
        bmc_id = asked->msgid;
        bmc_asked++;
        return 0;
    }
    assert_true(request == IPMICTL_RECEIVE_MSG_TRUNC);
    struct ipmi_recv *answer = argument;
    if (!bmc_id || bmc_late-- > 0)
        return -EAGAIN;
    answer->recv_type = IPMI_RESPONSE_RECV_TYPE;
    answer->msgid = bmc_id;
    bmc_id = 0;
    answer->msg.netfn = 0x2d;
    answer->msg.cmd = 0x02;
    answer->msg.data_len = (unsigned short)bmc_bytes;
    memcpy(answer->msg.data, bmc_answer, (size_t)bmc_bytes);
    return 0;
}

static void set_bmc(unsigned code, unsigned watts, unsigned state)
{
    memset(bmc_answer, 0, sizeof(bmc_answer));
    bmc_answer[0] = (unsigned char)code;
    bmc_answer[1] = 0xdc;
    bmc_answer[2] = (unsigned char)watts;
    bmc_answer[3] = (unsigned char)(watts >> 8);
    bmc_answer[18] = (unsigned char)state;
    bmc_bytes = code ? 1 : 19;
}

static void test_dcmi(void **state)
{
    (void)state;
    int (*before)(int, unsigned long, void *) = kj_ipmi_ioctl;
    kj_ipmi_ioctl = fake_ipmi;
    open_power("dcmi");
    assert_int_equal(channels_count, 0);
    assert_non_null(strstr(statuses[0].reason, "no IPMI device"));
    kj_power_close(power);
    put("/dev/ipmi0", "%s", "");
    static const struct {
        unsigned code, watts, state;
        const char *reason;
    } refused[] = {
        {0xc1, 0, 0, "no power reading"}, {0, 300, 0, "no power reading"}, {0, 0, 0x40, "no power reading"}};
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        set_bmc(refused[i].code, refused[i].watts, refused[i].state);
        open_power("dcmi");
        assert_int_equal(channels_count, 0);
        assert_non_null(strstr(statuses[0].reason, refused[i].reason));
        kj_power_close(power);
    }
    set_bmc(0, 1000, 0x40);
    bmc_late = 3;
    open_power("dcmi");
    assert_int_equal(channels_count, 1);
    assert_int_equal(channels[0].component, KJ_COMPONENT_NODE);
    assert_int_equal(reading("node"), 1000000);
    set_bmc(0, 1200, 0x40);
    unsigned asked = bmc_asked;
    for (int i = 0; i < 10; i++)
        assert_int_equal(reading("node"), 1000000); /* not asked more than twice a second */
    assert_int_equal(bmc_asked, asked);
    usleep(520000);
    bmc_late = 1;
    assert_int_equal(reading("node"), 1000000); /* asked, and not waited for */
    assert_int_equal(reading("node"), 1000000);
    assert_int_equal(reading("node"), 1200000);
    kj_ipmi_ioctl = before;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_perf), TEST(test_perf_cores), TEST(test_perf_unplugged), TEST(test_hwmon), TEST(test_dcmi),
    };
    return cmocka_run_group_tests_name("meters", tests, NULL, NULL);
}
