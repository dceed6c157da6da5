#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifndef STEP
#define STEP(index)  // what times the steps of a network defines it
#endif

#if defined(__AVX512F__)
#define LANES 16
#define EVERY_SECOND(i) i, i + 2, i + 4, i + 6, i + 8, i + 10, i + 12, i + 14, i + 16, i + 18, i + 20, i + 22, i + 24, i + 26, i + 28, i + 30
#define IN_TURN(i) i, i + 16, i + 1, i + 17, i + 2, i + 18, i + 3, i + 19, i + 4, i + 20, i + 5, i + 21, i + 6, i + 22, i + 7, i + 23
#elif defined(__AVX__)
#define LANES 8
#define EVERY_SECOND(i) i, i + 2, i + 4, i + 6, i + 8, i + 10, i + 12, i + 14
#define IN_TURN(i) i, i + 8, i + 1, i + 9, i + 2, i + 10, i + 3, i + 11
#else
#define LANES 4
#define EVERY_SECOND(i) i, i + 2, i + 4, i + 6
#define IN_TURN(i) i, i + 4, i + 1, i + 5
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
enum { REGISTERS = 32 };
#else
enum { REGISTERS = 16 };
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (__typeof__((a) > (b))){__VA_ARGS__})
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#define APART static __attribute__((noinline)) void
#define ALIGNED __attribute__((aligned(64)))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef float loose_vec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));
typedef float half_vec __attribute__((vector_size(LANES * sizeof(float) / 2)));
typedef float loose_half __attribute__((vector_size(LANES * sizeof(float) / 2), aligned(sizeof(float))));
typedef int mask __attribute__((vector_size(LANES * sizeof(int))));
typedef float quad __attribute__((vector_size(16)));
typedef float octet __attribute__((vector_size(32)));
typedef float loose_octet __attribute__((vector_size(32), aligned(sizeof(float))));
typedef float loose_quad __attribute__((vector_size(16), aligned(sizeof(float))));

// Vectors are written whole: up to LANES - 1 floats behind the end of a row are written too, and are then overwritten
// by the row that follows. Behind every value of the network there is room for that.
INLINE vec load(const float *from) { return *(const loose_vec *)from; }

INLINE void store(float *to, vec value) { *(loose_vec *)to = value; }

INLINE half_vec load_half(const float *from) { return *(const loose_half *)from; }

INLINE void store_half(float *to, half_vec value) { *(loose_half *)to = value; }

INLINE quad load_quad(const float *from) { return *(const loose_quad *)from; }

INLINE void store_quad(float *to, quad value) { *(loose_quad *)to = value; }

INLINE int least(int a, int b) { return a < b ? a : b; }

INLINE vec chosen(mask which, vec a, vec b) { return (vec)((which & (mask)a) | (~which & (mask)b)); }

// Where one is not a number, the second one.
INLINE vec larger(vec a, vec b) { return chosen(a > b, a, b); }

INLINE vec smaller(vec a, vec b) { return chosen(a < b, a, b); }

INLINE vec all(float value) { return (vec){0} + value; }

INLINE int most(int a, int b) { return a > b ? a : b; }

// Not a number becomes `low`, so that what is made of the result can be an index.
INLINE float within(float value, float low, float high) {
    const float above = value > low ? value : low;
    return above < high ? above : high;
}

INLINE float clamp(float value, float low, float high) {
    const float above = low > value ? low : value;
    return high < above ? high : above;
}

INLINE vec moved(vec value, float by, float low, float high) {
    return smaller(all(high), larger(all(low), value + by));
}

// The first `count` lanes, fewer than all.
INLINE void store_part(float *to, vec value, int count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)value);
#elif defined(__AVX__)
    static const int which[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
    _mm256_maskstore_ps(to, _mm256_loadu_si256((const __m256i *)(which + LANES - count)), (__m256)value);
#else
    memcpy(to, &value, (size_t)count * sizeof(float));
#endif
}

// What a convolution is: sizes of its input, of its output before pooling, as far as anyone reads it, and its own.
typedef struct {
    int channels, height, width;
    int out_channels, out_height, out_width;
    int kernel_height, kernel_width, stride_height, stride_width, pad_top, pad_left, dilation_height, dilation_width;
    int groups;
    int pooled;      // whether the largest of every 2×2 is taken
    float low, high; // what the output is clamped to
    int block;       // output channels that are computed together
    int strip;       // output rows that are computed at once
} convolution;

// What `from` holds, and `more` added to it where there is any.
INLINE void copy(float *to, const float *from, const float *more, int count) {
    int i = 0;
    for (; i + LANES / 2 < count; i += LANES) store(to + i, more ? load(from + i) + load(more + i) : load(from + i));
    if (i < count) store_half(to + i, more ? load_half(from + i) + load_half(more + i) : load_half(from + i));
}

INLINE void fill(float *to, int count) {
    for (int i = 0; i < count; i += LANES) store(to + i, (vec){0});
}

// Rows of the input from `y` on with the zeros around them, `height` × `width` of each channel.
INLINE void surrounded(convolution c, const float *in, int y, int height, int width, float *to) {
    const int inside = least(c.width, width - c.pad_left);
    for (int i = 0; i < c.channels * height; i++, to += width) {
        const int row = y + i % height - c.pad_top;
        fill(to, row < 0 || row >= c.height ? width : c.pad_left);
        if (row < 0 || row >= c.height) continue;
        copy(to + c.pad_left, in + (i / height * c.height + row) * c.width, NULL, inside);
        fill(to + c.pad_left + inside, width - c.pad_left - inside);
    }
}

// Whether a kernel stays inside of the input.
INLINE int inside(convolution c) {
    return c.pad_left == 0 && c.pad_top == 0 &&
           (c.out_height - 1) * c.stride_height + (c.kernel_height - 1) * c.dilation_height < c.height &&
           (c.out_width - 1) * c.stride_width + (c.kernel_width - 1) * c.dilation_width < c.width;
}

// Whether outputs lie as inputs do.
INLINE int untouched(convolution c) {
    return inside(c) && c.kernel_height * c.kernel_width * c.stride_height * c.stride_width == 1 && c.out_width == c.width;
}

// What a kernel reads, so that a row of outputs is followed by the next one without a gap: `rows` rows, `step` apart,
// for every channel, row and column of the kernel. Where there is `more`, it is added.
INLINE void columns(const float *in, const float *more, int channels, int plane, int width, int kernel_rows,
                    int kernel_row, int kernel_columns, int kernel_column, int step, int stride, int rows,
                    int out_width, float *to) {
    for (int channel = 0; channel < channels; channel++)
        for (int k = 0; k < kernel_rows * kernel_columns; k++) {
            int at = channel * plane + k / kernel_columns * kernel_row * width + k % kernel_columns * kernel_column;
            for (int row = 0; row < rows; row++, to += out_width, at += step * width)
                if (stride == 1)
                    copy(to, in + at, more ? more + at : NULL, out_width);
                else
                    for (int x = 0; x < out_width; x++) to[x] = in[at + x * stride];
        }
}

// The next outputs of a channel, of which `left` are to come until those of others, which are not to be overwritten: of
// another channel, strip or thread.
INLINE void store_row(float *to, vec value, int left) {
    if (left < LANES)
        store_part(to, value, left);
    else
        store(to, value);
}

// What becomes of sums once they are complete: a bias a channel, and bounds.
typedef struct {
    const float *bias;
    float low, high;
} ending;

// The first `left` lanes of a sum; behind them stands another channel, which is not to be overwritten.
INLINE void finish(float *to, vec value, const ending *end, int channel, int left) {
    store_row(to, moved(value, end->bias[channel], end->low, end->high), left);
}

// `channels` × `vectors` sums in registers, each vector of inputs read once for all of them; `more` adds to what is there.
// The weights of an input are followed by those of the next one after `block` of them.
INLINE void sums(const int channels, const int vectors, const int block, const float *in, int planes, int plane, int rows,
                 int row, const float *weights, int more, float *out, int pitch, const ending *end, int left) {
    vec sum[8][6];
    UNROLL for (int c = 0; c < channels; c++) {
        UNROLL for (int v = 0; v < vectors; v++) sum[c][v] = (vec){0};
    }
    for (int p = 0; p < planes; p++, in += plane) {
        const float *from = in;
        for (int r = 0; r < rows; r++, from += row, weights += block) {
            vec x[6];
            UNROLL for (int v = 0; v < vectors; v++) x[v] = load(from + v * LANES);
            UNROLL for (int c = 0; c < channels; c++) {
                UNROLL for (int v = 0; v < vectors; v++) sum[c][v] += x[v] * weights[c];
            }
        }
    }
    UNROLL for (int c = 0; c < channels; c++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            float *to = out + c * pitch + v * LANES;
            const vec all_of_it = more ? load(to) + sum[c][v] : sum[c][v];
            if (end)
                finish(to, all_of_it, end, c, left - v * LANES);
            else
                store(to, all_of_it);
        }
    }
}

// The same for half a vector of positions.
INLINE void half_sums(const int channels, const float *in, int planes, int plane, int rows, int row,
                      const float *weights, int more, float *out, int pitch, const ending *end, int left) {
    half_vec sum[8];
    UNROLL for (int c = 0; c < channels; c++) sum[c] = (half_vec){0};
    for (int p = 0; p < planes; p++, in += plane)
        for (int r = 0; r < rows; r++, weights += channels) {
            const half_vec x = load_half(in + r * row);
            UNROLL for (int c = 0; c < channels; c++) sum[c] += x * weights[c];
        }
    UNROLL for (int c = 0; c < channels; c++) {
        if (end) {
            vec whole = {0};
            memcpy(&whole, &sum[c], sizeof sum[c]);
            finish(out + c * pitch, whole, end, c, left);
        } else
            store_half(out + c * pitch, more ? load_half(out + c * pitch) + sum[c] : sum[c]);
    }
}

enum { SUMMED = 96 };  // products that are added up before they are added to others

// `channels` planes of sums over `planes` × `rows` inputs, `plane` and `row` apart; their weights lie side by side. Some
// planes at a time: they stay in the first cache, and a float is never added to all that went before it. Where all planes
// are added up at once, there may be an `end`.
INLINE void convolve(const int channels, const float *in, int planes, int plane, int rows, int row,
                     const float *weights, int positions, float *out, int pitch, const ending *end) {
    const int some_channels = REGISTERS > 16 || channels < 5 ? channels : (channels + 1) / 2;  // in registers at once
    const int fit = (REGISTERS - 1) / (some_channels + 1), vectors = fit > 6 ? 6 : fit;
    const int parts = (planes * rows + SUMMED - 1) / SUMMED, most_planes = (planes + parts - 1) / parts;
    for (int done = 0; done < planes; done += most_planes, in += most_planes * plane) {
        const int some = least(most_planes, planes - done);
        int i = 0;
        for (; i + (vectors - 1) * LANES < positions; i += vectors * LANES) {
            sums(some_channels, vectors, channels, in + i, some, plane, rows, row, weights, done, out + i, pitch, end,
                 positions - i);
            if (some_channels < channels) {
                const ending others = end ? (ending){end->bias + some_channels, end->low, end->high} : (ending){0};
                sums(channels - some_channels, vectors, channels, in + i, some, plane, rows, row, weights + some_channels,
                     done, out + i + some_channels * pitch, pitch, end ? &others : NULL, positions - i);
            }
        }
        for (; i + LANES / 2 < positions; i += LANES)
            sums(channels, 1, channels, in + i, some, plane, rows, row, weights, done, out + i, pitch, end, positions - i);
        if (i < positions)
            half_sums(channels, in + i, some, plane, rows, row, weights, done, out + i, pitch, end, positions - i);
        weights += some * rows * channels;
    }
}

// Threads that share a run wait here until all have come; `meeting` counts who is here, and how often all were.
INLINE void meet(unsigned meeting[2], int parts) {
    if (parts == 1) return;
    const unsigned round = __atomic_load_n(meeting + 1, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(meeting, 1, __ATOMIC_ACQ_REL) == (unsigned)parts) {
        __atomic_store_n(meeting, 0, __ATOMIC_RELAXED);
        __atomic_store_n(meeting + 1, round + 1, __ATOMIC_RELEASE);
    } else
        for (int turn = 0; __atomic_load_n(meeting + 1, __ATOMIC_ACQUIRE) == round; turn += turn <= 10000)
            if (turn > 10000) sched_yield();
}

// What a thread does of `count` things that `parts` threads share.
INLINE int share(int count, int part, int parts) { return (int)((long)count * part / parts); }

typedef void convolve_block(const float *in, int planes, int plane, int rows, int row, const float *weights,
                            int positions, float *out, int pitch, const ending *end);

// Numbers of a plane of sums.
INLINE int room(int count) { return (count + 15) / 16 * 16; }

// Blocks of output channels, all of which fit into a group, and the first channel of a block.
INLINE int blocks_of(convolution c) { return c.groups * ((c.out_channels / c.groups + c.block - 1) / c.block); }

INLINE int channel_of(convolution c, int block) {
    const int blocks = blocks_of(c) / c.groups;
    return block / blocks * (c.out_channels / c.groups) + block % blocks * c.block;
}

// What a thread computes: every `step`th strip from strip `strip` on, and blocks of output channels.
typedef struct {
    int strip, step, first, end;
} blocks;

// Threads share strips where these can be divided well, else channels.
INLINE blocks blocks_for(convolution c, int part, int parts) {
    const int strips = (c.out_height + c.strip - 1) / c.strip, all_blocks = blocks_of(c);
    if (strips >= 4 * parts || strips % parts == 0) return (blocks){part, parts, 0, all_blocks};
    return (blocks){0, 1, share(all_blocks, part, parts), share(all_blocks, part + 1, parts)};
}

// Some output channels, a block of them at a time, of what `columns` wrote, whose rows are `width` long. Channels of `out`
// are `pitch` apart; with a bias it is what they end as, else their sums.
INLINE void convolve_all(convolution c, blocks which, convolve_block *block, const float *in, int planes, int plane,
                         int rows, int width, const float *weights, int positions, float *out, int pitch,
                         const float *bias) {
    const int blocks = blocks_of(c) / c.groups;
    weights += which.first * planes * rows * c.block;
    for (int i = which.first; i < which.end; i++, weights += planes * rows * c.block) {
        const int channel = channel_of(c, i);
        const ending end = {bias + (bias ? channel : 0), c.low, c.high};
        block(in + i / blocks * planes * plane, planes, plane, rows, c.dilation_height * width, weights, positions,
              out + channel * pitch, pitch, bias ? &end : NULL);
    }
}

// A convolution as it is written: sums over channels, rows and columns of the kernel.
INLINE void plain_convolution(convolution c, convolve_block *block, const float *weights, const float *bias,
                              const float *in, float *out, float *memory, int part, int parts) {
    const blocks which = blocks_for(c, part, parts);
    const int shared = c.stride_height == 1;  // then the rows of columns serve all rows of the kernel
    const int kernel_rows = shared ? 1 : c.kernel_height, span = (c.kernel_height - 1) * c.dilation_height;
    const int width = inside(c) ? c.width : (c.out_width - 1) * c.stride_width + (c.kernel_width - 1) * c.dilation_width + 1;
    for (int y = which.strip * c.strip; y < c.out_height; y += which.step * c.strip) {
        const int rows = least(c.strip, c.out_height - y), read = (rows - 1) * c.stride_height + span + 1;
        const int kept = shared ? read : rows, planes = c.channels * kernel_rows * c.kernel_width;
        const int positions = rows * c.out_width, pitch = room(positions), plane = c.out_height * c.out_width;
        const int direct = !c.pooled && planes / c.groups * (shared ? c.kernel_height : 1) <= SUMMED && c.out_channels / c.groups % c.block == 0;
        const float *from = inside(c) ? in + y * c.stride_height * c.width : memory;
        float *column = memory + (inside(c) ? 0 : room(c.channels * read * width + 16));
        float *sum = column + room(planes * kept * c.out_width + 16);
        if (!inside(c)) surrounded(c, in, y * c.stride_height, read, width, memory);
        if (!untouched(c))
            columns(from, NULL, c.channels, (inside(c) ? c.height : read) * width, width, kernel_rows, c.dilation_height,
                    c.kernel_width, c.dilation_width, c.stride_height, c.stride_width, kept, c.out_width, column);
        convolve_all(c, which, block, untouched(c) ? from : column, planes / c.groups, untouched(c) ? c.height * c.width : kept * c.out_width,
                     shared ? c.kernel_height : 1, c.out_width, weights, positions, direct ? out + y * c.out_width : sum,
                     direct ? plane : pitch, direct ? bias : NULL);
        if (direct) continue;
        for (int channel = channel_of(c, which.first); channel < channel_of(c, which.end); channel++) {
            float *to = out + (channel * c.out_height + y) * c.out_width / (c.pooled ? 4 : 1), *s = sum + channel * pitch;
            if (!c.pooled)
                for (int i = 0; i < positions; i += LANES)
                    store_row(to + i, moved(load(s + i), bias[channel], c.low, c.high), positions - i);
            else
                for (int row = 0; row < rows; row += 2, s += 2 * c.out_width, to += c.out_width / 2)
                    for (int x = 0; x < c.out_width / 2; x += LANES) {
                        const vec first = larger(load(s + 2 * x), load(s + 2 * x + c.out_width));
                        const vec second = larger(load(s + 2 * x + LANES), load(s + 2 * x + c.out_width + LANES));
                        const vec found = larger(SHUFFLE(first, second, EVERY_SECOND(0)), SHUFFLE(first, second, EVERY_SECOND(1)));
                        store_row(to + x, moved(found, bias[channel], c.low, c.high), (rows - row) / 2 * (c.out_width / 2) - x);
                    }
        }
    }
}

// The even columns of rows and the odd ones; the last even one, where it lies behind the row, is zero.
INLINE void phases(const float *in, int channels, int plane, int row, int rows, int width, float *even, float *odd) {
    for (int i = 0; i < channels * rows; i++, even += width, odd += width) {
        const float *from = in + i / rows * plane + i % rows * row;
        for (int x = 0; x < width; x += LANES) {
            const vec first = load(from + 2 * x), second = load(from + 2 * x + LANES);
            store(even + x, SHUFFLE(first, second, EVERY_SECOND(0)));
            store(odd + x, SHUFFLE(first, second, EVERY_SECOND(1)));
        }
        if (2 * width - 2 >= row) even[width - 1] = 0;
    }
}

enum { TILE = 32, WIDE = LANES == 16 ? 32 : 16 };  // output channels side by side in the weights, and in registers
enum { AT_ONCE = (REGISTERS == 32 ? 24 : 12) * LANES / WIDE };  // most positions whose sums are in registers

// `positions` × `wide` sums in registers: outputs side by side, each vector of weights read once for all positions, which
// are `step` apart. The weights of an input are followed by those of the next one after `tile` of them.
INLINE void tall_sums(const int positions, const int wide, const int tile, const float *in, int step, int planes, int plane,
                      int rows, int row, const float *weights, int more, float *out) {
    vec sum[AT_ONCE][WIDE / LANES];
    UNROLL for (int i = 0; i < positions; i++) {
        UNROLL for (int v = 0; v < wide / LANES; v++) sum[i][v] = (vec){0};
    }
    for (int p = 0; p < planes; p++, in += plane) {
        const float *from = in;
        for (int r = 0; r < rows; r++, from += row, weights += tile) {
            vec w[WIDE / LANES];
            UNROLL for (int v = 0; v < wide / LANES; v++) w[v] = load(weights + v * LANES);
            UNROLL for (int i = 0; i < positions; i++) {
                UNROLL for (int v = 0; v < wide / LANES; v++) sum[i][v] += w[v] * from[i * step];
            }
        }
    }
    UNROLL for (int i = 0; i < positions; i++) {
        UNROLL for (int v = 0; v < wide / LANES; v++) {
            float *to = out + i * tile + v * LANES;
            store(to, more ? load(to) + sum[i][v] : sum[i][v]);
        }
    }
}

INLINE void transpose(quad rows[4]) {
    const quad a = SHUFFLE(rows[0], rows[1], 0, 4, 1, 5), b = SHUFFLE(rows[0], rows[1], 2, 6, 3, 7);
    const quad c = SHUFFLE(rows[2], rows[3], 0, 4, 1, 5), d = SHUFFLE(rows[2], rows[3], 2, 6, 3, 7);
    rows[0] = SHUFFLE(a, c, 0, 1, 4, 5);
    rows[1] = SHUFFLE(a, c, 2, 3, 6, 7);
    rows[2] = SHUFFLE(b, d, 0, 1, 4, 5);
    rows[3] = SHUFFLE(b, d, 2, 3, 6, 7);
}

INLINE quad moved_quad(quad value, float by, float low, float high) {
    quad result;
    UNROLL for (int k = 0; k < 4; k++) result[k] = clamp(value[k] + by, low, high);
    return result;
}

// Sums of some output channels side by side into a plane of each, with the bias added, and clamped.
INLINE void into_planes(const float *sum, const float *bias, float low, float high, int channels, int positions, float *out) {
    const int whole = positions < 4 ? 0 : channels - channels % 4;
    for (int channel = 0; channel < whole; channel += 4)
        for (int i = 0; i < positions; i += 4) {
            const int at = least(i, positions - 4);
            quad values[4];
            UNROLL for (int k = 0; k < 4; k++) values[k] = load_quad(sum + (at + k) * TILE + channel);
            transpose(values);
            UNROLL for (int k = 0; k < 4; k++)
                store_quad(out + (channel + k) * positions + at, moved_quad(values[k], bias[channel + k], low, high));
        }
    for (int channel = whole; channel < channels; channel++)
        for (int i = 0; i < positions; i++)
            out[channel * positions + i] = clamp(sum[i * TILE + channel] + bias[channel], low, high);
}

// A convolution of few positions and many channels: vectors go over the output channels, TILE at a time. Of `count`
// examples, which lie `in_step` and `out_step` apart, so that weights are read once for all of them.
INLINE void tall_convolution(convolution c, const float *weights, const float *bias, const float *in, float *out,
                             int in_step, int out_step, int count, float *memory, int part, int parts) {
    const int shared = c.stride_height == 1, positions = c.out_height * c.out_width, row = c.dilation_height * c.out_width;
    const int kernel_rows = shared ? 1 : c.kernel_height, rows = shared ? c.kernel_height : 1;
    const int read = (c.out_height - 1) * c.stride_height + (c.kernel_height - 1) * c.dilation_height + 1;
    const int width = inside(c) ? c.width : (c.out_width - 1) * c.stride_width + (c.kernel_width - 1) * c.dilation_width + 1;
    const int kept = shared ? read : c.out_height, planes = c.channels * kernel_rows * c.kernel_width;
    const int sections = (planes * rows + SUMMED - 1) / SUMMED, most_planes = (planes + sections - 1) / sections;
    const int blocks = (positions + AT_ONCE - 1) / AT_ONCE, some = (positions + blocks - 1) / blocks, last = (blocks - 1) * some;
    const int plane = untouched(c) ? c.height * c.width : kept * c.out_width, sums = TILE * positions;
    const int from_step = untouched(c) ? in_step : room(planes * kept * c.out_width + 16);
    float *sum = memory, *column = sum + room(sums * count + 16), *padded = column + count * from_step;
    const float *from = untouched(c) ? in : column;
    for (int i = 0; i < count && !untouched(c); i++, in += in_step) {
        if (!inside(c)) surrounded(c, in, 0, read, width, padded);
        columns(inside(c) ? in : padded, NULL, c.channels, (inside(c) ? c.height : read) * width, width, kernel_rows,
                c.dilation_height, c.kernel_width, c.dilation_width, c.stride_height, c.stride_width, kept, c.out_width,
                column + i * from_step);
    }
    const int tiles = (c.out_channels + TILE - 1) / TILE, end = share(tiles, part + 1, parts);
    for (int tile = share(tiles, part, parts); tile < end; tile++) {
        const float *w = weights + (size_t)tile * TILE * planes * rows;
        for (int done = 0; done < planes; done += most_planes, w += most_planes * rows * TILE) {
            const int now = least(most_planes, planes - done);
            for (int k = 0; k < count * (TILE / WIDE); k++) {
                const int half = k % (TILE / WIDE) * WIDE, example = k / (TILE / WIDE);
                const float *x = from + example * from_step + done * plane;
                float *to = sum + example * sums + half;
                for (int i = 0; i < last; i += some)
                    tall_sums(some, WIDE, TILE, x + i, 1, now, plane, rows, row, w + half, done, to + i * TILE);
                tall_sums(positions - last, WIDE, TILE, x + last, 1, now, plane, rows, row, w + half, done, to + last * TILE);
            }
        }
        for (int example = 0; example < count; example++)
            into_planes(sum + example * sums, bias + tile * TILE, c.low, c.high, least(TILE, c.out_channels - tile * TILE),
                        positions, out + example * out_step + tile * TILE * positions);
    }
}

// A convolution of every channel by a kernel of its own, some channels at a time and a row of outputs at a time. With a
// stride of 2 the even columns of the input lie before the odd ones.
INLINE void depthwise_convolution(convolution c, const float *weights, const float *bias, const float *in, float *out,
                                  float *memory, int part, int parts) {
    const int span = (c.kernel_height - 1) * c.dilation_height, read = (c.out_height - 1) * c.stride_height + span + 1;
    const int half = c.out_width + c.kernel_width / 2, taps = c.kernel_height * c.kernel_width;
    const int width = c.stride_width == 2 ? 2 * half : c.out_width + (c.kernel_width - 1) * c.dilation_width;
    const int row = c.stride_width == 2 ? half : width;
    const int chunks = (c.channels + c.block - 1) / c.block;
    float *even = memory + room(c.block * read * width + 16), *odd = even + room(c.block * read * half + 16);
    const int end = least(c.channels, share(chunks, part + 1, parts) * c.block);
    for (int first = share(chunks, part, parts) * c.block; first < end; first += c.block) {
        convolution some = c;
        some.channels = least(c.block, end - first);
        surrounded(some, in + first * c.height * c.width, 0, read, width, memory);
        if (c.stride_width == 2) phases(memory, some.channels, read * width, width, read, half, even, odd);
        for (int channel = first; channel < first + some.channels; channel++)
            for (int y = 0; y < c.out_height; y++) {
                float *to = out + (channel * c.out_height + y) * c.out_width;
                const int left = (end - channel) * c.out_height * c.out_width - y * c.out_width;
                for (int x = 0; x < c.out_width; x += LANES) {
                    vec sum = all(bias[channel]);
                    UNROLL for (int k = 0; k < taps; k++) {
                        const int column = k % c.kernel_width, down = k / c.kernel_width * c.dilation_height;
                        const int at = ((channel - first) * read + y * c.stride_height + down) * row + x;
                        const float *from = c.stride_width != 2 ? memory + at + column * c.dilation_width
                                            : column % 2        ? odd + at + column / 2
                                                                : even + at + column / 2;
                        sum += load(from) * weights[channel * taps + k];
                    }
                    store_row(to + x, moved(sum, 0, c.low, c.high), left - x);
                }
            }
    }
}

// The same with three products of half the kernel's columns for two columns of outputs instead of four: with e and o
// the even and odd columns of input and kernel, y[2m] = e·e[m] + o·o[m] and
// y[2m + 1] = (e + o)·(o[m] + e[m + 1]) - e·e[m + 1] - o·o[m].
// Source: Z.-J. Mou, P. Duhamel, "Short-length FIR filters and their use in fast nonrecursive filtering", 1991.
INLINE void fast_convolution(convolution c, convolve_block *block, const float *even_weights,
                             const float *odd_weights, const float *both_weights, const float *bias, const float *in,
                             float *out, float *memory, int part, int parts) {
    const blocks which = blocks_for(c, part, parts);
    const int longer = (c.kernel_width + 1) / 2, shorter = c.kernel_width / 2, half = (c.out_width + 1) / 2;
    const int width = half + longer, span = (c.kernel_height - 1) * c.dilation_height, blocked = c.out_channels + c.block;
    for (int y = which.strip * c.strip; y < c.out_height; y += which.step * c.strip) {
        const int rows = least(c.strip, c.out_height - y), read = rows + span, size = room(c.channels * read * width + 16);
        const int count = rows * half, pitch = room(count), wide_pitch = room(count + rows);
        float *even = memory, *odd = even + size, *padded = odd + size;
        float *even_sums = padded + (inside(c) ? 0 : room(c.channels * read * 2 * width + 16));
        float *odd_sums = even_sums + blocked * wide_pitch, *both_sums = odd_sums + blocked * pitch;
        float *column = both_sums + blocked * pitch;
        if (!inside(c)) surrounded(c, in, y, read, 2 * width, padded);
        if (inside(c))
            phases(in + y * c.width, c.channels, c.height * c.width, c.width, read, width, even, odd);
        else
            phases(padded, c.channels, read * 2 * width, 2 * width, read, width, even, odd);
        columns(even, NULL, c.channels, read * width, width, 1, 0, longer, 1, 1, 1, read, half + 1, column);
        convolve_all(c, which, block, column, c.channels / c.groups * longer, read * (half + 1), c.kernel_height, half + 1,
                     even_weights, count + rows, even_sums, wide_pitch, NULL);
        columns(odd, NULL, c.channels, read * width, width, 1, 0, shorter, 1, 1, 1, read, half, column);
        convolve_all(c, which, block, column, c.channels / c.groups * shorter, read * half, c.kernel_height, half,
                     odd_weights, count, odd_sums, pitch, NULL);
        columns(odd, even + 1, c.channels, read * width, width, 1, 0, longer, 1, 1, 1, read, half, column);
        convolve_all(c, which, block, column, c.channels / c.groups * longer, read * half, c.kernel_height, half,
                     both_weights, count, both_sums, pitch, NULL);
        for (int channel = channel_of(c, which.first); channel < channel_of(c, which.end); channel++) {
            const float *e = even_sums + channel * wide_pitch, *o = odd_sums + channel * pitch;
            const float *b = both_sums + channel * pitch;
            float *to = out + (channel * c.out_height + y) * c.out_width / (c.pooled ? 4 : 1);
            for (int row = 0; row < rows; row += 1 + c.pooled) {
                const int left = c.pooled ? (rows - row) / 2 * half : (rows - row) * c.out_width;
                for (int x = 0; x < half; x += LANES) {
                    vec first = load(e + x) + load(o + x), second = load(b + x) - load(e + x + 1) - load(o + x);
                    if (c.pooled) {
                        const float *p = e + x + half + 1, *q = o + x + half, *r = b + x + half;
                        first = larger(first, second);
                        second = larger(load(p) + load(q), load(r) - load(p + 1) - load(q));
                        store_row(to + x, moved(larger(first, second), bias[channel], c.low, c.high), left - x);
                    } else {
                        first = moved(first, bias[channel], c.low, c.high);
                        second = moved(second, bias[channel], c.low, c.high);
                        store_row(to + 2 * x, SHUFFLE(first, second, IN_TURN(0)), left - 2 * x);
                        if (c.out_width - 2 * x > LANES)
                            store_row(to + 2 * x + LANES, SHUFFLE(first, second, IN_TURN(LANES / 2)),
                                      left - 2 * x - LANES);
                    }
                }
                e += (1 + c.pooled) * (half + 1), o += (1 + c.pooled) * half, b += (1 + c.pooled) * half;
                to += c.pooled ? half : c.out_width;
            }
        }
    }
}

// A matrix by a vector; the matrix lies in tiles of 16 outputs, the outputs of an input side by side.
INLINE void matrix_vector(const float *weights, const float *bias, int inputs, int outputs, float low, float high,
                          const float *in, float *out) {
    for (int tile = 0; tile < outputs; tile += 16, weights += 16 * inputs) {
        vec total[16 / LANES];
        UNROLL for (int v = 0; v < 16 / LANES; v++) total[v] = load(bias + tile + v * LANES);
        for (int first = 0; first < inputs; first += 4 * SUMMED) {
            const int last = least(inputs, first + 4 * SUMMED);
            vec sum[4][16 / LANES];
            UNROLL for (int s = 0; s < 4; s++) {
                UNROLL for (int v = 0; v < 16 / LANES; v++) sum[s][v] = (vec){0};
            }
            const int whole = last - (last - first) % 4;
            for (int i = first; i < whole; i += 4) {
                UNROLL for (int s = 0; s < 4; s++) {
                    UNROLL for (int v = 0; v < 16 / LANES; v++)
                        sum[s][v] += load(weights + (i + s) * 16 + v * LANES) * in[i + s];
                }
            }
            for (int i = whole; i < last; i++) {
                UNROLL for (int v = 0; v < 16 / LANES; v++) sum[0][v] += load(weights + i * 16 + v * LANES) * in[i];
            }
            UNROLL for (int v = 0; v < 16 / LANES; v++) total[v] += (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]);
        }
        for (int v = 0; v * LANES < least(16, outputs - tile); v++)
            store_row(out + tile + v * LANES, moved(total[v], 0, low, high), outputs - tile - v * LANES);
    }
}

enum { ROWS = LANES == 16 ? 8 : REGISTERS == 32 || LANES == 8 ? 4 : 2 };  // vectors that a matrix is read once for

// `count` vectors, `in_step` apart, by a matrix in the same tiles.
INLINE void matrix_rows(const float *weights, const float *bias, int inputs, int outputs, float low, float high,
                        const float *in, float *out, int in_step, int out_step, int count, int part, int parts) {
    const int tiles = (outputs + 15) / 16, first = share(tiles, part, parts) * 16;
    const int some = least(outputs, share(tiles, part + 1, parts) * 16) - first;
    weights += (size_t)first * inputs, bias += first, out += first;
    for (; count >= ROWS; count -= ROWS, in += ROWS * in_step, out += ROWS * out_step)
        for (int tile = 0; tile < some; tile += 16) {
            ALIGNED float sum[ROWS * 16];
            for (int done = 0; done < inputs; done += SUMMED)
                tall_sums(ROWS, 16, 16, in + done, in_step, least(SUMMED, inputs - done), 1, 1, 0,
                          weights + ((size_t)tile * inputs + done * 16), done, sum);
            for (int i = 0; i < ROWS; i++)
                for (int v = 0; v * LANES < least(16, some - tile); v++)
                    store_row(out + i * out_step + tile + v * LANES,
                              moved(load(sum + i * 16 + v * LANES) + load(bias + tile + v * LANES), 0, low, high),
                              some - tile - v * LANES);
        }
    for (; count > 0; count--, in += in_step, out += out_step)
        matrix_vector(weights, bias, inputs, some, low, high, in, out);
}

// What a gated recurrent unit makes of its three gates, from the input and from the state.
INLINE void gru(const float *in, const float *own, int size, const float *state, float *out) {
    for (int i = 0; i < size; i++) {
        const float reset = 1 / (1 + expf(-in[i] - own[i])), keep = 1 / (1 + expf(-in[size + i] - own[size + i]));
        const float fresh = tanhf(in[2 * size + i] + reset * own[2 * size + i]);
        out[i] = fresh + keep * (state[i] - fresh);
    }
}

// Rows × inner by inner × columns.
INLINE void matrix_matrix(const float *left, const float *right, int rows, int inner, int across, float *out) {
    for (int row = 0; row < rows; row++, out += across) {
        for (int x = 0; x < across; x++) out[x] = 0;
        for (int i = 0; i < inner; i++)
            for (int x = 0; x < across; x++) out[x] += left[row * inner + i] * right[i * across + x];
    }
}

// The same where the left matrix lies in tiles of 16 rows, as `matrix_vector` takes it.
INLINE void tiles_matrix(const float *left, const float *right, int rows, int inner, int across, float *out, int part,
                         int parts) {
    for (int tile = share((rows + 15) / 16, part, parts) * 16; tile < least(rows, share((rows + 15) / 16, part + 1, parts) * 16); tile += 16)
        for (int x = 0; x < across; x += 4) {
            ALIGNED float sum[4 * 16];
            for (int done = 0; done < inner; done += SUMMED) {
                const float *weights = left + ((size_t)tile * inner + done * 16), *from = right + done * across + x;
                const int now = least(SUMMED, inner - done);
                for (int k = 0; k < least(4, across - x); k += 2)
                    if (across - x - k > 1)
                        tall_sums(2, 16, 16, from + k, 1, now, across, 1, 0, weights, done, sum + k * 16);
                    else
                        tall_sums(1, 16, 16, from + k, 1, now, across, 1, 0, weights, done, sum + k * 16);
            }
            for (int row = 0; row < least(16, rows - tile); row++)
                for (int k = 0; k < least(4, across - x); k++) out[(tile + row) * across + x + k] = sum[k * 16 + row];
        }
}

// How an axis is resampled: each output is a sum of `taps` neighbours, the first of which is `first`.
typedef struct {
    int size, out_size, taps;
    const int *first;
    const float *weights;
} resampling;

// Some planes, along the axis first that makes them smaller.
INLINE void resample(const float *in, int planes, resampling down, resampling across, float *out, float *memory, int part,
                     int parts) {
    const int rows_first = down.out_size < down.size, end = share(planes, part + 1, parts);
    for (int plane = share(planes, part, parts); plane < end; plane++)
        for (int turn = 0; turn < 2; turn++) {
            const float *from = turn ? memory : in + plane * down.size * across.size;
            float *to = turn ? out + plane * down.out_size * across.out_size : memory;
            if (turn != rows_first) {
                const int width = turn ? across.out_size : across.size;
                for (int y = 0; y < down.out_size; y++, to += width)
                    for (int x = 0; x < width; x += LANES) {
                        vec sum = {0};
                        for (int k = 0; k < down.taps; k++)
                            sum += load(from + (down.first[y] + k) * width + x) * down.weights[y * down.taps + k];
                        store_row(to + x, sum, turn ? (down.out_size - y) * width - x : LANES);
                    }
            } else
                for (int y = 0; y < (turn ? down.out_size : down.size); y++, from += across.size, to += across.out_size)
                    for (int x = 0; x < across.out_size; x++) {
                        float sum = 0;
                        for (int k = 0; k < across.taps; k++)
                            sum += from[across.first[x] + k] * across.weights[x * across.taps + k];
                        to[x] = sum;
                    }
        }
}

// The largest value of each window of kernel[0] × kernel[1]; `stride` and `pad` likewise. First of the rows, a row with
// the least of all numbers around it, then of its columns.
INLINE void max_pool(const float *in, int planes, int height, int width, const int kernel[2], const int stride[2],
                     const int pad[2], int out_height, int out_width, float *out, float *memory, int part, int parts) {
    const int wide = (out_width - 1) * stride[1] + kernel[1];
    for (int i = share(planes, part, parts) * out_height; i < share(planes, part + 1, parts) * out_height; i++) {
        const int top = i % out_height * stride[0] - pad[0], end = least(top + kernel[0], height);
        const float *from = in + i / out_height * height * width;
        float *row = memory + pad[1], *to = out + i * out_width;
        for (int x = 0; x < width; x += LANES) {
            vec found = all(-INFINITY);
            for (int y = most(top, 0); y < end; y++) found = larger(load(from + y * width + x), found);
            store(row + x, found);
        }
        for (int x = 0; x < pad[1]; x++) memory[x] = -INFINITY;
        for (int x = width + pad[1]; x < wide; x++) memory[x] = -INFINITY;
        for (int x = 0; x < out_width; x++) {
            float found = -INFINITY;
            for (int k = 0; k < kernel[1]; k++)
                found = memory[x * stride[1] + k] > found ? memory[x * stride[1] + k] : found;
            to[x] = found;
        }
    }
}

// Over `size` values that lie `inner` apart.
INLINE void softmax(const int logarithm, const float *in, int outer, int size, int inner, float *out) {
    for (int i = 0; i < outer * inner; i++) {
        const float *from = in + i / inner * size * inner + i % inner;
        float *to = out + (from - in), top = from[0], sum = 0;
        for (int k = 1; k < size; k++) top = from[k * inner] > top ? from[k * inner] : top;
        for (int k = 0; k < size; k++) sum += to[k * inner] = expf(from[k * inner] - top);
        const float shift = top + logf(sum);
        for (int k = 0; k < size; k++) to[k * inner] = logarithm ? from[k * inner] - shift : to[k * inner] / sum;
    }
}

// How a sampler reads: sizes, padding 0 zeros, 1 border, 2 reflection, and whether -1 and 1 are centres of pixels.
typedef struct {
    int channels, height, width, out_height, out_width;
    int padding, align_corners, grid_align_corners;
} sampler;

enum { RUN = 32 };  // points that are located at once

INLINE float unnormalised(float at, int size, int align_corners) {
    return align_corners ? (at + 1) / 2 * (float)(size - 1) : ((at + 1) * (float)size - 1) / 2;
}

// Points of a row from `x` on, in pixels, by a grid.
INLINE void by_grid(sampler s, const float *grid, int x, int y, float *across, float *down) {
    const float *from = grid + 2 * (y * s.out_width + x);
    const int count = least(RUN, s.out_width - x);
    for (int i = 0; i < count; i++) {
        across[i] = unnormalised(from[2 * i], s.width, s.align_corners);
        down[i] = unnormalised(from[2 * i + 1], s.height, s.align_corners);
    }
}

// The map from output pixels to input pixels along one axis: by_x, by_y, offset.
INLINE void axis_map(const float *theta, sampler s, int size, double map[3]) {
    const int corners = s.grid_align_corners, w = s.out_width, h = s.out_height;
    const double x_step = corners ? 2.0 / most(1, w - 1) : 2.0 / w, y_step = corners ? 2.0 / most(1, h - 1) : 2.0 / h;
    const double x_first = -x_step * (w - 1) / 2, y_first = -y_step * (h - 1) / 2;
    const double scale = (s.align_corners ? size - 1 : size) / 2.0;
    map[0] = scale * theta[0] * x_step;
    map[1] = scale * theta[1] * y_step;
    map[2] = scale * (theta[0] * x_first + theta[1] * y_first + theta[2]) + (size - 1) / 2.0;
}

// Points of a row from `x` on, in pixels, by an affine matrix.
INLINE void by_theta(sampler s, const float *theta, int x, int y, float *across, float *down) {
    double horizontal[3], vertical[3];
    axis_map(theta, s, s.width, horizontal);
    axis_map(theta + 3, s, s.height, vertical);
    const float h_step = (float)horizontal[0], h_first = (float)(horizontal[0] * x + horizontal[1] * y + horizontal[2]);
    const float v_step = (float)vertical[0], v_first = (float)(vertical[0] * x + vertical[1] * y + vertical[2]);
    for (int i = 0; i < RUN; i++) {
        across[i] = h_step * (float)i + h_first;
        down[i] = v_step * (float)i + v_first;
    }
}

// Back and forth between the edges of the image.
INLINE float reflected(float at, int size, int align_corners) {
    const float low = align_corners ? 0 : -0.5f, span = align_corners ? (float)(size - 1) : (float)size;
    if (span == 0) return 0;
    const float distance = fabsf(at - low), rest = fmodf(distance, span);
    const int odd = fmodf(floorf(distance / span), 2) != 0;
    return (odd ? span - rest : rest) + low;
}

// A coordinate moved to where the padding wants it; with zeros at most one pixel outside.
INLINE float settled(float at, int size, int padding, int align_corners) {
    if (padding == 0) return within(at, -1, (float)size);
    return within(padding == 2 ? reflected(at, size, align_corners) : at, 0, (float)(size - 1));
}

// Up to four channels side by side, with a border of zeros: one pixel before, two behind.
INLINE void interleave(sampler s, int channels, const float *in, float *to) {
    const int pitch = 4 * (s.width + 3), plane = s.height * s.width;
    memset(to, 0, (size_t)pitch * sizeof(float));
    for (int y = 0; y < s.height; y++, in += s.width) {
        float *row = to + (y + 1) * pitch + 4;
        store_quad(row - 4, (quad){0});
        for (int x = 0; x < s.width; x += 4) {
            quad values[4];
            UNROLL for (int k = 0; k < 4; k++) values[k] = k < channels ? load_quad(in + k * plane + x) : (quad){0};
            transpose(values);
            UNROLL for (int k = 0; k < 4; k++) store_quad(row + 4 * (x + k), values[k]);
        }
        store_quad(row + 4 * s.width, (quad){0});
        store_quad(row + 4 * s.width + 4, (quad){0});
    }
    memset(to + (s.height + 1) * pitch, 0, 2 * (size_t)pitch * sizeof(float));
}

// Samples bilinearly, without a branch a pixel: what lies outside is read from the border. Of `theta` and `grid` one is
// given; `memory` takes (height + 3) × (width + 3) pixels of four channels.
INLINE void sample_bilinear(sampler s, const float *in, const float *theta, const float *grid, float *out,
                            float *memory) {
    const int pitch = 4 * (s.width + 3), plane = s.out_height * s.out_width, low = s.padding ? 0 : -1;
    for (int first = 0; first < s.channels; first += 4) {
        const int channels = least(4, s.channels - first);
        interleave(s, channels, in + first * s.height * s.width, memory);
        for (int y = 0; y < s.out_height; y++)
            for (int x = 0; x < s.out_width; x += RUN) {
                float across[RUN] = {0}, down[RUN] = {0};
                int at[RUN];
                theta ? by_theta(s, theta, x, y, across, down) : by_grid(s, grid, x, y, across, down);
                for (int i = 0; i < RUN && s.padding == 2; i++) {
                    across[i] = reflected(across[i], s.width, s.align_corners);
                    down[i] = reflected(down[i], s.height, s.align_corners);
                }
                for (int i = 0; i < RUN; i += LANES) {
                    const vec h = smaller(larger(load(across + i), all(low)), all(s.width - !!s.padding)) + 1;
                    const vec v = smaller(larger(load(down + i), all(low)), all(s.height - !!s.padding)) + 1;
                    const mask column = __builtin_convertvector(h, mask), row = __builtin_convertvector(v, mask);
                    const mask place = row * pitch + column * 4;
                    memcpy(at + i, &place, sizeof place);
                    store(across + i, h - __builtin_convertvector(column, vec));
                    store(down + i, v - __builtin_convertvector(row, vec));
                }
                float *to = out + first * plane + y * s.out_width + x;
                for (int i = 0; i < least(RUN, s.out_width - x); i += 4) {
                    quad values[4];
                    UNROLL for (int k = 0; k < 4; k++) {
                        const float *from = memory + at[i + k];
                        const octet upper = *(const loose_octet *)from, lower = *(const loose_octet *)(from + pitch);
                        union {
                            octet both;
                            quad one[2];
                        } pixels = {upper + (lower - upper) * down[i + k]};
                        values[k] = pixels.one[0] + (pixels.one[1] - pixels.one[0]) * across[i + k];
                    }
                    if (i + x + 4 <= s.out_width) {
                        transpose(values);
                        for (int c = 0; c < channels; c++) store_quad(to + c * plane + i, values[c]);
                    } else
                        for (int k = 0; i + x + k < s.out_width; k++)
                            for (int c = 0; c < channels; c++) to[c * plane + i + k] = values[k][c];
                }
            }
    }
}

// Four taps and their weights along one axis: the nearest pixel alone, or the cubic through four.
INLINE void taps(float at, int size, sampler s, const int bicubic, int index[4], float weight[4]) {
    const float far = 1e6f, moved = bicubic ? within(at, -far, far) : settled(at, size, s.padding, s.align_corners);
    const float base = bicubic ? floorf(moved) - 1 : rintf(moved), t = moved - floorf(moved), a = -0.75f;
    const float u = 1 - t;
    weight[0] = bicubic ? ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a : 1;
    weight[1] = ((a + 2) * t - (a + 3)) * t * t + 1;
    weight[2] = ((a + 2) * u - (a + 3)) * u * u + 1;
    weight[3] = ((a * (u + 1) - 5 * a) * (u + 1) + 8 * a) * (u + 1) - 4 * a;
    for (int k = 0; k < (bicubic ? 4 : 1); k++) {
        const float place = settled(base + (float)k, size, s.padding, s.align_corners);
        const int inside = place >= 0 && place < (float)size;
        index[k] = inside ? (int)(place + 0.5f) : 0;
        if (!inside || (s.padding == 0 && place != base + (float)k)) weight[k] = 0;
    }
}

// Samples the nearest pixel or bicubically.
INLINE void sample(const int bicubic, sampler s, const float *in, const float *theta, const float *grid, float *out) {
    const int plane = s.out_height * s.out_width, count = bicubic ? 4 : 1;
    for (int y = 0; y < s.out_height; y++)
        for (int first = 0; first < s.out_width; first += RUN) {
            float across[RUN], down[RUN], by_x[4], by_y[4];
            int xs[4], ys[4];
            theta ? by_theta(s, theta, first, y, across, down) : by_grid(s, grid, first, y, across, down);
            for (int i = 0; i < least(RUN, s.out_width - first); i++, out++) {
                taps(across[i], s.width, s, bicubic, xs, by_x);
                taps(down[i], s.height, s, bicubic, ys, by_y);
                for (int c = 0; c < s.channels; c++) {
                    float sum = 0;
                    for (int k = 0; k < count * count; k++) {
                        const int row = c * s.height + ys[k / count];
                        sum += by_y[k / count] * by_x[k % count] * in[row * s.width + xs[k % count]];
                    }
                    out[c * plane] = sum;
                }
            }
        }
}

// An affine grid that something other than a sampler reads: x before y, in [-1, 1].
INLINE void affine_grid(const float *theta, int height, int width, int align_corners, float *out) {
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++, out += 2) {
            const double v = (2.0 * y - (height - 1)) / (align_corners ? most(1, height - 1) : height);
            const double h = (2.0 * x - (width - 1)) / (align_corners ? most(1, width - 1) : width);
            out[0] = (float)(theta[0] * h + theta[1] * v + theta[2]);
            out[1] = (float)(theta[3] * h + theta[4] * v + theta[5]);
        }
}
