/* SPDX-License-Identifier: Apache-2.0
 *
 * folder.c - the run folder and its run.json. One table of fields serves the writer and the reader.
 */
#include "folder/folder.h"

#include "base/file.h"
#include "ledger.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SCHEMA_PREFIX  "kjoule.run/"
#define SCHEMA_VERSION 1
#define RUN_FILE_MAX   (16u << 20)

enum kind { TEXT, I32, U32, U64, REAL, BOOL };

static const struct field {
    const char *name;
    enum kind kind;
    size_t offset;
} fields[] = {
#define F(name, kind)                                                                                        \
    {                                                                                                        \
#name, kind, offsetof(struct kj_run_info, name)                                                      \
    }
    F(run_id, TEXT),
    F(version, TEXT),
    F(command_line, TEXT),
    F(cwd, TEXT),
    F(host, TEXT),
    F(os, TEXT),
    F(container, TEXT),
    F(virtual_machine, TEXT),
    F(wrapped, BOOL),
    F(root_pid, I32),
    F(start_mono_ns, U64),
    F(start_wall_ns, U64),
    F(end_mono_ns, U64),
    F(exited, BOOL),
    F(exit_status, I32),
    F(exit_signal, I32),
    F(job_kind, TEXT),
    F(job_id, TEXT),
    F(rank, I32),
    F(local_rank, I32),
    F(world_size, I32),
    F(cores_online, U32),
    F(cores_allowed, U32),
    F(cgroup_cpu_quota, REAL),
    F(memory_bytes, U64),
    F(tree_cpu_ns, U64),
    F(processes_seen, U32),
    F(static_or_setuid, BOOL),
    F(blind_reason, TEXT),
    F(zone, TEXT),
    F(carbon_intensity_g_per_kwh, REAL),
    F(pue, REAL),
    F(idle_rule, I32),
    F(place_zone, TEXT),
    F(place_method, TEXT),
    F(place_evidence, TEXT),
    F(place_confidence, I32),
    F(place_is_default, BOOL),
#undef F
};
#define FIELDS (sizeof(fields) / sizeof(*fields))

/* A host name, a path or an argument may hold any bytes, JSON only UTF-8: others become '?'. */
static json_t *json_text(const char *text)
{
    if (!text)
        return json_null();
    json_t *value = json_string(text);
    if (value)
        return value;
    char *copy = strdup(text);
    for (char *p = copy; p && *p; p++)
        if (*p & 0x80)
            *p = '?';
    value = copy ? json_string(copy) : NULL;
    free(copy);
    return value ? value : json_null();
}

char **kj_strings_free(char **strings)
{
    for (char **s = strings; s && *s; s++)
        free(*s);
    free(strings);
    return NULL;
}

void kj_run_info_clear(struct kj_run_info *info)
{
    for (size_t i = 0; i < FIELDS; i++)
        if (fields[i].kind == TEXT)
            free(*(char **)((char *)info + fields[i].offset));
    kj_strings_free(info->argv);
    for (size_t i = 0; i < info->sources_count; i++) {
        free(info->sources[i].name);
        free(info->sources[i].reason);
        free(info->sources[i].remedy);
    }
    free(info->sources);
    for (size_t i = 0; i < info->devices_count; i++) {
        free(info->devices[i].device);
        free(info->devices[i].owner);
    }
    free(info->devices);
    for (size_t i = 0; i < info->warnings_count; i++)
        free(info->warnings[i]);
    free(info->warnings);
    for (size_t i = 0; i < info->per_count; i++)
        free(info->per[i].name);
    free(info->per);
    memset(info, 0, sizeof(*info));
}

/* Expands %i %h %p %r %% of the template. */
static char *expand(const char *template_path, const char *run_id)
{
    char host[65] = "", *out = NULL;
    size_t size = 0;
    gethostname(host, sizeof(host) - 1);
    const char *dash = strrchr(run_id, '-');
    const char *rank = getenv("RANK");
    if (!rank || !*rank)
        rank = getenv("SLURM_PROCID");
    FILE *stream = open_memstream(&out, &size);
    if (!stream)
        return NULL;
    for (const char *p = template_path; *p; p++) {
        if (*p != '%') {
            fputc(*p, stream);
            continue;
        }
        p++;
        const char *value = *p == 'i'   ? run_id
                            : *p == 'h' ? host
                            : *p == 'p' ? (dash ? dash + 1 : "")
                            : *p == 'r' ? (rank && *rank ? rank : "0")
                            : *p == '%' ? "%"
                                        : NULL;
        if (value)
            fputs(value, stream);
        else
            fprintf(stream, *p ? "%%%c" : "%%", *p);
        if (!*p)
            break;
    }
    return fclose(stream) ? (free(out), NULL) : out;
}

static bool is_empty(int dir_fd)
{
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    bool empty = dir != NULL;
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            empty = false;
    if (dir)
        closedir(dir);
    return empty;
}

int kj_folder_create(const char *template_path, const char *run_id, char **ret_path, struct kj_error *error)
{
    char *path = expand(template_path && *template_path ? template_path : "kjoule.%i", run_id);
    if (!path)
        return -ENOMEM;
    int status = mkdir(path, 0700) == 0 || errno == EEXIST ? 0 : -errno;
    int fd = status ? status : open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (!status && fd < 0)
        status = fd = -errno;
    if (status) {
        kj_error_set(error, "cannot make the run folder %s: %s; choose another with -o DIR", path,
                     strerror(-status));
    } else if (!is_empty(fd)) {
        kj_error_set(error, "the run folder %s is there already and not empty; choose another with -o DIR",
                     path);
        status = -EEXIST;
    } else if (fchmod(fd, 0700) || faccessat(fd, ".", W_OK, AT_EACCESS)) {
        status = -errno;
        kj_error_set(error, "cannot write in the run folder %s: %s; choose another with -o DIR", path,
                     strerror(-status));
    }
    char *absolute = status ? NULL : realpath(path, NULL);
    free(path);
    if (!status && !absolute)
        status = -errno;
    if (status) {
        if (fd >= 0)
            close(fd);
        return status;
    }
    *ret_path = absolute;
    return fd;
}

int kj_folder_open(const char *path, struct kj_error *error)
{
    char *trimmed = strdup(path);
    if (!trimmed)
        return -ENOMEM;
    for (size_t n = strlen(trimmed); n > 1 && trimmed[n - 1] == '/'; n--)
        trimmed[n - 1] = 0; /* a slash at the end would follow a link */
    int fd = open(trimmed, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int status = fd < 0 ? -errno : fd;
    free(trimmed);
    struct stat st;
    if (status < 0)
        kj_error_set(error, "%s: %s; give the kjoule.<run-id> folder that a run left", path,
                     strerror(-status));
    else if (fstatat(fd, KJ_RUN_FILE, &st, AT_SYMLINK_NOFOLLOW)) {
        kj_error_set(
            error,
            "%s: not a run folder, there is no %s in it; give the kjoule.<run-id> folder that a run left",
            path, KJ_RUN_FILE);
        close(fd);
        status = -ENOENT;
    }
    return status;
}

static json_t *lists_to_json(json_t *root, const struct kj_run_info *info)
{
    json_t *argv = json_array(), *sources = json_array(), *devices = json_array(), *warnings = json_array(),
           *per = json_array();
    for (char **a = info->argv; a && *a; a++)
        json_array_append_new(argv, json_text(*a));
    for (size_t i = 0; i < info->sources_count; i++) {
        const struct kj_run_source *s = &info->sources[i];
        json_array_append_new(sources, json_pack("{s:o,s:b,s:o,s:o}", "name", json_text(s->name), "accepted",
                                                 s->accepted, "reason", json_text(s->reason), "remedy",
                                                 json_text(s->remedy)));
    }
    for (size_t i = 0; i < info->devices_count; i++)
        json_array_append_new(
            devices, json_pack("{s:o,s:b,s:o}", "device", json_text(info->devices[i].device), "owned",
                               info->devices[i].owned, "owner", json_text(info->devices[i].owner)));
    for (size_t i = 0; i < info->warnings_count; i++)
        json_array_append_new(warnings, json_text(info->warnings[i]));
    for (size_t i = 0; i < info->per_count; i++)
        json_array_append_new(
            per, json_pack("{s:o,s:f}", "name", json_text(info->per[i].name), "count", info->per[i].count));
    json_object_set_new(root, "argv", argv);
    json_object_set_new(root, "sources", sources);
    json_object_set_new(root, "devices", devices);
    json_object_set_new(root, "warnings", warnings);
    json_object_set_new(root, "per", per);
    return root;
}

int kj_folder_write_run(int dir_fd, const struct kj_run_info *info)
{
    json_t *root = json_object();
    json_object_set_new(root, "schema", json_sprintf(SCHEMA_PREFIX "%d", SCHEMA_VERSION));
    for (size_t i = 0; i < FIELDS; i++) {
        const void *at = (const char *)info + fields[i].offset;
        json_t *value = NULL;
        switch (fields[i].kind) {
        case TEXT:
            value = json_text(*(char *const *)at);
            break;
        case I32:
            value = json_integer(*(const int32_t *)at);
            break;
        case U32:
            value = json_integer(*(const uint32_t *)at);
            break;
        case U64:
            value = json_integer((json_int_t) * (const uint64_t *)at);
            break;
        case REAL:
            value = json_real(*(const double *)at);
            break;
        case BOOL:
            value = json_boolean(*(const bool *)at);
            break;
        }
        json_object_set_new(root, fields[i].name, value);
    }
    char *text = json_dumps(lists_to_json(root, info), JSON_INDENT(1));
    json_decref(root);
    int status = text ? kj_file_replace(dir_fd, KJ_RUN_FILE, text, strlen(text)) : -ENOMEM;
    free(text);
    return status;
}

static char *copy_text(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? strdup(text) : NULL;
}

static void read_fields(const json_t *root, struct kj_run_info *info)
{
    for (size_t i = 0; i < FIELDS; i++) {
        void *at = (char *)info + fields[i].offset;
        const json_t *value = json_object_get(root, fields[i].name);
        switch (fields[i].kind) {
        case TEXT:
            *(char **)at = copy_text(root, fields[i].name);
            break;
        case I32:
            *(int32_t *)at = (int32_t)json_integer_value(value);
            break;
        case U32:
            *(uint32_t *)at = (uint32_t)json_integer_value(value);
            break;
        case U64:
            *(uint64_t *)at = (uint64_t)json_integer_value(value);
            break;
        case REAL:
            *(double *)at = json_number_value(value);
            break;
        case BOOL:
            *(bool *)at = json_is_true(value);
            break;
        }
    }
}

static void read_lists(const json_t *root, struct kj_run_info *info)
{
    const json_t *argv = json_object_get(root, "argv"), *sources = json_object_get(root, "sources"),
                 *devices = json_object_get(root, "devices"), *warnings = json_object_get(root, "warnings"),
                 *per = json_object_get(root, "per");
    info->argv = calloc(json_array_size(argv) + 1, sizeof(*info->argv));
    for (size_t i = 0; info->argv && i < json_array_size(argv); i++) {
        const char *word = json_string_value(json_array_get(argv, i));
        info->argv[i] = strdup(word ? word : "");
    }
    info->sources = calloc(json_array_size(sources) + 1, sizeof(*info->sources));
    for (size_t i = 0; info->sources && i < json_array_size(sources); i++, info->sources_count++) {
        const json_t *row = json_array_get(sources, i);
        info->sources[i] =
            (struct kj_run_source){copy_text(row, "name"), json_is_true(json_object_get(row, "accepted")),
                                   copy_text(row, "reason"), copy_text(row, "remedy")};
    }
    info->devices = calloc(json_array_size(devices) + 1, sizeof(*info->devices));
    for (size_t i = 0; info->devices && i < json_array_size(devices); i++, info->devices_count++) {
        const json_t *row = json_array_get(devices, i);
        info->devices[i] = (struct kj_run_device){
            copy_text(row, "device"), json_is_true(json_object_get(row, "owned")), copy_text(row, "owner")};
    }
    info->warnings = calloc(json_array_size(warnings) + 1, sizeof(*info->warnings));
    for (size_t i = 0; info->warnings && i < json_array_size(warnings); i++) {
        const char *text = json_string_value(json_array_get(warnings, i));
        info->warnings[info->warnings_count++] = strdup(text ? text : "");
    }
    info->per = calloc(json_array_size(per) + 1, sizeof(*info->per));
    for (size_t i = 0; info->per && i < json_array_size(per); i++, info->per_count++) {
        const json_t *row = json_array_get(per, i);
        info->per[i] =
            (struct kj_run_per){copy_text(row, "name"), json_number_value(json_object_get(row, "count"))};
    }
}

int kj_folder_read_run(int dir_fd, struct kj_run_info *ret_info, struct kj_error *error)
{
    char *text;
    size_t size;
    memset(ret_info, 0, sizeof(*ret_info));
    int status = kj_file_read(dir_fd, KJ_RUN_FILE, RUN_FILE_MAX, &text, &size);
    if (status) {
        kj_error_set(error, KJ_RUN_FILE " cannot be read: %s", strerror(-status));
        return status == -ENOENT ? status : -EPROTO;
    }
    json_error_t where;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &where);
    free(text);
    const char *schema = json_string_value(json_object_get(root, "schema"));
    if (!schema || strncmp(schema, SCHEMA_PREFIX, strlen(SCHEMA_PREFIX))) {
        kj_error_set(error, KJ_RUN_FILE " is broken (%s); nothing can be said of this run",
                     root ? "no schema" : where.text);
        json_decref(root);
        return -EPROTO;
    }
    if (atoi(schema + strlen(SCHEMA_PREFIX)) != SCHEMA_VERSION) {
        kj_error_set(error,
                     KJ_RUN_FILE " is of a newer version (%s); use the kjoule that wrote it, or a newer one",
                     schema);
        json_decref(root);
        return -ENOTSUP;
    }
    read_fields(root, ret_info);
    read_lists(root, ret_info);
    json_decref(root);
    if (!ret_info->run_id || !ret_info->start_mono_ns) {
        kj_error_set(error,
                     KJ_RUN_FILE " is broken (no run id or start time); nothing can be said of this run");
        kj_run_info_clear(ret_info);
        return -EPROTO;
    }
    return 0;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int kj_folder_list_ledgers(int dir_fd, char ***ret_names, size_t *ret_count)
{
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir)
        return -errno;
    size_t count = 0, cap = 0;
    char **names = calloc(1, sizeof(*names));
    for (struct dirent *entry; names && (entry = readdir(dir));) {
        if (strncmp(entry->d_name, KJ_LEDGER_PREFIX, strlen(KJ_LEDGER_PREFIX)))
            continue;
        if (count + 1 >= cap) {
            cap = cap ? cap * 2 : 16;
            char **larger = realloc(names, cap * sizeof(*names));
            if (!larger)
                break;
            names = larger;
        }
        if ((names[count] = strdup(entry->d_name)))
            names[++count] = NULL;
    }
    closedir(dir);
    if (!names)
        return -ENOMEM;
    qsort(names, count, sizeof(*names), compare_names);
    *ret_names = names;
    *ret_count = count;
    return 0;
}
