/* SPDX-License-Identifier: Apache-2.0
 *
 * hooks - asks the driver for every row of shim/hooks.def in both ways that there are: cuGetProcAddress of
 * (name, version, lane) must be what dlsym finds for the symbol, or a wrapper would call another ABI. And
 * asks for each name at the driver's own version: the ABI that it answers with must be in the table. Run
 * alone, and under kjoule, where both ways must lead to the same wrapper. One JSON object a line: what
 * differs, then the counts.
 */
#include "card.h"

#include <dlfcn.h>
#include <string.h>

static const struct {
    const char *symbol, *name;
    int version, lane;
} hooks[] = {
#define HOOK(symbol, name, version, lane, parameters, arguments) {#symbol, name, version, lane},
#include "hooks_each.h"
};
enum { HOOKS = sizeof(hooks) / sizeof(hooks[0]) };

static void *by_name(const char *name, int version, int lane)
{
    void *found = NULL;
    return cu.GetProcAddress_v2(name, &found, version, lane ? 2 : 1, NULL) ? NULL : found;
}

static const char *symbol_at(const void *address)
{
    Dl_info info;
    return !address ? "" : dladdr(address, &info) && info.dli_sname ? info.dli_sname : "?";
}

/* 1: both ways lead to the same. 0: said. */
static int compare(int i, int driver_version)
{
    void *of_symbol = dlsym(card.library, hooks[i].symbol);
    void *of_name = by_name(hooks[i].name, hooks[i].version, hooks[i].lane);
    if (of_symbol == of_name)
        return of_symbol != NULL;
    printf("{\"hook\": \"%s\", \"name\": \"%s\", \"version\": %d, \"lane\": %d, \"newer_than_driver\": %s, "
           "\"by_symbol\": "
           "\"%s\", \"by_name\": \"%s\"}\n",
           hooks[i].symbol, hooks[i].name, hooks[i].version, hooks[i].lane,
           hooks[i].version > driver_version ? "true" : "false", symbol_at(of_symbol), symbol_at(of_name));
    return 0;
}

/* 1: what the driver hands out today is one of our rows, or it has none. 0: said. */
static int newest_is_known(int i, int driver_version)
{
    const void *newest = by_name(hooks[i].name, driver_version, hooks[i].lane);
    if (!newest)
        return 1;
    for (int k = 0; k < HOOKS; k++)
        if (!strcmp(hooks[k].name, hooks[i].name) && dlsym(card.library, hooks[k].symbol) == newest)
            return 1;
    printf("{\"newer_abi\": \"%s\", \"lane\": %d, \"driver_version\": %d, \"symbol\": \"%s\"}\n",
           hooks[i].name, hooks[i].lane, driver_version, symbol_at(newest));
    return 0;
}

int main(void)
{
    int version = 0, same = 0, absent = 0, unknown = 0;
    card_find_driver();
    MUST(cu.Init(0));
    MUST(cu.DriverGetVersion(&version));
    if (!cu.GetProcAddress_v2) {
        printf("{\"driver_version\": %d, \"hooks\": %d, \"missing\": \"cuGetProcAddress_v2\"}\n", version,
               HOOKS);
        return 0;
    }
    for (int i = 0; i < HOOKS; i++) {
        same += compare(i, version);
        absent += !dlsym(card.library, hooks[i].symbol);
        unknown += !newest_is_known(i, version);
    }
    printf("{\"driver_version\": %d, \"hooks\": %d, \"same\": %d, \"absent\": %d, \"newer_abi\": %d}\n",
           version, HOOKS, same, absent, unknown);
    return 0;
}
