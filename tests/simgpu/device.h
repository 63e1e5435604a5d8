/* SPDX-License-Identifier: Apache-2.0
 *
 * device.h - the simulated machine: devices whose power is known at every moment, shared by all processes
 * through one mapping.
 *
 * Work is an interval [start, end) with a dynamic power above the base. What lies before now is final, since
 * new work never starts in the past; so energy is integrated lazily, up to now, whenever somebody looks or
 * the list of intervals fills. History is kept on a grid of 1 ms for the sensors' windows. Every function
 * here locks by itself unless it says otherwise. Times are CLOCK_MONOTONIC ns, energy is in nanojoules
 * (double).
 */
#ifndef SIM_DEVICE_H
#define SIM_DEVICE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    SIM_DEVICES = 8,
    SIM_KERNELS = 1 << 15,
    SIM_HASH = 1 << 16, /* slots for finding a kernel by its name */
    SIM_PENDING = 1 << 17,
    SIM_ARRIVALS = 1 << 15,
    SIM_GRID = 1 << 15, /* milliseconds of history */
    SIM_RULES = 256,
    SIM_CALLS = 1024,
    SIM_CONTEXTS = 256,
    SIM_RING = 120, /* samples that the driver keeps */
    SIM_MARKS = 64,
    SIM_MARK_BYTES = 32,
    SIM_HOLDS = 8,
};

struct sim_rule {
    char glob[192];
    double duration_us; /* < 0: by grid size */
    double sd_us;
    double power_w; /* < 0: by a hash of the name */
};

enum sim_cost_row {
#define COST(call, host_ns, item_ns, device_ns) SIM_COST_##call,
#include "costs.def"
#undef COST
    SIM_COSTS
};
extern const char *const sim_cost_names[SIM_COSTS];

struct sim_cost {
    double host_ns, item_ns, device_ns;
};

/* Calls of one name that take longer than they do: the thread sleeps in them. */
struct sim_hold {
    char call[48];
    double from, every,
        times;        /* the first one held, 1 is the first call; each so many; how often, 0: always */
    double us, after; /* after: what was asked for has been submitted, and waited for */
};

struct sim_script {
    int devices, driver_version;
    double idle_w, context_w, cap_w;
    double dependent_overlap; /* of the shorter of two kernels, where the second is a dependent launch */
    double copy_gbs, copy_w, copy_latency_us;
    bool calls_cost; /* any does */
    double costs_scale;
    struct sim_cost cost[SIM_COSTS];
    int holds;
    struct sim_hold hold[SIM_HOLDS];
    double body_runs;                    /* of a conditional node in one launch of its graph, on average */
    double copies_wait;                  /* each synchronous one, and no other, waits for the device */
    double spin;                         /* waiting spins and does not sleep, as a driver's does by default */
    double drift_ppm;                    /* events' clock gains this on the host's */
    double handles_abort, handles_reuse; /* what happens to a destroyed handle: cuda_handles.c */
    double mig_instances;                /* of each board; 0: MIG is off */
    double mig_board_uuid;               /* the driver tells the board's UUID beside the instance's */
    double window_ms, period_ms, delay_ms, gain, offset_w, noise; /* instant power */
    double lag_ms;                                                /* > 0: a first-order lag, no window */
    double counter_period_ms, counter_gain;
    double counter_window_ms; /* > 0: the counter adds up samples this long, one a period */
    double ring_period_ms, ring_window_ms;
    int ring_clock; /* clockid_t of its times */
    int architecture;
    char board[96], driver[80];
    bool refuse_counter, refuse_power, refuse_ring;
    int rules;
    struct sim_rule rule[SIM_RULES];
};

struct sim_kernel {
    char name[240];
    uint64_t launches, graph_launches;
    uint64_t time_ns;
    double energy_nj;
    double duration_us, sd_us, dynamic_w; /* as the script says for it; duration < 0: by grid */
    bool copy;                            /* a copy or fill */
};

/* Who put work on the device, by its own word (simgpu_mark) or its thread's name. */
struct sim_mark {
    char name[SIM_MARK_BYTES];
    uint64_t launches, copies, time_ns;
    double energy_nj;
};

struct sim_interval {
    uint64_t start_ns, end_ns;
    uint32_t kernel, mark;
    float dynamic_w;
};

struct sim_device {
    pthread_mutex_t lock; /* robust: its holder may be killed */
    uint64_t zero_ns, folded_ns;
    double energy_nj, idle_nj; /* up to folded_ns */
    uint64_t busy_ns;
    double grid_nj[SIM_GRID]; /* energy at zero + i ms, modulo SIM_GRID */
    uint64_t grid_next;       /* next grid point to fill */
    /* Launches go here, under a lock of their own: reading a sensor holds up nobody who launches. */
    pthread_mutex_t arrivals_lock;        /* robust too; taken after the other one, where both are */
    uint32_t arrival_count, arrival_half; /* the half that is being filled */
    struct sim_interval arrival[2][SIM_ARRIVALS];
    uint32_t pending_count;
    struct sim_interval pending[SIM_PENDING];
    uint32_t kernels;
    struct sim_kernel kernel[SIM_KERNELS];
    uint32_t kernel_at[SIM_HASH]; /* index + 1 */
    uint32_t marks;
    struct sim_mark mark[SIM_MARKS];
    int32_t context_pid[SIM_CONTEXTS];
    int contexts;
    uint64_t random;
    pthread_mutex_t sensor_lock; /* of the counter's samples; robust */
    uint64_t counter_tick;
    double counter_nj;
    uint64_t lag_tick; /* + 1: of lag_mw */
    double lag_mw;
    uint64_t memory_used;
};

struct sim_machine {
    uint64_t
        ready; /* SIM_LAYOUT once made: it differs between builds that lay out a state file differently */
    uint64_t zero_ns;
    struct sim_script script;
    uint64_t calls[SIM_CALLS]; /* by the order of cuda_exports.def */
    struct sim_device device[SIM_DEVICES];
};

/* The machine of this process; made from KJ_SIM_SCRIPT at first use. Never NULL: aborts with a line when it
 * cannot be made. */
struct sim_machine *sim_machine(void);
/* Maps an existing state file. NULL when there is none yet; ends the program with a line, and status 2, on
 * what is none of this build. For the truth tool. */
struct sim_machine *sim_machine_open(const char *path);

uint64_t sim_now_ns(void);
void sim_sleep_until(uint64_t t_ns);

/* Index of a kernel (or copy) by name, made from the script at first sight. */
uint32_t sim_kernel_find(int device, const char *name, bool copy);
/* Puts work on the device: begins at the later of now and not_before, returns its end. grid_blocks decides an
 * automatic duration, bytes a copy's; ret_start_ns says when it begins. ahead_ns > 0: it may overlap with
 * what is ahead of it, which takes that long. */
uint64_t sim_work(int device, uint32_t kernel, uint64_t not_before_ns, uint64_t ahead_ns,
                  uint64_t grid_blocks, uint64_t bytes, bool graph, uint64_t *ret_start_ns);

/* The mark of what this thread launches: the last one set, else the thread's name. NULL unsets it. */
void sim_mark_set(const char *name);
const char *sim_mark_now(void);

void sim_context_made(int device);
void sim_context_gone(int device);

/* True energy from time zero to t (at most now), in nanojoules. */
double sim_energy_at(int device, uint64_t t_ns);
/* What the power sensor shows now, in milliwatts; what the counter shows, in millijoules. */
uint32_t sim_power_mw(int device);
uint64_t sim_counter_mj(int device);

/* The samples that the driver keeps, oldest first, newer than after_ns. */
struct sim_ring_sample {
    uint64_t t_ns;
    uint32_t mw;
};
uint32_t sim_ring(int device, uint64_t after_ns, struct sim_ring_sample *ret_samples, uint32_t cap);
/* Watts while nothing runs. */
double sim_base_w(const struct sim_device *d);
/* A killed process takes its contexts with it. */
void sim_bury(struct sim_device *d);

void sim_uuid(int device, uint8_t ret_uuid[16]);
/* Of a MIG instance of the board. */
void sim_instance_uuid(int device, int instance, uint8_t ret_uuid[16]);
/* As NVML writes it, after "GPU" or "MIG". */
enum { SIM_UUID_TEXT = 48 };
void sim_uuid_text(const char *prefix, const uint8_t uuid[16], char ret_text[SIM_UUID_TEXT]);
/* One line start_ns,end_ns,name for each work of this process, into KJ_SIM_TIMELINE where that is set. Under
 * the device's lock. */
void sim_timeline_add(int device, uint64_t start_ns, uint64_t end_ns, const char *name);
/* Writes the truth as JSON by replacing the file; "-" is stdout. */
int sim_truth_write(struct sim_machine *machine, const char *path);
void sim_script_read(struct sim_script *script, const char *path);

#endif
