/* SPDX-License-Identifier: Apache-2.0
 *
 * hooks_undef.h - forgets the class macros after an expansion of hooks.def.
 */
#undef LAUNCH
#undef LAUNCH_CONFIG
#undef COPY
#undef COPY_ASYNC
#undef HOST
#undef GRAPH_LAUNCH
#undef SYNC
#undef QUERY
#undef CONTEXT
#undef RELEASE
#undef BEGIN_CAPTURE
#undef END_CAPTURE
#undef INSTANTIATE
#undef GRAPH_UPDATE
#undef GRAPH_EDIT
#undef CUSTOM
#undef PASS
