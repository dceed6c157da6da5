#ifdef __SSE2__
#include <immintrin.h>
#endif

// Whole numbers of 8 bits, four of them in a word: those of four channels at one position, the first lowest. Words stand
// where floats may stand at other times.
typedef int32_t word __attribute__((may_alias));
typedef int words __attribute__((vector_size(LANES * sizeof(int))));
typedef unsigned unsigned_words __attribute__((vector_size(LANES * sizeof(int))));
typedef short shorts __attribute__((vector_size(LANES * sizeof(int))));
typedef unsigned short unsigned_shorts __attribute__((vector_size(LANES * sizeof(int))));
typedef int loose_words __attribute__((vector_size(LANES * sizeof(int)), aligned(sizeof(int)), may_alias));

INLINE words load_words(const word *from) { return *(const loose_words *)from; }

INLINE void store_words(word *to, words value) { *(loose_words *)to = value; }

INLINE words all_words(word value) { return (words){0} + value; }

INLINE void fill_words(word *to, word value, int count) {
    for (int i = 0; i < count; i += LANES) store_words(to + i, all_words(value));
}

// Adds to each lane four products of bytes without a sign and weights with one. The sum of two products with weights of
// seven bits fits into 16 bits.
INLINE words add_products(words sum, words bytes, words weights) {
#if defined(__AVX512VNNI__)
    return (words)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)bytes, (__m512i)weights);
#elif defined(__AVX512BW__)
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)bytes, (__m512i)weights);
    return sum + (words)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
    return (words)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)bytes, (__m256i)weights);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)bytes, (__m256i)weights);
    return sum + (words)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    const shorts even_bytes = (shorts)(bytes & 0x00FF00FF), odd_bytes = (shorts)(bytes >> 8 & 0x00FF00FF);
    const shorts even_weights = (shorts)((unsigned_shorts)weights << 8) >> 8, odd_weights = (shorts)weights >> 8;
#if defined(__SSE2__) && !defined(__AVX__)
    sum += (words)_mm_madd_epi16((__m128i)even_bytes, (__m128i)even_weights);
    return sum + (words)_mm_madd_epi16((__m128i)odd_bytes, (__m128i)odd_weights);
#else
    const words pairs = (words)(even_bytes * even_weights + odd_bytes * odd_weights);
    return sum + ((words)((unsigned_words)pairs << 16) >> 16) + (pairs >> 16);
#endif
#endif
}

// `larger` and `smaller`, in one instruction.
INLINE vec at_least(vec a, vec low) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)low);
#elif defined(__AVX__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)low);
#elif defined(__SSE2__)
    return (vec)_mm_max_ps((__m128)a, (__m128)low);
#else
    return larger(a, low);
#endif
}

INLINE vec at_most(vec a, vec high) {
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)a, (__m512)high);
#elif defined(__AVX__)
    return (vec)_mm256_min_ps((__m256)a, (__m256)high);
#elif defined(__SSE2__)
    return (vec)_mm_min_ps((__m128)a, (__m128)high);
#else
    return smaller(a, high);
#endif
}

// Of an input, a number is (byte - zero) / inverse. Outputs are whole steps between `lowest` and `highest`, before they
// are clamped to `low` and `high`.
typedef struct {
    float inverse, step, lowest, highest, low, high;
    int zero;
} bytes;

#define ROUNDING 12582912.0f  // 1.5 × 2^23; numbers below 2^22 added to it become whole, halves even

// Up to four channels, `plane` apart.
INLINE words quantised(const float *in, int plane, const int channels, const bytes *b) {
    unsigned_words result = {0};
    UNROLL for (int k = 0; k < channels; k++) {
        const vec steps = load(in + k * plane) * b->inverse;
        const vec bits = at_most(at_least(steps, all((float)-b->zero)), all((float)(255 - b->zero))) + ROUNDING;
        result |= (unsigned_words)((words)bits + (b->zero - 0x4B400000)) << (8 * k);
    }
    return (words)result;
}

// Rows of the input from `y` on, `height` × `width` words of every four channels, around the input its zero.
INLINE void quantise(convolution c, const bytes *b, const float *in, int y, int height, int width, word *to) {
    const int channels = c.channels / c.groups, fours = (channels + 3) / 4, plane = c.height * c.width;
    const int inside = least(c.width, width - c.pad_left);
    const word zeros = (word)((unsigned)b->zero * 0x01010101u);
    for (int i = 0; i < c.groups * fours * height; i++, to += width) {
        const int row = y + i % height - c.pad_top, first = i / height % fours * 4, some = least(4, channels - first);
        fill_words(to, zeros, row < 0 || row >= c.height ? width : c.pad_left);
        if (row < 0 || row >= c.height) continue;
        const float *from = in + (i / height / fours * channels + first) * plane + row * c.width;
        for (int x = 0; x < inside; x += LANES)
            store_words(to + c.pad_left + x, some == 4   ? quantised(from + x, plane, 4, b)
                                             : some == 3 ? quantised(from + x, plane, 3, b)
                                             : some == 2 ? quantised(from + x, plane, 2, b)
                                                         : quantised(from + x, plane, 1, b));
        fill_words(to + c.pad_left + inside, zeros, width - c.pad_left - inside);
    }
}

// What `columns` does, of words.
INLINE void word_columns(const word *in, int channels, int plane, int width, int kernel_rows, int kernel_row,
                         int kernel_columns, int kernel_column, int step, int stride, int rows, int out_width, word *to) {
    for (int channel = 0; channel < channels; channel++)
        for (int k = 0; k < kernel_rows * kernel_columns; k++) {
            int at = channel * plane + k / kernel_columns * kernel_row * width + k % kernel_columns * kernel_column;
            for (int row = 0; row < rows; row++, to += out_width, at += step * width)
                for (int x = 0; x < out_width; x += stride == 1 ? LANES : 1)
                    if (stride == 1)
                        store_words(to + x, load_words(in + at + x));
                    else
                        to[x] = in[at + x * stride];
        }
}

// Sums become outputs: in steps, whole ones, real numbers.
INLINE vec finished(words sum, vec factor, const bytes *b) {
    const vec steps = __builtin_convertvector(sum, vec) * factor;
    const vec whole = at_most(at_least(steps, all(b->lowest)), all(b->highest)) + ROUNDING - ROUNDING;
    return at_most(at_least(whole * b->step, all(b->low)), all(b->high));
}

enum { VECTORS_OF_BYTES = REGISTERS == 32 ? 3 : 2 };

// `channels` × `vectors` outputs in registers, each vector of inputs read once for all of them; `count` channels are
// written, of each what is `left`.
INLINE void wide_products(const int channels, const int vectors, const word *in, int planes, int plane, int rows, int row,
                          const word *weights, const word *bias, const float *factors, const bytes *b, float *out, int pitch,
                          int count, int left) {
    words sum[8][VECTORS_OF_BYTES];
    UNROLL for (int c = 0; c < channels; c++) {
        UNROLL for (int v = 0; v < vectors; v++) sum[c][v] = all_words(bias[c]);
    }
    for (int p = 0; p < planes; p++, in += plane) {
        const word *from = in;
        for (int r = 0; r < rows; r++, from += row, weights += TILE) {
            words x[VECTORS_OF_BYTES];
            UNROLL for (int v = 0; v < vectors; v++) x[v] = load_words(from + v * LANES);
            UNROLL for (int c = 0; c < channels; c++) {
                UNROLL for (int v = 0; v < vectors; v++) sum[c][v] = add_products(sum[c][v], x[v], all_words(weights[c]));
            }
        }
    }
    UNROLL for (int c = 0; c < channels; c++) {
        UNROLL for (int v = 0; v < vectors; v++)
            if (c < count) store_row(out + c * pitch + v * LANES, finished(sum[c][v], all(factors[c]), b), left - v * LANES);
    }
}

// The same for all `positions`, as many channels at once as there are registers for.
INLINE void block_of_bytes(const int channels, const word *in, int planes, int plane, int rows, int row, const word *weights,
                           const word *bias, const float *factors, const bytes *b, int positions, float *out, int pitch,
                           int count) {
    const int some = REGISTERS == 32 || channels < 5 ? channels : (channels + 1) / 2;
    int p = 0;
    for (; p + (VECTORS_OF_BYTES - 1) * LANES < positions; p += VECTORS_OF_BYTES * LANES) {
        wide_products(some, VECTORS_OF_BYTES, in + p, planes, plane, rows, row, weights, bias, factors, b, out + p, pitch,
                      count, positions - p);
        if (some < channels)
            wide_products(channels - some, VECTORS_OF_BYTES, in + p, planes, plane, rows, row, weights + some, bias + some,
                          factors + some, b, out + p + some * pitch, pitch, count - some, positions - p);
    }
    for (; p < positions; p += LANES) {
        wide_products(some, 1, in + p, planes, plane, rows, row, weights, bias, factors, b, out + p, pitch, count, positions - p);
        if (some < channels)
            wide_products(channels - some, 1, in + p, planes, plane, rows, row, weights + some, bias + some, factors + some, b,
                          out + p + some * pitch, pitch, count - some, positions - p);
    }
}

typedef void convolve_bytes(const word *in, int planes, int plane, int rows, int row, const word *weights, const word *bias,
                            const float *factors, const bytes *b, int positions, float *out, int pitch, int count);

// The largest of every 2×2.
INLINE void pool_rows(const float *in, int rows, int width, float *out) {
    for (int row = 0; row < rows; row += 2, in += 2 * width, out += width / 2)
        for (int x = 0; x < width / 2; x += LANES) {
            const vec first = at_least(load(in + 2 * x), load(in + 2 * x + width));
            const vec second = at_least(load(in + 2 * x + LANES), load(in + 2 * x + width + LANES));
            const vec found = at_least(SHUFFLE(first, second, EVERY_SECOND(0)), SHUFFLE(first, second, EVERY_SECOND(1)));
            store_row(out + x, found, (rows - row) / 2 * (width / 2) - x);
        }
}

// A convolution of bytes whose vectors go over positions, strip by strip, `some` output channels at a time. Weights lie as
// for `tall_convolution`, four channels in a word.
INLINE void wide_bytes(convolution c, bytes b, convolve_bytes *block, const int some, const word *weights, const word *bias,
                       const float *factors, const float *in, float *out, float *scratch, int part, int parts) {
    const blocks which = blocks_for(c, part, parts);
    const int fours = (c.channels / c.groups + 3) / 4, shared = c.stride_height == 1, kernel = shared ? c.kernel_height : 1;
    const int kernel_rows = shared ? 1 : c.kernel_height, span = (c.kernel_height - 1) * c.dilation_height;
    const int width = (c.out_width - 1) * c.stride_width + (c.kernel_width - 1) * c.dilation_width + 1;
    const int planes = fours * kernel_rows * c.kernel_width, channels = c.out_channels / c.groups;
    const int tiles = blocks_of(c) / c.groups, pitch = c.pooled ? room(c.strip * c.out_width) : c.out_height * c.out_width;
    float *sums = scratch;
    word *memory = (word *)sums + (c.pooled ? 8 * pitch + 2 * room(c.out_width + 16) : 0);
    for (int y = which.strip * c.strip; y < c.out_height; y += which.step * c.strip) {
        const int rows = least(c.strip, c.out_height - y), read = (rows - 1) * c.stride_height + span + 1;
        const int kept = shared ? read : rows, positions = rows * c.out_width;
        word *column = memory + (untouched(c) ? 0 : room(c.groups * fours * read * width + 16));
        if (untouched(c)) {
            convolution flat = c;
            flat.height = 1, flat.width = c.height * c.width;
            quantise(flat, &b, in + y * c.width, 0, 1, positions, memory);
        } else {
            quantise(c, &b, in, y * c.stride_height, read, width, memory);
            word_columns(memory, c.groups * fours, read * width, width, kernel_rows, c.dilation_height, c.kernel_width,
                         c.dilation_width, c.stride_height, c.stride_width, kept, c.out_width, column);
        }
        for (int i = which.first; i < which.end; i++) {
            const int first = i % tiles * TILE, count = least(TILE, channels - first);
            const word *w = weights + (size_t)i * planes * kernel * TILE;
            for (int k = 0; k < count; k += some) {
                const int channel = i / tiles * channels + first + k;
                float *to = c.pooled ? sums : out + (channel * c.out_height + y) * c.out_width;
                block(column + i / tiles * planes * kept * c.out_width, planes, kept * c.out_width, kernel,
                      c.dilation_height * c.out_width, w + k, bias + i * TILE + k, factors + i * TILE + k, &b, positions, to,
                      pitch, count - k);
                for (int n = 0; c.pooled && n < least(some, count - k); n++)
                    pool_rows(sums + n * pitch, rows, c.out_width, out + ((channel + n) * c.out_height + y) * c.out_width / 4);
            }
        }
    }
}

enum { BYTES_AT_ONCE = (REGISTERS == 32 ? 24 : 8) * LANES / WIDE };  // most positions whose sums are in registers

// `positions` × `wide` sums in registers, outputs side by side, finished.
INLINE void tall_products(const int positions, const int wide, const word *in, int planes, int plane, int rows, int row,
                          const word *weights, const word *bias, const float *factors, const bytes *b, float *out) {
    words sum[BYTES_AT_ONCE][WIDE / LANES];
    UNROLL for (int i = 0; i < positions; i++) {
        UNROLL for (int v = 0; v < wide / LANES; v++) sum[i][v] = load_words(bias + v * LANES);
    }
    for (int p = 0; p < planes; p++, in += plane) {
        const word *from = in;
        for (int r = 0; r < rows; r++, from += row, weights += TILE) {
            words w[WIDE / LANES];
            UNROLL for (int v = 0; v < wide / LANES; v++) w[v] = load_words(weights + v * LANES);
            UNROLL for (int i = 0; i < positions; i++) {
                UNROLL for (int v = 0; v < wide / LANES; v++) sum[i][v] = add_products(sum[i][v], all_words(from[i]), w[v]);
            }
        }
    }
    UNROLL for (int i = 0; i < positions; i++) {
        UNROLL for (int v = 0; v < wide / LANES; v++)
            store(out + i * TILE + v * LANES, finished(sum[i][v], load(factors + v * LANES), b));
    }
}

// The largest of every 2×2, outputs side by side, in the place of the first of them.
INLINE void pool_outputs(float *sum, int height, int width) {
    for (int i = 0; i < height / 2 * (width / 2); i++) {
        const float *from = sum + (2 * (i / (width / 2)) * width + 2 * (i % (width / 2))) * TILE;
        for (int v = 0; v < TILE; v += LANES) {
            const vec upper = at_least(load(from + v), load(from + TILE + v));
            const vec lower = at_least(load(from + width * TILE + v), load(from + (width + 1) * TILE + v));
            store(sum + i * TILE + v, at_least(upper, lower));
        }
    }
}

// Outputs of some channels side by side into a plane of each.
INLINE void byte_planes(const float *sum, int channels, int positions, float *out) {
    const int whole = positions < 4 ? 0 : channels - channels % 4;
    for (int channel = 0; channel < whole; channel += 4)
        for (int i = 0; i < positions; i += 4) {
            const int at = least(i, positions - 4);
            quad values[4];
            UNROLL for (int k = 0; k < 4; k++) values[k] = load_quad(sum + (at + k) * TILE + channel);
            transpose(values);
            UNROLL for (int k = 0; k < 4; k++) store_quad(out + (channel + k) * positions + at, values[k]);
        }
    for (int channel = whole; channel < channels; channel++)
        for (int i = 0; i < positions; i++) out[channel * positions + i] = sum[i * TILE + channel];
}

// A convolution of bytes of few positions: vectors go over the output channels.
INLINE void tall_bytes(convolution c, bytes b, const word *weights, const word *bias, const float *factors, const float *in,
                       float *out, float *scratch, int part, int parts) {
    const int fours = (c.channels / c.groups + 3) / 4, shared = c.stride_height == 1, rows = shared ? c.kernel_height : 1;
    const int kernel_rows = shared ? 1 : c.kernel_height, positions = c.out_height * c.out_width;
    const int read = (c.out_height - 1) * c.stride_height + (c.kernel_height - 1) * c.dilation_height + 1;
    const int width = (c.out_width - 1) * c.stride_width + (c.kernel_width - 1) * c.dilation_width + 1;
    const int kept = shared ? read : c.out_height, planes = fours * kernel_rows * c.kernel_width;
    const int plane = untouched(c) ? positions : kept * c.out_width, row = c.dilation_height * c.out_width;
    const int channels = c.out_channels / c.groups, tiles = blocks_of(c) / c.groups;
    const int several = (positions + BYTES_AT_ONCE - 1) / BYTES_AT_ONCE, some = (positions + several - 1) / several;
    const int last = (several - 1) * some;
    float *sum = scratch;
    word *memory = (word *)sum + room(TILE * positions + 16);
    const word *from = memory;
    if (untouched(c)) {
        convolution flat = c;
        flat.height = 1, flat.width = c.height * c.width;
        quantise(flat, &b, in, 0, 1, positions, memory);
    } else {
        word *column = memory + room(c.groups * fours * read * width + 16);
        quantise(c, &b, in, 0, read, width, memory);
        word_columns(memory, c.groups * fours, read * width, width, kernel_rows, c.dilation_height, c.kernel_width,
                     c.dilation_width, c.stride_height, c.stride_width, kept, c.out_width, column);
        from = column;
    }
    for (int i = share(blocks_of(c), part, parts); i < share(blocks_of(c), part + 1, parts); i++) {
        const word *x = from + i / tiles * planes * plane, *w = weights + (size_t)i * planes * rows * TILE;
        const int count = least(TILE, channels - i % tiles * TILE);
        for (int half = 0; half < count; half += WIDE) {
            const word *first = bias + i * TILE + half;
            const float *factor = factors + i * TILE + half;
            for (int p = 0; p < last; p += some) {
                if (count - half > WIDE / 2)
                    tall_products(some, WIDE, x + p, planes, plane, rows, row, w + half, first, factor, &b, sum + p * TILE + half);
                else
                    tall_products(some, WIDE / 2, x + p, planes, plane, rows, row, w + half, first, factor, &b, sum + p * TILE + half);
            }
            if (count - half > WIDE / 2)
                tall_products(positions - last, WIDE, x + last, planes, plane, rows, row, w + half, first, factor, &b, sum + last * TILE + half);
            else
                tall_products(positions - last, WIDE / 2, x + last, planes, plane, rows, row, w + half, first, factor, &b, sum + last * TILE + half);
        }
        if (c.pooled) pool_outputs(sum, c.out_height, c.out_width);
        byte_planes(sum, count, positions / (c.pooled ? 4 : 1), out + (i / tiles * channels + i % tiles * TILE) * (positions / (c.pooled ? 4 : 1)));
    }
}

enum { ROWS_OF_BYTES = BYTES_AT_ONCE < 4 ? BYTES_AT_ONCE : 4 };  // rows that weights are read once for

// The bytes of a row, four neighbouring ones in a word; those of the next word lie `step` words behind it.
INLINE void quantise_row(const float *in, int inputs, const bytes *b, word *to, int step) {
    for (int i = 0; i < inputs; i += 4, to += step) {
        unsigned four = 0;
        for (int k = 0; k < least(4, inputs - i); k++) {
            const float steps = within(in[i + k] * b->inverse, (float)-b->zero, (float)(255 - b->zero));
            four |= (unsigned)((int)(steps + ROUNDING - ROUNDING) + b->zero) << (8 * k);
        }
        *to = (word)four;
    }
}

// `rows` rows of bytes, one word of each side by side, by a matrix in tiles; sums of both halves of a tile.
INLINE void tile_of_rows(const int rows, const word *in, int fours, int some, const word *weights, const word *bias,
                         const float *factors, const bytes *b, int outputs, float *sum) {
    for (int half = 0; half < outputs; half += WIDE)
        if (outputs - half > WIDE / 2)
            tall_products(rows, WIDE, in, fours, some, 1, 0, weights + half, bias + half, factors + half, b, sum + half);
        else
            tall_products(rows, WIDE / 2, in, fours, some, 1, 0, weights + half, bias + half, factors + half, b, sum + half);
}

// What `matrix_rows` does, of bytes.
INLINE void rows_of_bytes(bytes b, const word *weights, const word *bias, const float *factors, int inputs, int outputs,
                          const float *in, float *out, int in_step, int out_step, int count, float *scratch, int part,
                          int parts) {
    const int fours = (inputs + 3) / 4, tiles = (outputs + TILE - 1) / TILE, end = share(tiles, part + 1, parts);
    float *sum = scratch;
    word *rows = (word *)sum + ROWS_OF_BYTES * TILE;
    for (int some; count > 0; count -= some, in += some * in_step, out += some * out_step) {
        some = count < ROWS_OF_BYTES ? 1 : ROWS_OF_BYTES;
        for (int row = 0; row < some; row++) quantise_row(in + row * in_step, inputs, &b, rows + row, some);
        for (int tile = share(tiles, part, parts); tile < end; tile++) {
            const int left = outputs - tile * TILE;
            const word *w = weights + (size_t)tile * fours * TILE;
            if (some == 1)
                tile_of_rows(1, rows, fours, 1, w, bias + tile * TILE, factors + tile * TILE, &b, least(TILE, left), sum);
            else
                tile_of_rows(ROWS_OF_BYTES, rows, fours, ROWS_OF_BYTES, w, bias + tile * TILE, factors + tile * TILE, &b,
                             least(TILE, left), sum);
            for (int row = 0; row < some; row++)
                for (int v = 0; v < least(TILE, left); v += LANES)
                    store_row(out + row * out_step + tile * TILE + v, load(sum + row * TILE + v), left - v);
        }
    }
}
