/* SPDX-License-Identifier: Apache-2.0
 *
 * hooks_none.h - for an expansion of hooks.def that wants some classes alone: define those, include this
 * file, which makes nothing of the others, then hooks.def and hooks_undef.h. No include guard: that is its
 * use.
 */
#ifndef LAUNCH
#define LAUNCH(...)
#endif
#ifndef LAUNCH_CONFIG
#define LAUNCH_CONFIG(...)
#endif
#ifndef COPY
#define COPY(...)
#endif
#ifndef COPY_ASYNC
#define COPY_ASYNC(...)
#endif
#ifndef HOST
#define HOST(...)
#endif
#ifndef GRAPH_LAUNCH
#define GRAPH_LAUNCH(...)
#endif
#ifndef SYNC
#define SYNC(...)
#endif
#ifndef QUERY
#define QUERY(...)
#endif
#ifndef CONTEXT
#define CONTEXT(...)
#endif
#ifndef RELEASE
#define RELEASE(...)
#endif
#ifndef BEGIN_CAPTURE
#define BEGIN_CAPTURE(...)
#endif
#ifndef END_CAPTURE
#define END_CAPTURE(...)
#endif
#ifndef INSTANTIATE
#define INSTANTIATE(...)
#endif
#ifndef GRAPH_UPDATE
#define GRAPH_UPDATE(...)
#endif
#ifndef GRAPH_EDIT
#define GRAPH_EDIT(...)
#endif
#ifndef CUSTOM
#define CUSTOM(...)
#endif
#ifndef PASS
#define PASS(...)
#endif
