/* SPDX-License-Identifier: Apache-2.0
 *
 * writers.h - one function a format. Inside the room only.
 */
#ifndef KJ_WRITERS_H
#define KJ_WRITERS_H

#include "report/report.h"

int kj_write_json(const struct kj_report *report, FILE *out);
int kj_write_text(const struct kj_report *report, FILE *out);

/* "layer::forward(float*, float const*, int)" of "_ZN5layer7forwardEPfPKfi"; a copy of the name itself where
 * it is not mangled or no demangler is at hand. The caller frees. */
char *kj_demangle(const char *name);

/* "vectorized_eleme..<CUDAFunctor_add<float>,array<char>>" of PyTorch's demangled name: what tells kernels
 * apart in about `width` bytes, which the caller still cuts at. The caller frees; NULL: no memory. */
char *kj_short_name(const char *demangled, size_t width);

#endif
