/* SPDX-License-Identifier: Apache-2.0
 *
 * test_phases.c - the rules of phases, each on a recorded order of launches. A launch is a letter, and so is
 * the phase that is wanted of it:
 *
 *     k kernel of the main thread   a of the autograd thread   m multi-tensor optimizer   n NCCL, autograd
 * thread h copy to the device          r copy from it             | launches are missing before the next g
 * graph with a whole step (4 kernels of the forward pass)  p graph with a backward pass alone A optimizer on
 * the autograd thread d data, f forward, b backward, o optimizer, e evaluation, c communication, u
 * unattributed, ? not told
 */
#include "model/attribution.h"
#include "model/phases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 400 };

static struct kj_phase_launch launch_of(char letter)
{
    struct kj_phase_launch l = KJ_PHASE_LAUNCH_PLAIN;
    l.autograd = letter == 'a' || letter == 'n' || letter == 'A' || letter == 'p';
    l.to_device = letter == 'h';
    l.kernel = letter != 'h' && letter != 'r';
    l.named = letter == 'm' || letter == 'A' ? KJ_PHASE_OPTIMIZER
              : letter == 'n'                ? KJ_PHASE_COMMUNICATION
                                             : -1;
    if (letter == 'g') {
        l.holds = 1 << KJ_PHASE_BACKWARD | 1 << KJ_PHASE_OPTIMIZER;
        l.forward_nodes = 4;
    }
    if (letter == 'p')
        l.holds = 1 << KJ_PHASE_BACKWARD;
    return l;
}

static size_t read_sequence(const char *text, struct kj_phase_launch *ret_launches,
                            struct kj_phase_facts *ret_facts)
{
    size_t count = 0;
    bool gap = false;
    for (; *text; text++) {
        if (*text == ' ')
            continue;
        if (*text == '|') {
            gap = true;
            continue;
        }
        struct kj_phase_launch *l = &ret_launches[count++];
        *l = launch_of(*text);
        l->gap_before = gap;
        gap = false;
        int phase = kj_phase_of_launch(l);
        ret_facts->backward |= phase == KJ_PHASE_BACKWARD || l->holds;
        ret_facts->optimizer |= phase == KJ_PHASE_OPTIMIZER || l->holds >> KJ_PHASE_OPTIMIZER & 1;
    }
    ret_facts->cut = gap;
    return count;
}

/* steps: how many updates end one; whole: of how many the whole period was seen. */
static void expect(const char *sequence, const char *wanted, size_t steps, size_t whole)
{
    static const char letters[] = "dfboecu";
    struct kj_phase_launch launches[MOST];
    struct kj_phase_facts facts = {0};
    struct kj_phase_mark *marks;
    size_t count = read_sequence(sequence, launches, &facts), mark_count, at = 0, seen_whole = 0;
    int8_t phases[MOST];
    char got[MOST + 1], clean[MOST + 1];
    assert_int_equal(kj_phases_find(launches, count, &facts, phases, &marks, &mark_count), 0);
    for (size_t i = 0; i < count; i++)
        got[i] = phases[i] < 0 ? '?' : letters[phases[i]];
    got[count] = 0;
    for (; *wanted; wanted++)
        if (*wanted != ' ' && *wanted != '|')
            clean[at++] = *wanted;
    clean[at] = 0;
    for (size_t i = 0; i < mark_count; i++)
        seen_whole += marks[i].whole;
    free(marks);
    assert_string_equal(got, clean);
    assert_int_equal(mark_count, steps);
    assert_int_equal(seen_whole, whole);
}

static void test_training(void **state)
{
    (void)state;
    expect("hkkkkaaaanmm hkkkkaaaanmm hkkkkaaaanmm", "dffffbbbbcoo dffffbbbbcoo dffffbbbbcoo", 3, 2);
    /* Clipping and reading the loss between backward and optimizer; the optimizer in parts. */
    expect("hkkkkaaaarkmkm hkkkkaaaarkmkm", "dffffbbbbooooo dffffbbbbooooo", 2, 1);
    /* Several backward passes to an update. */
    expect("hkkkkaaaa hkkkkaaaa m hkkkkaaaa hkkkkaaaa m", "dffffbbbb dffffbbbb o dffffbbbb dffffbbbb o", 2,
           1);
}

static void test_evaluation(void **state)
{
    (void)state;
    expect("hkkkkaaaam hkkkkaaaam hkkkk hkkkk hkkkkaaaam hkkkkaaaam hkkkk hkkkk",
           "dffffbbbbo dffffbbbbo deeee deeee dffffbbbbo dffffbbbbo deeee deeee", 4, 3);
    /* Without copies of batches. */
    expect("kkkkaaaam kkkkaaaam kkkk kkkk kkkkaaaam kkkkaaaam kkkk kkkk",
           "ffffbbbbo ffffbbbbo eeee eeee ffffbbbbo ffffbbbbo eeee eeee", 4, 3);
    /* The batch's copy tells where a forward pass begins that is a launch longer than the others. */
    expect("hkkkkaaaam hkkkkaaaam hkkkk hkkkkkaaaam hkkkkaaaam",
           "dffffbbbbo dffffbbbbo deeee dfffffbbbbo dffffbbbbo", 4, 3);
    /* No backward pass before the next update. */
    expect("hkkkkaaaam hkkkkaaaam hkkkkm", "dffffbbbbo dffffbbbbo deeeeo", 2, 1);
}

static void test_set_up(void **state)
{
    (void)state;
    expect("kkkkkkkkhkkkkaaaam hkkkkaaaam hkkkkaaaam", "uuuuuuuudffffbbbbo dffffbbbbo dffffbbbbo", 3, 2);
    expect("kkm hkkkkaaaam", "uuo dffffbbbbo", 1, 0);
}

/* What is no training must not be called one. */
static void test_no_training(void **state)
{
    (void)state;
    expect("hkkkhkkkrkk", "duuuduuuuuu", 0, 0);
    expect("hkkkmmhkkkmm", "duuuooduuuoo", 0, 0);
    expect("", "", 0, 0);
    expect("kkkaaaa", "fffbbbb", 0, 0);
}

/* An optimizer of small kernels with no name that tells. */
static void test_loop(void **state)
{
    (void)state;
    expect("hkkkkaaaakk hkkkkaaaakk hkkkkaaaakk hkkkk", "dffffbbbboo dffffbbbboo dffffbbbboo deeee", 3, 2);
    expect("hkkkkaaaakk hkkkkaaaakk hkkkk hkkkkaaaakk hkkkkaaaa",
           "dffffbbbboo dffffbbbboo deeee dffffbbbboo dffffbbbb", 3, 2);
    expect("kkkkaaaakk kkkkaaaa", "ffffbbbbuu uuuubbbb", 0, 0);
    expect("hkkkkaaaar hkkkkaaaar hkkkkaaaa", "dffffbbbbo dffffbbbbo dffffbbbb", 0,
           0); /* a copy is no update */
}

static void test_inside_backward(void **state)
{
    (void)state;
    expect("hkkkkaAaA hkkkkaAaA", "dffffbobo dffffbobo", 0, 0);
}

/* Bursts: what is cut off tells only what it can. */
static void test_bursts(void **state)
{
    (void)state;
    expect("hkkkkaaaam hkkkkaaaam hk| kkaaaam hkkkkaaaam|", "dffffbbbbo dffffbbbbo d?| ffbbbbo dffffbbbbo|",
           4, 2);
    expect("hkkkkaaaam hkkkkaaaam hkkkkhkkkkhk|", "dffffbbbbo dffffbbbbo deeeed????d?", 2, 1);
    expect("hkkkkaaaa|kkm", "dffffbbbb|ooo", 0, 0);
    expect("hkkkkaaaam |kk| hkkkkaaaam", "dffffbbbbo |??| dffffbbbbo", 2, 0);
}

static void test_graphs(void **state)
{
    (void)state;
    expect("hkkkkaaaam hg hg hg", "dffffbbbbo df df df", 4, 3);
    expect("hg hg hkkkkhkkkk hg", "df df deeeedeeee df", 3, 2);
    expect("kkk hg rhg", "uuu df fdf", 2, 1);
    /* A backward pass launched as a graph by the autograd engine. */
    expect("hkkpm hkkpm", "dffbo dffbo", 2, 1);
}

static void test_ranges(void **state)
{
    (void)state;
    struct kj_phase_launch l = launch_of('n');
    l.range = KJ_PHASE_EVALUATION;
    assert_int_equal(kj_phase_of_launch(&l), KJ_PHASE_EVALUATION);
    static const struct {
        const char *name;
        int phase;
    } names[] = {{"forward", KJ_PHASE_FORWARD},
                 {"Forward pass", KJ_PHASE_FORWARD},
                 {"forward-compute", KJ_PHASE_FORWARD},
                 {"forward-backward", -1},
                 {"forwarded", -1},
                 {"BACKWARD", KJ_PHASE_BACKWARD},
                 {"loss.backward()", KJ_PHASE_BACKWARD},
                 {"Optimizer.step#AdamW.step", KJ_PHASE_OPTIMIZER},
                 {"optimizer_step", KJ_PHASE_OPTIMIZER},
                 {"optional", -1},
                 {"opt", KJ_PHASE_OPTIMIZER},
                 {"eval step 3", KJ_PHASE_EVALUATION},
                 {"Validation #1", KJ_PHASE_EVALUATION},
                 {"value", -1},
                 {"DataParallel.forward", -1},
                 {"data_loading", KJ_PHASE_DATA},
                 {"dataloader", KJ_PHASE_DATA},
                 {"allreduce_gradients", KJ_PHASE_COMMUNICATION},
                 {"epoch 3", -1},
                 {"", -1},
                 {NULL, -1}};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (kj_phase_of_range(names[i].name) != names[i].phase)
            fail_msg("range %s is of phase %d", names[i].name, kj_phase_of_range(names[i].name));
    for (int who = 0; who < 3; who++)
        for (int phase = 0; phase < KJ_PHASE_COUNT; phase++) {
            assert_int_equal(KJ_ROLE_WHO(KJ_ROLE_IN(who, phase)), who);
            assert_int_equal(KJ_ROLE_RANGE(KJ_ROLE_IN(who, phase)), phase);
        }
    assert_int_equal(KJ_ROLE_RANGE(2), -1);
}

static void test_kernel_names(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int phase;
    } names[] = {
        {"_ZN2at6native12_GLOBAL__N_125multi_tensor_apply_kernelINS1_18TensorListMetadataILi4EEE",
         KJ_PHASE_OPTIMIZER},
        {"_Z18multi_tensor_apply_kernelI", KJ_PHASE_OPTIMIZER},
        {"FusedAdamMathFunctor", KJ_PHASE_OPTIMIZER},
        {"void lamb_stage1<float>", KJ_PHASE_OPTIMIZER},
        {"vectorized_elementwise_kernel{lambda()#1}", -1},
        {"ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", KJ_PHASE_COMMUNICATION},
        {"ncclKernel_Broadcast", KJ_PHASE_COMMUNICATION},
        {"ampere_sgemm_128x64_nn", -1},
        {"_ZN2at6native29vectorized_elementwise_kernelILi4E", -1},
        {"", -1}};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (kj_phase_of_kernel(names[i].name) != names[i].phase)
            fail_msg("kernel %s is of phase %d", names[i].name, kj_phase_of_kernel(names[i].name));
}

/* No order of launches may be read or written past its end, nor leave a launch without an answer. */
static void test_any_sequence(void **state)
{
    (void)state;
    static const char alphabet[] = "kkkamnhr|gpA";
    uint64_t random = 1;
    for (int round = 0; round < 20000; round++) {
        char text[64];
        size_t length = round % 60, seen = 0;
        for (size_t i = 0; i < length; i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            text[i] = alphabet[(random >> 33) % (sizeof(alphabet) - 1)];
        }
        text[length] = 0;
        struct kj_phase_launch launches[64];
        struct kj_phase_facts facts = {0};
        struct kj_phase_mark *marks;
        size_t count = read_sequence(text, launches, &facts), mark_count;
        bool cut = strchr(text, '|') != NULL;
        int8_t phases[64];
        memset(phases, 99, sizeof(phases));
        assert_int_equal(kj_phases_find(launches, count, &facts, phases, &marks, &mark_count), 0);
        for (size_t i = 0; i < count; i++) {
            int own = kj_phase_of_launch(&launches[i]);
            assert_true(phases[i] >= (cut ? KJ_PHASE_UNKNOWN : 0) && phases[i] < KJ_PHASE_COUNT);
            assert_true(own < 0 || phases[i] == own);
            assert_true(facts.backward || own >= 0 || phases[i] == KJ_PHASE_UNATTRIBUTED);
        }
        for (size_t i = 0; i < mark_count; i++) {
            assert_true(marks[i].launch < count && (i == 0 || marks[i].launch > seen));
            seen = marks[i].launch;
        }
        free(marks);
    }
}

/* Sums of parts of classes: whole microjoules, bounds from the classes' own. */
static void test_labels(void **state)
{
    (void)state;
    const struct kj_model_class classes[] = {{.launches = 2000, .mean_ns = 1e6},
                                             {.launches = 3000, .mean_ns = 1e6}};
    const struct kj_reading powers[] = {{1 * KJ_NS_PER_S, 60000}, {4 * KJ_NS_PER_S, 300000}};
    const struct kj_sensor_series series = {.readings = powers, .count = 2};
    const double shares[] = {1, 0, 0, 1.0 / 3, 1.0 / 3, 1.0 / 3};
    const struct kj_model_input input = {.end_ns = 10 * KJ_NS_PER_S,
                                         .classes = classes,
                                         .class_count = 2,
                                         .label_share = shares,
                                         .label_count = 3,
                                         .series = &series,
                                         .series_count = 1,
                                         .total_known = true,
                                         .total_uj = 1700000001};
    const struct kj_model_options options = {.method = KJ_MODEL_TIME_PROPORTIONAL};
    struct kj_model_result *r = NULL;
    struct kj_error error = {0};
    assert_int_equal(kj_model_attribute(&input, &options, &r, &error), 0);
    assert_int_equal(r->label_count, 3);
    int64_t sum_uj = 0;
    for (size_t l = 0; l < 3; l++) {
        const struct kj_model_estimate *e = &r->labels[l].energy;
        sum_uj += e->energy_uj;
        assert_true(0 <= e->low_uj && e->low_uj <= e->energy_uj && e->energy_uj <= e->high_uj);
        assert_true(e->high_uj <= r->kernels_uj);
    }
    assert_int_equal(sum_uj, r->kernels_uj);
    int64_t third_uj = r->classes[1].energy.energy_uj / 3;
    assert_in_range(r->labels[1].energy.energy_uj, third_uj - 2, third_uj + 2);
    assert_true(r->labels[1].energy.high_uj <= r->classes[1].energy.high_uj / 3 + 2);
    kj_model_result_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_training),     cmocka_unit_test(test_evaluation),
        cmocka_unit_test(test_set_up),       cmocka_unit_test(test_no_training),
        cmocka_unit_test(test_loop),         cmocka_unit_test(test_inside_backward),
        cmocka_unit_test(test_bursts),       cmocka_unit_test(test_graphs),
        cmocka_unit_test(test_ranges),       cmocka_unit_test(test_kernel_names),
        cmocka_unit_test(test_any_sequence), cmocka_unit_test(test_labels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
