/* SPDX-License-Identifier: Apache-2.0
 *
 * probe_stream.c - whatever may arrive where the recorder hears kjoule-probe: messages of any size and
 * content, and then what the recorder does with what it took. Input: 2 bytes of length before each message.
 */
#include "probe_stream.h"
#include "record/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "record/parts.h"

static void drain(struct kj_probe *probe)
{
    static struct kj_sample samples[4096];
    const struct kj_channel *channels;
    struct kj_probe_status status;
    uint32_t lost;
    char reason[160];
    size_t count = kj_probe_channels(probe, &channels);
    uint64_t last_ns[256] = {0}, last_value[256] = {0};
    size_t n = kj_probe_samples(probe, samples, 4096);
    for (size_t i = 0; i < n; i++) {
        uint32_t c = samples[i].channel;
        if (c >= count || samples[i].t_ns < last_ns[c] ||
            (channels[c].kind != KJ_POWER_MW && samples[i].value < last_value[c]))
            abort(); /* the series would not take it */
        last_ns[c] = samples[i].t_ns;
        last_value[c] = samples[i].value;
    }
    while (kj_probe_lost(probe, &lost, reason, sizeof(reason)))
        if (lost >= count || strlen(reason) >= sizeof(reason))
            abort();
    for (size_t i = 0; i < count; i++)
        if (channels[i].id != i || !channels[i].device[0] ||
            strlen(channels[i].device) >= sizeof(channels[i].device))
            abort();
    kj_probe_get_status(probe, &status);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
        abort();
    struct kj_probe *probe = kj_probe_adopt(pair[0]);
    struct kj_threads *threads = kj_threads_new("probe");
    kj_probe_connect(probe, threads, NULL);
    while (size >= 2) {
        size_t length = (size_t)data[0] | (size_t)data[1] << 8;
        data += 2, size -= 2;
        length = length < size ? length : size;
        if (length && send(pair[1], data, length, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            break;
        data += length, size -= length;
        kj_probe_read(probe);
    }
    kj_probe_read(probe);
    drain(probe);
    close(pair[1]);
    kj_probe_close(probe);
    kj_threads_close(threads);
    return 0;
}

static size_t put(uint8_t *to, size_t used, const struct kj_probe_record *records, size_t count)
{
    size_t size = count * sizeof(*records);
    to[used] = (uint8_t)size;
    to[used + 1] = (uint8_t)(size >> 8);
    memcpy(to + used + 2, records, size);
    return used + 2 + size;
}

static struct kj_probe_record record(uint32_t kind)
{
    return (struct kj_probe_record){.magic = KJ_PROBE_MAGIC, .kind = kind, .t_ns = 1000};
}

size_t kj_fuzz_seed(size_t i, uint8_t *ret_data, size_t cap);
size_t kj_fuzz_seed(size_t i, uint8_t *ret_data, size_t cap)
{
    struct kj_probe_record hello = record(KJ_PROBE_HELLO), refused = record(KJ_PROBE_REFUSED),
                           channel = record(KJ_PROBE_CHANNEL), ready = record(KJ_PROBE_READY),
                           none = record(KJ_PROBE_NO_PHASES), all[9];
    (void)cap;
    hello.value = KJ_PROBE_VERSION;
    strcpy(refused.text, "it holds no capabilities");
    channel.channel.component = KJ_COMPONENT_CPU;
    channel.channel.quantity = KJ_ENERGY_UJ;
    channel.channel.gain_sd = 0.03;
    strcpy(channel.channel.source, "rapl_perf");
    strcpy(channel.channel.name, "package");
    strcpy(channel.channel.device, "package-0");
    memset(none.text, 'x', sizeof(none.text));
    ready.value = i % 2;
    strcpy(ready.text, "scheduler switches");
    size_t used = put(ret_data, 0, &hello, 1);
    if (i == 0)
        return put(ret_data, used, &refused, 1);
    if (i > 3)
        return 0;
    for (int k = 0; k < 8; k++)
        all[k] = record(KJ_PROBE_TICK + (uint32_t)k % 6);
    all[0].tick.tree_ns = all[0].tick.others_ns = 5000;
    all[1].pid = all[1].thread.tid = 7;
    all[1].thread.cpu_ns = 4000;
    memset(all[1].thread.comm, 'x', sizeof(all[1].thread.comm)); /* no NUL */
    all[2].value = 77;
    strcpy(all[3].text, "gone");
    all[4].pid = all[4].phase.tid = 7;
    all[4].phase.start_ns = 10;
    all[4].phase.end_ns = 20;
    all[6].tick.tree_ns = 4000; /* runs backwards */
    all[7].pid = all[7].thread.tid = 7;
    all[7].thread.dead = 1;
    all[8] = record(KJ_PROBE_UNNAMED);
    all[8].pid = 7;
    used = put(ret_data, used, &channel, 1);
    used = put(ret_data, used, &none, i == 3);
    used = put(ret_data, used, &ready, 1);
    return put(ret_data, used, all, 9);
}
