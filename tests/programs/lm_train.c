/* SPDX-License-Identifier: Apache-2.0
 *
 * lm_train - trains a small language model in plain C with OpenMP: byte tokens, one transformer block (layer
 * norm, causal attention, GELU MLP), cross entropy, hand-written backward pass, AdamW, evaluation on held-out
 * text, a sample at the end. Knows nothing of kjoule. stdout is the same whatever the number of threads: sums
 * are taken in a fixed order.
 *
 *     lm_train [--text FILE] [--steps N] [--seed N] [--exit STATUS]
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 64, HIDDEN = 4 * WIDTH, CONTEXT = 64, BATCH = 8, ROWS = BATCH * CONTEXT, VOCAB_CAP = 128 };

/* Every parameter once: name, rows, columns, standard deviation at the start (< 0: all ones). */
#define PARAMETERS(X)                                                                                        \
    X(token, vocab, WIDTH, 0.08f)                                                                            \
    X(position, CONTEXT, WIDTH, 0.02f)                                                                       \
    X(norm1, 1, WIDTH, -1.0f)                                                                                \
    X(qkv, WIDTH, 3 * WIDTH, 0.1f)                                                                           \
    X(project, WIDTH, WIDTH, 0.05f)                                                                          \
    X(norm2, 1, WIDTH, -1.0f)                                                                                \
    X(up, WIDTH, HIDDEN, 0.1f)                                                                               \
    X(down, HIDDEN, WIDTH, 0.05f)                                                                            \
    X(norm3, 1, WIDTH, -1.0f)                                                                                \
    X(head, WIDTH, vocab, 0.1f)

struct tensors {
#define X(name, rows, columns, sd) float *name;
    PARAMETERS(X)
#undef X
};

static int vocab;
static size_t parameter_count;
static float *parameters, *gradients, *moment1, *moment2;
static struct tensors P, G; /* views of parameters and gradients */

/* Activations of one batch, and their gradients. */
static float x0[ROWS][WIDTH], n1[ROWS][WIDTH], qkv[ROWS][3 * WIDTH], mixed[ROWS][WIDTH], x1[ROWS][WIDTH],
    n2[ROWS][WIDTH], up[ROWS][HIDDEN], act[ROWS][HIDDEN], x2[ROWS][WIDTH], n3[ROWS][WIDTH],
    logits[ROWS][VOCAB_CAP];
static float dx[ROWS][WIDTH], dn[ROWS][WIDTH], dqkv[ROWS][3 * WIDTH], dmixed[ROWS][WIDTH], dact[ROWS][HIDDEN],
    dlogits[ROWS][VOCAB_CAP];
static float attention[BATCH][CONTEXT][CONTEXT], dattention[BATCH][CONTEXT][CONTEXT];
static float inverse1[ROWS], inverse2[ROWS], inverse3[ROWS], row_loss[ROWS];
static unsigned char input[ROWS], target[ROWS];
static unsigned long long random_state = 42;

static float random_uniform(void)
{
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (float)(random_state >> 40) / (float)(1 << 24);
}

static float random_normal(void)
{
    float radius = sqrtf(-2.0f * logf(random_uniform() + 1e-7f));
    return radius * cosf(6.2831853f * random_uniform());
}

static void bind_tensors(struct tensors *t, float *at)
{
#define X(name, rows, columns, sd) t->name = at, at += (size_t)(rows) * (columns);
    PARAMETERS(X)
#undef X
}

static void make_parameters(void)
{
#define X(name, rows, columns, sd) parameter_count += (size_t)(rows) * (columns);
    PARAMETERS(X)
#undef X
    parameters = calloc(parameter_count * 4, sizeof(float));
    if (!parameters)
        exit(1);
    gradients = parameters + parameter_count;
    moment1 = gradients + parameter_count;
    moment2 = moment1 + parameter_count;
    bind_tensors(&P, parameters);
    bind_tensors(&G, gradients);
#define X(name, rows, columns, sd)                                                                           \
    for (size_t i = 0; i < (size_t)(rows) * (columns); i++)                                                  \
        P.name[i] = (sd) < 0 ? 1.0f : (sd)*random_normal();
    PARAMETERS(X)
#undef X
}

/* out[r][:] (+)= in[r][:] x weight; strides are the row lengths in memory. */
static void matmul(float *out, int out_stride, const float *in, int in_stride, const float *weight, int n_in,
                   int n_out, int add)
{
#pragma omp parallel for schedule(static)
    for (int r = 0; r < ROWS; r++) {
        float *o = out + (size_t)r * out_stride;
        if (!add)
            memset(o, 0, sizeof(float) * n_out);
        for (int i = 0; i < n_in; i++) {
            float a = in[(size_t)r * in_stride + i];
            const float *w = weight + (size_t)i * n_out;
            for (int j = 0; j < n_out; j++)
                o[j] += a * w[j];
        }
    }
}

/* Gradients of matmul: din = dout x weight', dweight += in' x dout. */
static void matmul_back(float *din, int din_stride, float *dweight, const float *dout, int dout_stride,
                        const float *in, int in_stride, const float *weight, int n_in, int n_out)
{
#pragma omp parallel for schedule(static)
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < n_in; i++) {
            const float *w = weight + (size_t)i * n_out, *d = dout + (size_t)r * dout_stride;
            float sum = 0;
            for (int j = 0; j < n_out; j++)
                sum += d[j] * w[j];
            din[(size_t)r * din_stride + i] = sum;
        }
#pragma omp parallel for schedule(static)
    for (int i = 0; i < n_in; i++)
        for (int r = 0; r < ROWS; r++) {
            float a = in[(size_t)r * in_stride + i], *g = dweight + (size_t)i * n_out;
            const float *d = dout + (size_t)r * dout_stride;
            for (int j = 0; j < n_out; j++)
                g[j] += a * d[j];
        }
}

/* Root-mean-square norm with a learned scale. */
static void norm(float (*out)[WIDTH], float *inverse, float (*in)[WIDTH], const float *scale)
{
#pragma omp parallel for schedule(static)
    for (int r = 0; r < ROWS; r++) {
        float sum = 0;
        for (int i = 0; i < WIDTH; i++)
            sum += in[r][i] * in[r][i];
        inverse[r] = 1.0f / sqrtf(sum / WIDTH + 1e-5f);
        for (int i = 0; i < WIDTH; i++)
            out[r][i] = in[r][i] * inverse[r] * scale[i];
    }
}

/* Adds the gradient of norm to din. */
static void norm_back(float (*din)[WIDTH], float *dscale, float (*dout)[WIDTH], float (*in)[WIDTH],
                      const float *inverse, const float *scale)
{
#pragma omp parallel for schedule(static)
    for (int r = 0; r < ROWS; r++) {
        float dot = 0;
        for (int i = 0; i < WIDTH; i++)
            dot += dout[r][i] * scale[i] * in[r][i];
        dot *= inverse[r] * inverse[r] / WIDTH;
        for (int i = 0; i < WIDTH; i++)
            din[r][i] += inverse[r] * (dout[r][i] * scale[i] - in[r][i] * dot);
    }
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < WIDTH; i++)
            dscale[i] += dout[r][i] * in[r][i] * inverse[r];
}

static void attend(void)
{
    const float scale = 1.0f / sqrtf(WIDTH);
#pragma omp parallel for schedule(static)
    for (int row = 0; row < ROWS; row++) {
        int b = row / CONTEXT, t = row % CONTEXT;
        float *a = attention[b][t], most = -1e30f, sum = 0;
        for (int s = 0; s <= t; s++) {
            const float *key = qkv[b * CONTEXT + s] + WIDTH;
            a[s] = 0;
            for (int i = 0; i < WIDTH; i++)
                a[s] += qkv[row][i] * key[i];
            a[s] *= scale;
            most = fmaxf(most, a[s]);
        }
        for (int s = 0; s <= t; s++)
            sum += a[s] = expf(a[s] - most);
        memset(mixed[row], 0, sizeof(mixed[row]));
        for (int s = 0; s <= t; s++) {
            a[s] /= sum;
            for (int i = 0; i < WIDTH; i++)
                mixed[row][i] += a[s] * qkv[b * CONTEXT + s][2 * WIDTH + i];
        }
    }
}

static void attend_back(void)
{
    const float scale = 1.0f / sqrtf(WIDTH);
    memset(dqkv, 0, sizeof(dqkv));
#pragma omp parallel for schedule(static)
    for (int b = 0; b < BATCH; b++)
        for (int t = 0; t < CONTEXT; t++) {
            int row = b * CONTEXT + t;
            float *a = attention[b][t], *da = dattention[b][t], dot = 0;
            for (int s = 0; s <= t; s++) {
                int other = b * CONTEXT + s;
                da[s] = 0;
                for (int i = 0; i < WIDTH; i++) {
                    da[s] += dmixed[row][i] * qkv[other][2 * WIDTH + i];
                    dqkv[other][2 * WIDTH + i] += a[s] * dmixed[row][i];
                }
                dot += a[s] * da[s];
            }
            for (int s = 0; s <= t; s++) {
                float d = a[s] * (da[s] - dot) * scale;
                for (int i = 0; i < WIDTH; i++) {
                    dqkv[row][i] += d * qkv[b * CONTEXT + s][WIDTH + i];
                    dqkv[b * CONTEXT + s][WIDTH + i] += d * qkv[row][i];
                }
            }
        }
}

static float gelu_gate(float x)
{
    return 1.0f / (1.0f + expf(-1.702f * x));
}

/* Mean cross entropy of the batch in input and target. */
static float forward(void)
{
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < WIDTH; i++)
            x0[r][i] = P.token[input[r] * WIDTH + i] + P.position[(r % CONTEXT) * WIDTH + i];
    norm(n1, inverse1, x0, P.norm1);
    matmul(qkv[0], 3 * WIDTH, n1[0], WIDTH, P.qkv, WIDTH, 3 * WIDTH, 0);
    attend();
    memcpy(x1, x0, sizeof(x1));
    matmul(x1[0], WIDTH, mixed[0], WIDTH, P.project, WIDTH, WIDTH, 1);
    norm(n2, inverse2, x1, P.norm2);
    matmul(up[0], HIDDEN, n2[0], WIDTH, P.up, WIDTH, HIDDEN, 0);
#pragma omp parallel for schedule(static)
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < HIDDEN; i++)
            act[r][i] = up[r][i] * gelu_gate(up[r][i]);
    memcpy(x2, x1, sizeof(x2));
    matmul(x2[0], WIDTH, act[0], HIDDEN, P.down, HIDDEN, WIDTH, 1);
    norm(n3, inverse3, x2, P.norm3);
    matmul(logits[0], VOCAB_CAP, n3[0], WIDTH, P.head, WIDTH, vocab, 0);
#pragma omp parallel for schedule(static)
    for (int r = 0; r < ROWS; r++) {
        float most = logits[r][0], sum = 0;
        for (int v = 1; v < vocab; v++)
            most = fmaxf(most, logits[r][v]);
        for (int v = 0; v < vocab; v++)
            sum += dlogits[r][v] = expf(logits[r][v] - most);
        for (int v = 0; v < vocab; v++)
            dlogits[r][v] /= sum;
        row_loss[r] = -logf(dlogits[r][target[r]] + 1e-9f);
    }
    float loss = 0;
    for (int r = 0; r < ROWS; r++)
        loss += row_loss[r];
    return loss / ROWS;
}

static void backward(void)
{
    memset(gradients, 0, parameter_count * sizeof(float));
    for (int r = 0; r < ROWS; r++) {
        dlogits[r][target[r]] -= 1.0f;
        for (int v = 0; v < vocab; v++)
            dlogits[r][v] /= ROWS;
    }
    memset(dx, 0, sizeof(dx));
    matmul_back(dn[0], WIDTH, G.head, dlogits[0], VOCAB_CAP, n3[0], WIDTH, P.head, WIDTH, vocab);
    norm_back(dx, G.norm3, dn, x2, inverse3, P.norm3);
    matmul_back(dact[0], HIDDEN, G.down, dx[0], WIDTH, act[0], HIDDEN, P.down, HIDDEN, WIDTH);
#pragma omp parallel for schedule(static)
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < HIDDEN; i++) {
            float gate = gelu_gate(up[r][i]);
            dact[r][i] *= gate + 1.702f * up[r][i] * gate * (1 - gate);
        }
    matmul_back(dn[0], WIDTH, G.up, dact[0], HIDDEN, n2[0], WIDTH, P.up, WIDTH, HIDDEN);
    norm_back(dx, G.norm2, dn, x1, inverse2, P.norm2);
    matmul_back(dmixed[0], WIDTH, G.project, dx[0], WIDTH, mixed[0], WIDTH, P.project, WIDTH, WIDTH);
    attend_back();
    matmul_back(dn[0], WIDTH, G.qkv, dqkv[0], 3 * WIDTH, n1[0], WIDTH, P.qkv, WIDTH, 3 * WIDTH);
    norm_back(dx, G.norm1, dn, x0, inverse1, P.norm1);
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < WIDTH; i++) {
            G.token[input[r] * WIDTH + i] += dx[r][i];
            G.position[(r % CONTEXT) * WIDTH + i] += dx[r][i];
        }
}

static void adamw(int step, float rate)
{
    const float beta1 = 0.9f, beta2 = 0.99f, decay = 0.01f;
    float correct1 = 1 - powf(beta1, step), correct2 = 1 - powf(beta2, step);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < parameter_count; i++) {
        moment1[i] = beta1 * moment1[i] + (1 - beta1) * gradients[i];
        moment2[i] = beta2 * moment2[i] + (1 - beta2) * gradients[i] * gradients[i];
        float step_size = moment1[i] / correct1 / (sqrtf(moment2[i] / correct2) + 1e-8f);
        parameters[i] -= rate * (step_size + decay * parameters[i]);
    }
}

static void take_batch(const unsigned char *tokens, size_t count)
{
    for (int b = 0; b < BATCH; b++) {
        size_t at = (size_t)(random_uniform() * (float)(count - CONTEXT - 1));
        memcpy(input + b * CONTEXT, tokens + at, CONTEXT);
        memcpy(target + b * CONTEXT, tokens + at + 1, CONTEXT);
    }
}

static float evaluate(const unsigned char *tokens, size_t count)
{
    unsigned long long keep = random_state;
    float loss = 0;
    random_state = 7;
    for (int i = 0; i < 2; i++) {
        take_batch(tokens, count);
        loss += forward() / 2;
    }
    random_state = keep;
    return loss;
}

/* Reads the text and numbers its bytes in order of first use. Returns the tokens. */
static unsigned char *read_tokens(const char *path, size_t *ret_count, unsigned char *ret_byte_of)
{
    FILE *file = fopen(path, "r");
    unsigned char *tokens = malloc(1 << 20);
    int token_of[256];
    size_t count = 0;
    if (!file || !tokens) {
        perror(path);
        exit(1);
    }
    memset(token_of, -1, sizeof(token_of));
    for (int c; (c = getc(file)) != EOF && count < (1 << 20);) {
        if (token_of[c] < 0 && vocab < VOCAB_CAP) {
            ret_byte_of[vocab] = (unsigned char)c;
            token_of[c] = vocab++;
        }
        tokens[count++] = (unsigned char)(token_of[c] < 0 ? 0 : token_of[c]);
    }
    fclose(file);
    if (count < 20 * CONTEXT) {
        fprintf(stderr, "%s: too short to learn from\n", path);
        exit(1);
    }
    *ret_count = count;
    return tokens;
}

/* Continues the first words of the text, always taking the likeliest byte. */
static void print_sample(const unsigned char *tokens, const unsigned char *byte_of)
{
    memcpy(input, tokens, CONTEXT);
    printf("sample \"");
    for (int i = 0; i < 40; i++) {
        int best = 0;
        forward();
        for (int v = 1; v < vocab; v++)
            best = logits[CONTEXT - 1][v] > logits[CONTEXT - 1][best] ? v : best;
        putchar(byte_of[best] < ' ' ? ' ' : byte_of[best]);
        memmove(input, input + 1, CONTEXT - 1);
        input[CONTEXT - 1] = (unsigned char)best;
    }
    printf("\"\n");
}

int main(int argc, char **argv)
{
    const char *text = "tests/programs/data/work_and_heat.txt";
    int steps = 60, status = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--text"))
            text = argv[i + 1];
        else if (!strcmp(argv[i], "--steps"))
            steps = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--seed"))
            random_state = strtoull(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "--exit"))
            status = atoi(argv[i + 1]);
    }
    unsigned char byte_of[VOCAB_CAP] = {0};
    size_t count;
    unsigned char *tokens = read_tokens(text, &count, byte_of);
    size_t train_count = count * 9 / 10;
    make_parameters();
    printf("text %zu bytes, vocabulary %d, parameters %zu\n", count, vocab, parameter_count);
    for (int step = 1; step <= steps; step++) {
        take_batch(tokens, train_count);
        float loss = forward();
        backward();
        adamw(step, 3e-3f);
        if (step == 1 || step % 10 == 0 || step == steps)
            printf("step %4d  train %.3f  evaluation %.3f\n", step, loss,
                   evaluate(tokens + train_count, count - train_count));
        fflush(stdout);
    }
    print_sample(tokens, byte_of);
    free(tokens);
    free(parameters);
    return status;
}
