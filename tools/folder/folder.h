/* SPDX-License-Identifier: Apache-2.0
 *
 * folder.h - the run folder, the one thing that outlives everybody:
 *
 *     kjoule.<run-id>/            0700
 *       run.json                  what ran where and how; written at the start, replaced at the end
 * ("kjoule.run/1") series.<nnn>.csv          sampled power and CPU time           series.h
 *       ledger.<pid>.<ticks>      one per process, written by the shim  ledgers.h, shim/ledger.h
 *       intervals.<pid>.<ticks>   drained from the ledger's ring
 *       rests.<pid>.<ticks>       when the process had nothing left to run, as the recorder saw by its ledger
 *       report.json               the answer, recomputable from the above at any time
 *
 * Run id: <yyyymmdd>-<hhmmss>-<host>-<pid>, in UTC. Output templates expand %h host, %p pid, %r rank, %%
 * percent.
 */
#ifndef KJ_FOLDER_H
#define KJ_FOLDER_H

#include "base/log.h"
#include "power/power.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KJ_RUN_FILE    "run.json"
#define KJ_REPORT_FILE "report.json"

/* Whose the idle energy of a CPU package is (--idle-share). */
enum kj_idle_rule {
    KJ_IDLE_AUTO,  /* by cores where some are reserved for the run, by CPU time elsewhere */
    KJ_IDLE_CORES, /* by the cores, or the quota, that it may use */
    KJ_IDLE_CPU,   /* by CPU time */
    KJ_IDLE_ALL,
    KJ_IDLE_NONE,
};

/* What run.json holds. Strings are owned by the struct; NULL is unknown. */
struct kj_run_info {
    char *run_id, *version, *command_line, *cwd, *host, *os;
    char *container;       /* its kind: "docker", "kubernetes", ...; NULL: none that shows */
    char *virtual_machine; /* the hypervisor's maker, or "yes"; NULL: none that shows */
    char **argv;           /* NULL-terminated */
    bool wrapped;          /* by `kjoule run`; false: bare LD_PRELOAD */
    int32_t root_pid;
    uint64_t start_mono_ns, start_wall_ns;
    uint64_t end_mono_ns; /* 0: the recorder did not live to see the end */
    bool exited;
    int32_t exit_status;     /* as a shell's: 128+n on signal n */
    int32_t exit_signal;     /* 0 none */
    char *job_kind, *job_id; /* "slurm" "torchelastic" "kjoule"; what ownership was elected within */
    int32_t rank, local_rank, world_size; /* -1 unknown */
    uint32_t cores_online, cores_allowed;
    double cgroup_cpu_quota; /* cores, 0 none */
    uint64_t memory_bytes;
    uint64_t tree_cpu_ns; /* rusage of the reaped root and its waited-for descendants, at the end */
    uint32_t processes_seen;
    bool static_or_setuid; /* the shim could not be loaded into the command; why in blind_reason */
    char *blind_reason;
    struct kj_run_source {
        char *name;
        bool accepted;
        char *reason, *remedy;
    } * sources;
    size_t sources_count;
    struct kj_run_device {
        char *device;
        bool owned;
        char *owner;
    } * devices;
    size_t devices_count; /* owner: run id of who counts it */
    char **warnings;
    size_t warnings_count;
    /* Where the run was (carbon.h's struct kj_location), found when and where it ran. */
    char *place_zone, *place_method, *place_evidence; /* zone: a code, or "provider:region" */
    int32_t place_confidence;
    bool place_is_default;
    /* options that change the sum, as given: */
    char *zone;
    double carbon_intensity_g_per_kwh; /* <0 not given */
    double pue;                        /* 0 not given */
    int32_t idle_rule;                 /* enum kj_idle_rule */
    struct kj_run_per {
        char *name;
        double count;
    } * per;
    size_t per_count;
};
void kj_run_info_clear(struct kj_run_info *info);

/* Expands the template (NULL: "kjoule.%run-id" in the current folder), makes the folder 0700. -EEXIST when it
 * is there and not empty: nothing is overwritten. Returns the directory descriptor. */
int kj_folder_create(const char *template_path, const char *run_id, char **ret_path, struct kj_error *error);
/* Opens an existing run folder, following no link at its last step. -ENOENT, -ENOTDIR; error says what to do.
 */
int kj_folder_open(const char *path, struct kj_error *error);
int kj_folder_write_run(int dir_fd, const struct kj_run_info *info);
/* -EPROTO for a broken file, -ENOTSUP for one from a newer version. */
int kj_folder_read_run(int dir_fd, struct kj_run_info *ret_info, struct kj_error *error);
/* Names of the ledgers in the folder, sorted; NULL-terminated; free with kj_strings_free. */
int kj_folder_list_ledgers(int dir_fd, char ***ret_names, size_t *ret_count);
char **kj_strings_free(char **strings);

#endif
