/* SPDX-License-Identifier: Apache-2.0
 *
 * cupti_versions.h - the libcupti that are known here: what they are called, and the versions whose records
 * are laid out as cupti_abi.h says. Shared by the shim and `kjoule doctor`.
 */
#ifndef KJ_CUPTI_VERSIONS_H
#define KJ_CUPTI_VERSIONS_H

/* name for the loader, the oldest driver it may meet, as cuDriverGetVersion has it; newest first */
#define KJ_CUPTI_LIBRARIES(X)                                                                                \
    X("libcupti.so.13", 13000)                                                                               \
    X("libcupti.so.12", 12000)                                                                               \
    X("libcupti.so.11.8", 11080)                                                                             \
    X("libcupti.so.11.7", 11070)

/* lowest and highest version of cuptiGetVersion, and what both are called */
#define KJ_CUPTI_KNOWN(X)                                                                                    \
    X(17, 28, "CUDA 11.7 to 12.9")                                                                           \
    X(130000, 130599, "CUDA 13.0 to 13.5")

#endif
