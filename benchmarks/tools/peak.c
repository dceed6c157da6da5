// The fastest arithmetic there is on this processor: fused multiply-adds on registers only, BYTES at once.
#include <time.h>

#define CHAINS 12  // as many independent sums as hide the latency of one (4 or 5 cycles on two units), and fit registers

typedef float vector __attribute__((vector_size(BYTES)));

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

// Processor seconds of this thread for so many rounds of CHAINS fused multiply-adds.
double run(long rounds) {
    volatile float start = 0.5f, factor = 0.999f, term = 0.001f;
    vector sums[CHAINS], times = (vector){0} + factor, plus = (vector){0} + term;
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) sums[i] = (vector){0} + start * (float)i;
    const double begun = now();
    for (long round = 0; round < rounds; round++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) sums[i] = sums[i] * times + plus;
    }
    const double took = now() - begun;
    vector all = sums[0];
#pragma GCC unroll 16
    for (int i = 1; i < CHAINS; i++) all += sums[i];
    volatile float used = all[0];
    (void)used;
    return took;
}

int chains(void) { return CHAINS; }
