/* SPDX-License-Identifier: Apache-2.0
 *
 * hooks_each.h - reduces every class of hooks.def to HOOK(symbol, name, version, lane, params, args). Define
 * HOOK, include this file, and HOOK is undefined again. No include guard: that is its use.
 */
#define LAUNCH(s, n, v, lane, shape, stream, params, args)   HOOK(s, n, v, lane, params, args)
#define LAUNCH_CONFIG                                        HOOK
#define COPY(s, n, v, lane, kind, bytes, params, args)       HOOK(s, n, v, lane, params, args)
#define COPY_ASYNC(s, n, v, lane, kind, bytes, params, args) HOOK(s, n, v, lane, params, args)
#define HOST                                                 HOOK
#define GRAPH_LAUNCH                                         HOOK
#define SYNC                                                 HOOK
#define QUERY                                                HOOK
#define CONTEXT                                              HOOK
#define RELEASE                                              HOOK
#define BEGIN_CAPTURE                                        HOOK
#define END_CAPTURE(s, n, v, lane, graph, params, args)      HOOK(s, n, v, lane, params, args)
#define INSTANTIATE                                          HOOK
#define GRAPH_UPDATE                                         HOOK
#define GRAPH_EDIT                                           HOOK
#define CUSTOM                                               HOOK
#define PASS(symbol, reason)
#include "hooks.def"
#include "hooks_undef.h"
#undef HOOK
