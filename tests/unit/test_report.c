/* SPDX-License-Identifier: Apache-2.0 */
#include "report/writers.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NS "at::native::"

static const struct {
    const char *demangled, *brief;
} names[] = {
    {"train_gemm", "train_gemm"},
    {"layer::forward(float*, float const*, int)", "layer::forward"},
    {"void mine::inner::vectorized_layer_norm_kernel<float, mine::other, false>(int, float)",
     "vectorized_layer_norm_kernel<float,other>"},
    {"void " NS "(anonymous namespace)::vectorized_layer_norm_kernel<float, float, false>(int, float)",
     "vectorized_layer_norm_kernel<float,float>"},
    {"void " NS "vectorized_elementwise_kernel<4, " NS
     "CUDAFunctor_add<float>, std::array<char*, 3ul> >(int)",
     "vectorized_eleme..<CUDAFunctor_add<float>,array<char>>"},
    {"void " NS "vectorized_elementwise_kernel<4, " NS "GeluCUDAKernelImpl(at::TensorIteratorBase&, " NS
     "GeluType)::{lambda()#2}::operator()() const::{lambda(float)#1}, std::array<char*, 2ul> >(int)",
     "vectorized_eleme..<GeluCUDAKernelImpl,array<char>>"},
    {"void k<unsigned int, 3, true>(unsigned int)", "k<unsigned int>"},
    {"void k<4>()", "k"},
    /* what no demangler makes */
    {"", ""},
    {"void ", "void "},
    {"(((((", "((((("},
    {"a<b<c<", "a<b<c<"},
    {"<>><<", ">><<"},
    {"k<script>alert", "k<script>alert"},
};

static void test_short_names(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        char *brief = kj_short_name(names[i].demangled, 42);
        assert_string_equal(brief, names[i].brief);
        free(brief);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_short_names)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
