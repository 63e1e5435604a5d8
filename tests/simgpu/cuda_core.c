/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_core.c - start, devices.
 */
#include "cuda_sim.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

atomic_bool sim_initialised, sim_torn_down;
pthread_mutex_t sim_lock = PTHREAD_MUTEX_INITIALIZER;

static int visible[SIM_DEVICES], visible_count = -1;
static int visible_instance; /* of the board visible[0], where MIG is on: a process sees one instance */

static bool mig(void)
{
    return sim_machine()->script.mig_instances > 0;
}

/* "MIG-<uuid>" as a driver takes it, of any board. */
static bool find_instance(const char *word, int *ret_device, int *ret_instance)
{
    char text[SIM_UUID_TEXT];
    uint8_t uuid[16];
    for (int d = 0; d < sim_machine()->script.devices; d++)
        for (int i = 0; i < sim_machine()->script.mig_instances; i++) {
            sim_instance_uuid(d, i, uuid);
            sim_uuid_text("MIG", uuid, text);
            if (!strcmp(word, text)) {
                *ret_device = d;
                *ret_instance = i;
                return true;
            }
        }
    return false;
}

static void read_visible(void)
{
    const char *text = getenv("CUDA_VISIBLE_DEVICES");
    int count = 0, devices = sim_machine()->script.devices;
    if (!text) {
        for (; count < devices; count++)
            visible[count] = count;
    } else {
        char copy[256], *save;
        snprintf(copy, sizeof(copy), "%s", text);
        for (char *word = strtok_r(copy, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
            char *end = "";
            int of_instance = -1;
            long index;
            if (find_instance(word, &of_instance, &visible_instance))
                index = of_instance;
            else if (!strncmp(word, "GPU-", 4))
                index = strtol(word + strlen(word) - 2, &end, 16);
            else
                index = strtol(word, &end, 10);
            if (*end || index < 0 || index >= devices || count >= SIM_DEVICES)
                break; /* as the driver: what follows an invalid one is not visible */
            visible[count++] = (int)index;
        }
    }
    visible_count = mig() && count > 1 ? 1 : count;
}

int sim_visible_devices(void)
{
    if (visible_count < 0)
        read_visible();
    return visible_count;
}

int sim_device_to_ordinal(int device)
{
    for (int i = 0; i < sim_visible_devices(); i++)
        if (visible[i] == device)
            return i;
    return -1;
}

int sim_ordinal_to_device(int ordinal)
{
    return ordinal >= 0 && ordinal < sim_visible_devices() ? visible[ordinal] : -1;
}

CUresult sim_ready(void)
{
    if (atomic_load(&sim_torn_down))
        return CUDA_ERROR_DEINITIALIZED;
    return atomic_load(&sim_initialised) ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

__attribute__((destructor)) static void tear_down(void)
{
    atomic_store(&sim_torn_down, true);
}

API CUresult cuInit(unsigned flags)
{
    CALLED(cuInit);
    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_visible_devices())
        return CUDA_ERROR_NO_DEVICE;
    atomic_store(&sim_initialised, true);
    return CUDA_SUCCESS;
}

API CUresult cuDriverGetVersion(int *version)
{
    CALLED(cuDriverGetVersion);
    *version = sim_machine()->script.driver_version;
    return CUDA_SUCCESS;
}

API CUresult cuDeviceGetCount(int *count)
{
    CALLED(cuDeviceGetCount);
    NEED_READY();
    *count = sim_visible_devices();
    return CUDA_SUCCESS;
}

API CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    NEED_DEVICE(ordinal);
    *device = ordinal;
    return CUDA_SUCCESS;
}

API CUresult cuDeviceGetName(char *name, int size, CUdevice device)
{
    NEED_DEVICE(device);
    snprintf(name, (size_t)size, "NVIDIA H100 80GB HBM3%s", mig() ? " MIG 1g.10gb" : "");
    return CUDA_SUCCESS;
}

API CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    NEED_DEVICE(device);
    int board = sim_ordinal_to_device(device);
    if (mig())
        sim_instance_uuid(board, visible_instance, (uint8_t *)uuid->bytes);
    else
        sim_uuid(board, (uint8_t *)uuid->bytes);
    return CUDA_SUCCESS;
}

/* From before there was MIG: the board's. */
API CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
    if (sim_machine()->script.mig_board_uuid <= 0)
        return cuDeviceGetUuid_v2(uuid, device);
    NEED_DEVICE(device);
    sim_uuid(sim_ordinal_to_device(device), (uint8_t *)uuid->bytes);
    return CUDA_SUCCESS;
}

API CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    NEED_DEVICE(device);
    *bytes = (size_t)80 << 30;
    return CUDA_SUCCESS;
}

API CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
    NEED_DEVICE(device);
    *major = 9;
    *minor = 0;
    return CUDA_SUCCESS;
}

/* An H100's values of CUdevice_attribute; what is not listed answers 0. */
static const struct {
    int attribute, value;
} attributes[] = {
    {1, 1024},     {2, 1024},        {3, 1024},         {4, 64},           {5, 2147483647},  {6, 65535},
    {7, 65535},    {8, 49152},       {9, 65536},        {10, 32},          {11, 2147483647}, {12, 65536},
    {13, 1980000}, {14, 512},        {15, 1},           {16, 132},         {18, 0},          {19, 1},
    {20, 0},       {21, 131072},     {22, 131072},      {23, 65536},       {24, 16384},      {25, 16384},
    {26, 16384},   {27, 32768},      {28, 32768},       {29, 2048},        {30, 512},        {31, 1},
    {32, 1},       {35, 0},          {36, 2619000},     {37, 5120},        {38, 52428800},   {39, 2048},
    {40, 3},       {41, 1},          {42, 32768},       {43, 2048},        {45, 16384},      {46, 16384},
    {47, 8192},    {48, 32},         {49, 32},          {50, 0},           {51, 16384},      {52, 16384},
    {53, 2048},    {54, 16384},      {55, 32768},       {56, 2046},        {57, 131072},     {58, 65536},
    {59, 65536},   {60, 131072},     {61, 32768},       {62, 32768},       {63, 2048},       {64, 32768},
    {65, 2046},    {66, 131072},     {67, 65536},       {68, 131072},      {69, 2048},       {70, 131072},
    {71, 65000},   {72, 2097120},    {73, 32768},       {74, 65536},       {75, 9},          {76, 0},
    {77, 32768},   {78, 1},          {79, 1},           {80, 1},           {81, 233472},     {82, 65536},
    {83, 1},       {84, 0},          {85, 0},           {86, 1},           {87, 2},          {88, 1},
    {89, 1},       {90, 1},          {91, 1},           {92, 1},           {93, 1},          {94, 1},
    {95, 1},       {96, 1},          {97, 232448},      {98, 1},           {99, 1},          {100, 0},
    {101, 0},      {102, 1},         {103, 1},          {104, 0},          {105, 0},         {106, 32},
    {107, 1},      {108, 134217728}, {109, 33554432},   {110, 1},          {111, 1024},      {112, 1},
    {113, 1},      {114, 1},         {115, 1},          {116, 1},          {117, 1},         {118, 1},
    {119, 9},      {120, 1},         {121, 1},          {122, 1},          {123, 1},         {124, 1},
    {125, 0},      {126, 0},         {127, 1},          {128, 1},          {129, 0},         {130, 0},
    {131, 0},      {132, 0},         {133, 1},          {134, 0},          {135, 1},         {136, 0},
    {137, 0},      {138, 0},         {139, 0x233010DE}, {140, 0x16C110DE}, {141, 0},         {142, 0},
    {143, 0},      {144, 0},
};

API CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device)
{
    NEED_DEVICE(device);
    *value = 0;
    if (attribute == 33) /* PCI bus */
        *value = 0x18 + sim_ordinal_to_device(device);
    for (size_t i = 0; i < sizeof(attributes) / sizeof(*attributes); i++)
        if (attributes[i].attribute == attribute)
            *value = attributes[i].value;
    if (attribute == 16 && mig())
        *value /= (int)sim_machine()->script.mig_instances;
    return CUDA_SUCCESS;
}

API CUresult cuDeviceGetPCIBusId(char *text, int size, CUdevice device)
{
    NEED_DEVICE(device);
    snprintf(text, (size_t)size, "0000:%02X:00.0", 0x18 + sim_ordinal_to_device(device));
    return CUDA_SUCCESS;
}

API CUresult cuDeviceCanAccessPeer(int *can, CUdevice a, CUdevice b)
{
    NEED_DEVICE(a);
    *can = a != b;
    return CUDA_SUCCESS;
}

API CUresult cuDeviceGetP2PAttribute(int *value, int attribute, CUdevice a, CUdevice b)
{
    NEED_DEVICE(a);
    *value = attribute != 1 && a != b;
    return CUDA_SUCCESS;
}

/* ---- texts
 * -------------------------------------------------------------------------------------------------------------
 */

API CUresult cuGetErrorName(CUresult error, const char **text)
{
    static __thread char name[32];
    snprintf(name, sizeof(name), "CUDA_ERROR_%d", error);
    *text = error ? name : "CUDA_SUCCESS";
    return CUDA_SUCCESS;
}

API CUresult cuGetErrorString(CUresult error, const char **text)
{
    return cuGetErrorName(error, text);
}

/* ---- private tables: a door for the lab, see README.md
 * -------------------------------------------------------------------- */

struct kj_lab_host {
    int driver_version, device_count;
    void (*device_identity)(int device, uint8_t ret_uuid[16], int32_t ret_pci[3]);
    int (*primary_context)(void **ret_context, int device);
    int (*current_context)(void **ret_context);
    int (*load_module)(void **ret_module, const void *image);
};

static void lab_identity(int device, uint8_t ret_uuid[16], int32_t ret_pci[3])
{
    sim_uuid(sim_ordinal_to_device(device), ret_uuid);
    ret_pci[0] = 0;
    ret_pci[1] = 0x18 + sim_ordinal_to_device(device);
    ret_pci[2] = 0;
}

static int lab_primary(void **ret_context, int device)
{
    return sim_primary((CUcontext *)ret_context, sim_ordinal_to_device(device), true);
}

API CUresult cuModuleLoadData(CUmodule *ret_module, const void *image);
static int lab_module(void **ret_module, const void *image)
{
    return cuModuleLoadData((CUmodule *)ret_module, image);
}

API CUresult cuGetExportTable(const void **ret_table, const CUuuid *id)
{
    static void *handle;
    const char *path = getenv("KJ_SIM_TABLES");
    if (!handle && path)
        handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return CUDA_ERROR_NOT_FOUND;
    typedef const void *(*table_fn)(const uint8_t uuid[16], const struct kj_lab_host *host);
    table_fn find = (table_fn)(uintptr_t)dlsym(handle, "kj_lab_export_table");
    const struct kj_lab_host host = {sim_machine()->script.driver_version,
                                     sim_visible_devices(),
                                     lab_identity,
                                     lab_primary,
                                     sim_current_get,
                                     lab_module};
    *ret_table = find ? find((const uint8_t *)id->bytes, &host) : NULL;
    return *ret_table ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
