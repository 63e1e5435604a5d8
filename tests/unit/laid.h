/* SPDX-License-Identifier: Apache-2.0
 *
 * laid.h - a tree of /sys and /proc laid for a test, and the sensors that are found in it.
 */
#ifndef KJ_TEST_LAID_H
#define KJ_TEST_LAID_H

#include "power/power.h"
#include "power/source.h"

#include <ftw.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { SAMPLES = 64 };

static char root[64];
static struct kj_power *power;
static const struct kj_channel *channels;
static const struct kj_source_status *statuses;
static size_t channels_count, statuses_count;

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk)
{
    (void)st;
    (void)type;
    (void)walk;
    return remove(path);
}

static int lay_root(void **state)
{
    (void)state;
    snprintf(root, sizeof(root), "/tmp/kj_test_power.XXXXXX");
    if (!mkdtemp(root))
        return -1;
    return chmod(root, 0755);
}

static int clear_root(void **state)
{
    (void)state;
    power = kj_power_close(power);
    return nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* Writes a file of the tree, with its folders, in place: descriptors that are open see the new text. */
__attribute__((format(printf, 2, 3))) static void put(const char *file, const char *format, ...)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s%s", root, file);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    va_list args;
    va_start(args, format);
    vfprintf(out, format, args);
    va_end(args);
    fclose(out);
}

static void open_power(const char *source)
{
    const char *only[] = {source, NULL};
    struct kj_power_config config = {.sysfs_root = root, .only = source ? only : NULL};
    struct kj_error error = {0};
    assert_int_equal(kj_power_open(&config, &power, &error), 0);
    channels_count = kj_power_channels(power, &channels);
    statuses_count = kj_power_statuses(power, &statuses);
    for (size_t i = 0; i < channels_count; i++)
        assert_int_equal(channels[i].id, i);
    for (size_t i = 0; i < statuses_count; i++)
        assert_true(statuses[i].reason[0]);
}

__attribute__((unused)) static const struct kj_channel *channel_of(const char *device)
{
    for (size_t i = 0; i < channels_count; i++)
        if (!strcmp(channels[i].device, device))
            return &channels[i];
    return NULL;
}

/* The reading of a device, or -1 when there was none. */
static int64_t reading_now(const char *device)
{
    struct kj_sample samples[SAMPLES];
    size_t count = kj_power_read(power, samples, SAMPLES);
    for (size_t i = 0; i < count; i++)
        if (!strcmp(channels[samples[i].channel].device, device))
            return (int64_t)samples[i].value;
    return -1;
}

/* A source whose read was slow, on a busy machine, falls due later. */
static int64_t reading(const char *device)
{
    int64_t value = reading_now(device);
    for (int i = 0; i < 200 && value < 0; i++) {
        usleep(10000);
        value = reading_now(device);
    }
    return value;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, lay_root, clear_root)

#endif
