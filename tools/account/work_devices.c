/* SPDX-License-Identifier: Apache-2.0
 *
 * work_devices.c - which board a device of a process is. A MIG instance is a part of one: the sensors are the
 * board's, so its work is reported there, with the instances by name.
 */
#include "account/work.h"

#include <stdlib.h>
#include <string.h>

static void uuid_text(const char *prefix, const uint8_t u[16], char ret_text[KJ_DEVICE_TEXT])
{
    snprintf(ret_text, KJ_DEVICE_TEXT,
             "%s-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", prefix, u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

/* The board that was read during the run: by its UUID, or (NULL) by its place on the bus. */
static const char *board_find(const struct kj_series *series, const char *uuid, const char *pci)
{
    for (size_t i = 0; series && i < series->count; i++) {
        const struct kj_channel *c = &series->channels[i].channel;
        if (c->component == KJ_COMPONENT_GPU && (uuid ? !strcmp(c->device, uuid) : !strcmp(c->pci, pci)))
            return c->device;
    }
    return NULL;
}

/* instance: "" where it is a whole board. */
static void name_device(const struct kj_series *series, const struct kj_ledger_device *device,
                        char ret_key[KJ_DEVICE_TEXT], char ret_instance[KJ_DEVICE_TEXT])
{
    char pci[20];
    *ret_instance = 0;
    if (device->uuid_known)
        uuid_text("GPU", device->uuid, ret_key);
    else
        snprintf(ret_key, KJ_DEVICE_TEXT, "cuda-%d", device->ordinal);
    if (device->instance_known)
        uuid_text("MIG", device->instance_uuid, ret_instance);
    snprintf(pci, sizeof(pci), "%x:%x:%x", (unsigned)device->pci_domain, (unsigned)device->pci_bus,
             (unsigned)device->pci_device);
    const char *board = board_find(series, ret_key, NULL) ? NULL : board_find(series, NULL, pci);
    if (!board)
        return;
    /* No board has this UUID, but there is one in its place. */
    if (device->uuid_known && !device->instance_known)
        uuid_text("MIG", device->uuid, ret_instance);
    snprintf(ret_key, KJ_DEVICE_TEXT, "%s", board);
}

static void add_instance(struct kj_work_device *device, const char *instance)
{
    for (size_t i = 0; i < device->instance_count; i++)
        if (!strcmp(device->instances[i], instance))
            return;
    if (*instance && device->instance_count < KJ_INSTANCES_CAP)
        memcpy(device->instances[device->instance_count++], instance, KJ_DEVICE_TEXT);
}

uint32_t kj_work_find_device(struct kj_work *work, const struct kj_ledger_device *device)
{
    char key[KJ_DEVICE_TEXT], instance[KJ_DEVICE_TEXT];
    name_device(work->series, device, key, instance);
    for (size_t i = 0; i < work->device_count; i++)
        if (!strcmp(work->devices[i].key, key)) {
            add_instance(&work->devices[i], instance);
            return (uint32_t)i;
        }
    void *devices = realloc(work->devices, (work->device_count + 1) * sizeof(*work->devices));
    if (!devices)
        return KJ_NO_CLASS;
    work->devices = devices;
    struct kj_work_device *row = memset(&work->devices[work->device_count], 0, sizeof(*row));
    memcpy(row->key, key, sizeof(row->key));
    row->context_ns = UINT64_MAX;
    snprintf(row->model, sizeof(row->model), "%.*s", (int)sizeof(device->name) - 1, device->name);
    add_instance(row, instance);
    return (uint32_t)work->device_count++;
}

void kj_work_add_context(struct kj_work *work, uint32_t index, uint32_t view,
                         const struct kj_ledger_device *row)
{
    struct kj_work_device *device = &work->devices[index];
    const struct kj_ledger_header *header = kj_ledger_view_header(work->views[view]);
    if (!device->processes || device->newest_view != view) /* not twice for two instances of the board */
        device->processes++;
    device->newest_view = view;
    uint64_t end_ns = row->context_end_ns                 ? row->context_end_ns
                      : header->state == KJ_LEDGER_CLOSED ? header->end_mono_ns
                                                          : UINT64_MAX;
    if (row->context_ns < device->context_ns)
        device->context_ns = row->context_ns;
    if (end_ns > device->context_end_ns)
        device->context_end_ns = end_ns;
}

int kj_work_name_instances(struct kj_report *report, struct kj_report_device *row,
                           const struct kj_work_device *device)
{
    size_t size = device->instance_count * (KJ_DEVICE_TEXT + 2) + 1, used = 0;
    if (!device->instance_count)
        return 0;
    row->instances = calloc(1, size);
    if (!row->instances)
        return -1;
    for (size_t i = 0; i < device->instance_count; i++)
        used +=
            (size_t)snprintf(row->instances + used, size - used, "%s%s", i ? ", " : "", device->instances[i]);
    kj_report_warn(
        report,
        "%s: the run had %s of this board, whose energy is the whole board's: what others ran on it is "
        "in idle, unattributed and kernels alike; only alone on the board (nvidia-smi) is it the run's",
        row->device, row->instances);
    return 0;
}
