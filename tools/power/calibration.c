/* SPDX-License-Identifier: Apache-2.0
 *
 * calibration.c - the results of `kjoule calibrate` as JSON in the user's cache, and from there onto
 * channels.
 */
#include "power/calibration.h"

#include "base/file.h"
#include "power/source.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SCHEMA   "kjoule.sensor/1"
#define FILE_MAX (256u << 10)

/* ---- JSON */

static json_t *range_json(const struct kj_range *range)
{
    return json_pack("{s:f,s:f,s:f}", "value", range->value, "low", range->low, "high", range->high);
}

static json_t *sensor_json(const struct kj_calibrated_sensor *sensor)
{
    const struct kj_wave_shape *shape = &sensor->shape;
    json_t *row =
        json_pack("{s:s,s:s,s:s,s:o,s:o,s:o,s:o,s:o,s:f,s:f,s:I}", "channel", sensor->name, "kind",
                  sensor->counter ? "energy_uj" : "power_mw", "kernel", kj_sensor_kernel_name(shape->kernel),
                  "window_ns", range_json(&shape->window_ns), "period_ns", range_json(&shape->period_ns),
                  "delay_ns", range_json(&shape->delay_ns), "on_mw", range_json(&shape->on_mw), "off_mw",
                  range_json(&shape->off_mw), "noise_mw", shape->noise_mw, "unexplained", shape->unexplained,
                  "updates", (json_int_t)shape->updates);
    if (row && sensor->counter) {
        json_object_set_new(row, "sub_sampled", json_boolean(shape->sub_sampled));
        json_object_set_new(row, "wander", json_real(shape->wander));
    }
    return row;
}

char *kj_calibration_text(const struct kj_calibration *c)
{
    json_t *sensors = json_array();
    for (size_t i = 0; i < c->count; i++)
        json_array_append_new(sensors, sensor_json(&c->sensors[i]));
    json_t *gain = c->gain > 0 ? json_pack("{s:f,s:f}", "value", c->gain, "sd", c->gain_sd) : json_null();
    json_t *root = json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:o,s:o,s:o,s:f,s:o}", "schema", SCHEMA, "version",
                             KJ_VERSION, "uuid", c->uuid, "model", c->model, "driver", c->driver, "date",
                             c->date, "gain", gain, "steady_on_mw", range_json(&c->steady_on_mw),
                             "steady_off_mw", range_json(&c->steady_off_mw), "interval_coverage",
                             KJ_INTERVAL_COVERAGE, "sensors", sensors);
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    return text;
}

static bool number(const json_t *value, double low, double high, double *ret_number)
{
    *ret_number = json_number_value(value);
    return json_is_number(value) && isfinite(*ret_number) && *ret_number >= low && *ret_number <= high;
}

static bool take_range(const json_t *object, const char *key, double most, struct kj_range *ret_range)
{
    const json_t *range = json_object_get(object, key);
    return number(json_object_get(range, "value"), -most, most, &ret_range->value) &&
           number(json_object_get(range, "low"), -most, ret_range->value, &ret_range->low) &&
           number(json_object_get(range, "high"), ret_range->value, most, &ret_range->high);
}

static bool take_text(const json_t *object, const char *key, char *ret_text, size_t size)
{
    const char *text = json_string_value(json_object_get(object, key));
    if (!text || strlen(text) >= size)
        return false;
    kj_text(ret_text, size, "%s", text);
    return true;
}

static bool take_sensor(const json_t *row, struct kj_calibrated_sensor *ret_sensor)
{
    struct kj_wave_shape *shape = &ret_sensor->shape;
    char kind[16], kernel[16];
    if (!take_text(row, "channel", ret_sensor->name, sizeof(ret_sensor->name)) ||
        !take_text(row, "kind", kind, sizeof(kind)) || !take_text(row, "kernel", kernel, sizeof(kernel)))
        return false;
    ret_sensor->counter = !strcmp(kind, "energy_uj");
    shape->kernel = strcmp(kernel, kj_sensor_kernel_name(KJ_SENSOR_LAG)) ? KJ_SENSOR_BOX : KJ_SENSOR_LAG;
    shape->sub_sampled = json_is_true(json_object_get(row, "sub_sampled"));
    shape->updates = (size_t)json_integer_value(json_object_get(row, "updates"));
    return (ret_sensor->counter || !strcmp(kind, "power_mw")) &&
           (shape->kernel == KJ_SENSOR_LAG || !strcmp(kernel, kj_sensor_kernel_name(KJ_SENSOR_BOX))) &&
           take_range(row, "window_ns", 10e9, &shape->window_ns) && shape->window_ns.value >= 0 &&
           (ret_sensor->counter ? shape->sub_sampled == (shape->window_ns.value > 0)
                                : shape->window_ns.value > 0) &&
           take_range(row, "period_ns", 10e9, &shape->period_ns) && shape->period_ns.value >= 0 &&
           take_range(row, "delay_ns", 10e9, &shape->delay_ns) && shape->delay_ns.value >= 0 &&
           take_range(row, "on_mw", 1e7, &shape->on_mw) && take_range(row, "off_mw", 1e7, &shape->off_mw) &&
           number(json_object_get(row, "noise_mw"), 0, 1e7, &shape->noise_mw);
}

/* What is wrong with it; NULL: nothing. */
static const char *take(const json_t *root, struct kj_calibration *c)
{
    char schema[32];
    const json_t *gain = json_object_get(root, "gain"), *sensors = json_object_get(root, "sensors");
    if (!take_text(root, "schema", schema, sizeof(schema)) || strcmp(schema, SCHEMA))
        return "not " SCHEMA;
    if (!take_text(root, "uuid", c->uuid, sizeof(c->uuid)) ||
        !take_text(root, "driver", c->driver, sizeof(c->driver)) ||
        !take_text(root, "model", c->model, sizeof(c->model)) ||
        !take_text(root, "date", c->date, sizeof(c->date)))
        return "uuid, driver, model or date is missing";
    if (!json_is_null(gain) && (!number(json_object_get(gain, "value"), 0.3, 3, &c->gain) ||
                                !number(json_object_get(gain, "sd"), 0, 0.5, &c->gain_sd)))
        return "gain is no {value, sd}";
    if (!take_range(root, "steady_on_mw", 1e7, &c->steady_on_mw) ||
        !take_range(root, "steady_off_mw", 1e7, &c->steady_off_mw))
        return "a steady power is no {value, low, high}";
    if (!json_is_array(sensors) || json_array_size(sensors) > sizeof(c->sensors) / sizeof(c->sensors[0]))
        return "sensors is no list of a few";
    for (size_t i = 0; i < json_array_size(sensors); i++)
        if (!take_sensor(json_array_get(sensors, i), &c->sensors[c->count++]))
            return "a sensor's shape is incomplete or out of range";
    return NULL;
}

int kj_calibration_parse(const char *text, struct kj_calibration *ret_calibration, struct kj_error *error)
{
    struct kj_calibration c = {0};
    json_error_t mistake;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &mistake);
    const char *why = root ? take(root, &c) : NULL;
    if (!root)
        kj_error_set(error, "line %d: no JSON", mistake.line);
    else if (why)
        kj_error_set(error, "%s", why);
    json_decref(root);
    if (!root || why)
        return -EINVAL;
    *ret_calibration = c;
    return 0;
}

/* ---- the cache */

/* Opens the cache's folder, or makes it. ret_path: its name. -ENOENT: there is none. */
static int open_folder(bool make, char *ret_path, size_t size)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char base[PATH_MAX];
    if (cache && cache[0] == '/')
        kj_text(base, sizeof(base), "%s", cache);
    else if (home && home[0] == '/')
        kj_text(base, sizeof(base), "%s/.cache", home);
    else
        return -ENOENT; /* nowhere that is surely the user's own */
    kj_text(ret_path, size, "%s/kjoule", base);
    if (make && mkdir(base, 0700) && errno != EEXIST)
        return -errno;
    if (make && mkdir(ret_path, 0700) && errno != EEXIST)
        return -errno;
    int fd = open(ret_path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* Nobody but the user and root can have put it there. */
static const char *distrust(int fd)
{
    struct stat st;
    if (fstat(fd, &st))
        return "cannot be looked at";
    if (st.st_uid != geteuid() && st.st_uid != 0)
        return "belongs to another user";
    return st.st_mode & (S_IWGRP | S_IWOTH) ? "can be written by others" : NULL;
}

/* Letters of a UUID and a version are harmless; whatever else there should be is not. */
static void file_name(const char *uuid, const char *driver, char *ret_name, size_t size)
{
    kj_text(ret_name, size, "sensor-%.60s-%.60s.json", uuid, driver);
    for (char *p = ret_name; *p; p++)
        if (!isalnum((unsigned char)*p) && *p != '-' && *p != '.')
            *p = '_';
}

static int read_trusted(int dir_fd, const char *name, char **ret_text, const char **ret_why)
{
    int fd = kj_file_open_read(dir_fd, name);
    *ret_why = fd == -ELOOP ? "is a symbolic link" : fd == -EINVAL ? "is no plain file" : NULL;
    if (fd < 0)
        return fd;
    *ret_why = distrust(dir_fd);
    if (!*ret_why)
        *ret_why = distrust(fd);
    if (*ret_why) {
        close(fd);
        return -EPERM;
    }
    size_t size;
    int status = kj_file_read_close(fd, FILE_MAX, ret_text, &size);
    if (!status && strlen(*ret_text) != size) {
        *ret_why = "holds zero bytes";
        status = -EINVAL;
    }
    return status;
}

int kj_calibration_load(const char *uuid, const char *driver, struct kj_calibration *ret_calibration,
                        struct kj_error *error)
{
    char path[PATH_MAX], name[160], *text = NULL;
    const char *why = NULL;
    struct kj_error mistake = {0};
    int dir_fd = open_folder(false, path, sizeof(path));
    if (dir_fd == -ENOENT)
        return -ENOENT;
    file_name(uuid, driver, name, sizeof(name));
    int status = dir_fd < 0 ? dir_fd : read_trusted(dir_fd, name, &text, &why);
    if (!status) {
        status = kj_calibration_parse(text, ret_calibration, &mistake);
        why = mistake.text;
        if (!status && (strcmp(ret_calibration->uuid, uuid) || strcmp(ret_calibration->driver, driver))) {
            status = -EINVAL;
            why = "is of another board or driver";
        }
    }
    if (dir_fd >= 0)
        close(dir_fd);
    free(text);
    if (status && status != -ENOENT) {
        size_t length = strlen(path); /* its end says more than its beginning */
        kj_error_set(error, "calibration not used: %s/%s: %.60s; `kjoule calibrate` makes it anew",
                     length > 40 ? path + length - 40 : path, name, why ? why : strerror(-status));
    }
    return status;
}

int kj_calibration_save(const struct kj_calibration *calibration, char *ret_path, size_t size,
                        struct kj_error *error)
{
    char path[PATH_MAX] = "~/.cache/kjoule", name[160], *text = kj_calibration_text(calibration);
    const char *why = NULL;
    file_name(calibration->uuid, calibration->driver, name, sizeof(name));
    int dir_fd = open_folder(true, path, sizeof(path)), status = dir_fd < 0 ? dir_fd : text ? 0 : -ENOMEM;
    if (!status && (why = distrust(dir_fd)))
        status = -EPERM;
    if (!status)
        status = kj_file_replace(dir_fd, name, text, strlen(text));
    if (status)
        kj_error_set(error, "%s: %s; set XDG_CACHE_HOME to a folder of your own", path,
                     why ? why : strerror(-status));
    kj_text(ret_path, size, "%s/%s", path, name);
    if (dir_fd >= 0)
        close(dir_fd);
    free(text);
    return status;
}

/* ---- onto a channel */

static uint64_t whole_ns(double ns)
{
    return (uint64_t)llround(ns);
}

void kj_calibration_apply(const struct kj_calibration *calibration, struct kj_channel *channel)
{
    char gain[64];
    if (calibration->gain > 0) {
        channel->gain = calibration->gain;
        channel->gain_mean = 1;
        channel->gain_sd = calibration->gain_sd / calibration->gain;
        kj_text(gain, sizeof(gain), "gain %.3f +- %.3f (1 sigma) by the user's own meter", calibration->gain,
                calibration->gain_sd);
    } else {
        kj_text(gain, sizeof(gain), "gain %.2f +- %.2f (1 sigma) of boards of its kind", channel->gain_mean,
                channel->gain_sd);
    }
    const struct kj_calibrated_sensor *sensor = NULL;
    for (size_t i = 0; i < calibration->count; i++)
        if (!strcmp(calibration->sensors[i].name, channel->name) &&
            calibration->sensors[i].counter == (channel->kind == KJ_ENERGY_UJ))
            sensor = &calibration->sensors[i];
    if (sensor) {
        const struct kj_wave_shape *shape = &sensor->shape;
        channel->shape = KJ_ORIGIN_CALIBRATED;
        channel->kernel = shape->kernel;
        channel->window_ns = whole_ns(shape->window_ns.value);
        channel->period_ns = whole_ns(shape->period_ns.value);
        channel->delay_ns = whole_ns(shape->delay_ns.value);
        /* The wider side: a delay of next to nothing has none below it. */
        const struct kj_range *delay = &shape->delay_ns;
        channel->delay_sd_ns = fmax(delay->high - delay->value, delay->value - delay->low) / KJ_Z90;
        channel->noise_mw = sensor->counter ? 0 : shape->noise_mw;
        kj_text(channel->basis, sizeof(channel->basis),
                "shape measured on this board by kjoule calibrate, %.10s; %s", calibration->date, gain);
    } else if (calibration->gain > 0) {
        kj_text(channel->basis, sizeof(channel->basis), "%s; shape %s", gain,
                kj_shape_origin_name(channel->shape));
    }
}
