// The wavelet scattering of one frame on a CPU (scattering.py): J = 2, L = 6, order 2. A vector holds the same place of
// the maps of all angles, so the two passes of a two-dimensional Fourier transform are one routine at two strides, and
// nothing is ever transposed but the frame itself. Every pass does all it can while a row or column is in the cache.
//
// Memory: maps are [row][column][LANES], complex ones as two such arrays; six lanes of eight are angles, two are zero.
// As in segmenter.cpp all builds give the same bits.

#include <initializer_list>

#include "memory.h"

namespace {

constexpr int LANES = 8, ANGLES = 6, STEP = 4;
constexpr int LONGEST = 1024;    // of a transform
constexpr int MOST_FACTORS = 12;
constexpr int OUTPUTS = 8;       // of a smoothing matrix, in registers at a time

typedef float Vector __attribute__((vector_size(4 * LANES)));

#define INLINED inline __attribute__((always_inline))
#define INLINE static INLINED

INLINE Vector load(const float *from) { return *reinterpret_cast<const Vector *>(from); }
INLINE void store(float *to, Vector value) { *reinterpret_cast<Vector *>(to) = value; }

struct Complex {
    Vector re, im;
};

// A transform of one length: factors, and for each its roots of unity and the twiddle factors of its stage.
struct Plan {
    int length, count, factors[MOST_FACTORS];
    const float *tables[MOST_FACTORS];  // cos and sin [factor], then cos and sin [factor - 1][remaining]
};

// One butterfly of odd length P: out[j] = sum over k of in[k] exp(sign 2 pi i j k / P).
template <int P>
INLINED void butterfly(const Complex *in, const float *roots, float sign, Complex *out) {
    constexpr int H = (P - 1) / 2;
    Complex sum[H + 1], difference[H + 1];
    Complex total = in[0];
    for (int k = 1; k <= H; k++) {
        sum[k] = {in[k].re + in[P - k].re, in[k].im + in[P - k].im};
        difference[k] = {in[k].re - in[P - k].re, in[k].im - in[P - k].im};
        total = {total.re + sum[k].re, total.im + sum[k].im};
    }
    out[0] = total;
    for (int j = 1; j <= H; j++) {
        Complex even = in[0], odd = {(Vector){}, (Vector){}};
        for (int k = 1, at = j; k <= H; k++, at += j) {
            if (at >= P) at -= P;
            float cosine = roots[at], sine = roots[P + at];
            even.re += cosine * sum[k].re;
            even.im += cosine * sum[k].im;
            odd.re += sine * difference[k].re;
            odd.im += sine * difference[k].im;
        }
        odd.re *= sign;
        odd.im *= sign;
        out[j] = {even.re - odd.im, even.im + odd.re};
        out[P - j] = {even.re + odd.im, even.im - odd.re};
    }
}

template <>
INLINED void butterfly<2>(const Complex *in, const float *, float, Complex *out) {
    out[0] = {in[0].re + in[1].re, in[0].im + in[1].im};
    out[1] = {in[0].re - in[1].re, in[0].im - in[1].im};
}

template <>
INLINED void butterfly<4>(const Complex *in, const float *, float sign, Complex *out) {
    Complex a = {in[0].re + in[2].re, in[0].im + in[2].im}, b = {in[0].re - in[2].re, in[0].im - in[2].im};
    Complex c = {in[1].re + in[3].re, in[1].im + in[3].im};
    Complex d = {sign * (in[1].re - in[3].re), sign * (in[1].im - in[3].im)};
    out[0] = {a.re + c.re, a.im + c.im};
    out[2] = {a.re - c.re, a.im - c.im};
    out[1] = {b.re - d.im, b.im + d.re};
    out[3] = {b.re + d.im, b.im - d.re};
}

// One stage of Stockham's self-sorting transform: ``done`` is the product of the factors before it.
template <int P>
void stage(const Plan &plan, int number, int done, float sign, const Complex *from, Complex *to) {
    const float *roots = plan.tables[number];
    int left = plan.length / (done * P);
    const float *cosines = roots + 2 * P, *sines = cosines + (P - 1) * left;
    for (int k = 0; k < done; k++)
        for (int i = 0; i < left; i++) {
            Complex in[P], out[P];
            for (int j = 0; j < P; j++) in[j] = from[i + left * (j + P * k)];
            butterfly<P>(in, roots, sign, out);
            to[i + left * k] = out[0];
            for (int j = 1; j < P; j++) {
                float cosine = cosines[(j - 1) * left + i], sine = sign * sines[(j - 1) * left + i];
                to[i + left * (k + done * j)] = {out[j].re * cosine - out[j].im * sine,
                                                 out[j].re * sine + out[j].im * cosine};
            }
        }
}

// Not normalised; sign -1 forward, +1 inverse. The result is in ``data`` or in ``spare``, whichever is returned.
Complex *transform(const Plan &plan, float sign, Complex *data, Complex *spare) {
    int done = 1;
    for (int number = 0; number < plan.count; number++) {
        switch (plan.factors[number]) {
            case 2: stage<2>(plan, number, done, sign, data, spare); break;
            case 3: stage<3>(plan, number, done, sign, data, spare); break;
            case 4: stage<4>(plan, number, done, sign, data, spare); break;
            case 5: stage<5>(plan, number, done, sign, data, spare); break;
            case 7: stage<7>(plan, number, done, sign, data, spare); break;
            case 11: stage<11>(plan, number, done, sign, data, spare); break;
            case 13: stage<13>(plan, number, done, sign, data, spare); break;
            default: stage<29>(plan, number, done, sign, data, spare); break;
        }
        done *= plan.factors[number];
        Complex *other = data;
        data = spare;
        spare = other;
    }
    return data;
}

INLINE Vector modulus(Complex value) {
    Vector squared = value.re * value.re + value.im * value.im, root = squared;
    for (int lane = 0; lane < LANES; lane++) root[lane] = __builtin_sqrtf(squared[lane]);
    return root;
}

// out[size][step] = matrix [size][length] x in[length][in_step], vectors; the smoothing of one row or column.
void smooth(const float *matrix, int size, int length, const float *in, long in_step, float *out, long out_step) {
    for (int first = 0; first < size; first += OUTPUTS) {
        int many = size - first < OUTPUTS ? size - first : OUTPUTS;
        const float *rows[OUTPUTS];
        for (int r = 0; r < OUTPUTS; r++) rows[r] = matrix + (long)(first + (r < many ? r : 0)) * length;
        Vector sums[OUTPUTS];
        for (int r = 0; r < OUTPUTS; r++) sums[r] = (Vector){};
        for (int i = 0; i < length; i++) {
            Vector value = load(in + i * in_step);
            for (int r = 0; r < OUTPUTS; r++) sums[r] += rows[r][i] * value;
        }
        for (int r = 0; r < many; r++) store(out + (first + r) * out_step, sums[r]);
    }
}

struct Sizes {
    int rows, columns;  // padded
    int half_rows() const { return rows / 2; }
    int half_columns() const { return columns / 2; }
    int out_rows() const { return rows / STEP - 2; }
    int out_columns() const { return columns / STEP - 2; }
};

struct Constants {
    Plan rows, columns, half_rows, half_columns;
    const float *fine;           // [rows][columns][LANES], wavelets of scale 0, with the inverse's normalisation
    const float *coarse;         // the same of scale 1, with that of the folding, too
    const float *coarse_scalars; // [ANGLES][rows][columns], the same again
    const float *left_full, *right_full, *left_half, *right_half;  // [out][in]
};

struct Buffers {
    float *re, *im;          // [rows][columns][LANES]
    float *spectrum_re, *spectrum_im;  // [rows][columns]
    float *half_re, *half_im;  // [1 + ANGLES][half_rows][half_columns][LANES]
    float *smoothed;         // [out_rows][columns][LANES]
    float *line;             // [max(rows, columns)][LANES]
    Complex *a, *b, *c, *d;  // [LONGEST]
};

INLINE Complex *gather(const float *re, const float *im, int count, long step, Complex *to) {
    for (int i = 0; i < count; i++) to[i] = {load(re + i * step), load(im + i * step)};
    return to;
}

INLINE void scatter(const Complex *from, int count, long step, float *re, float *im) {
    for (int i = 0; i < count; i++) {
        store(re + i * step, from[i].re);
        store(im + i * step, from[i].im);
    }
}

// Spectrum of the padded frame, [rows][columns]. Eight neighbouring columns, then eight rows, take the lanes.
void frame_spectrum(const Sizes &size, const Constants &constants, Buffers &work, const float *padded) {
    for (int x = 0; x < size.columns; x += LANES) {
        for (int y = 0; y < size.rows; y++) {
            work.a[y] = {(Vector){}, (Vector){}};
            for (int lane = 0; lane < LANES && x + lane < size.columns; lane++)
                work.a[y].re[lane] = padded[(long)y * size.columns + x + lane];
        }
        Complex *done = transform(constants.rows, -1.0f, work.a, work.b);
        for (int y = 0; y < size.rows; y++)
            for (int lane = 0; lane < LANES && x + lane < size.columns; lane++) {
                work.spectrum_re[(long)y * size.columns + x + lane] = done[y].re[lane];
                work.spectrum_im[(long)y * size.columns + x + lane] = done[y].im[lane];
            }
    }
    for (int y = 0; y < size.rows; y += LANES) {
        for (int x = 0; x < size.columns; x++) {
            work.a[x] = {(Vector){}, (Vector){}};
            for (int lane = 0; lane < LANES && y + lane < size.rows; lane++) {
                work.a[x].re[lane] = work.spectrum_re[(long)(y + lane) * size.columns + x];
                work.a[x].im[lane] = work.spectrum_im[(long)(y + lane) * size.columns + x];
            }
        }
        Complex *done = transform(constants.columns, -1.0f, work.a, work.b);
        for (int x = 0; x < size.columns; x++)
            for (int lane = 0; lane < LANES && y + lane < size.rows; lane++) {
                work.spectrum_re[(long)(y + lane) * size.columns + x] = done[x].re[lane];
                work.spectrum_im[(long)(y + lane) * size.columns + x] = done[x].im[lane];
            }
    }
}

// Lanes of a smoothed map [out_rows][columns of the map][LANES] -> channels first, first + step, ... of the output.
void write_channels(const Sizes &size, const float *matrix, const float *smoothed, int length, float *line, float *out,
                    int first, int step) {
    long places = (long)size.out_rows() * size.out_columns();
    for (int y = 0; y < size.out_rows(); y++) {
        smooth(matrix, size.out_columns(), length, smoothed + (long)y * length * LANES, LANES, line, LANES);
        for (int angle = 0; angle < ANGLES; angle++)
            for (int x = 0; x < size.out_columns(); x++)
                out[(first + angle * step) * places + (long)y * size.out_columns() + x] = line[x * LANES + angle];
    }
}

// First order at scale 0: inverse transforms, moduli, their smoothing, and transforms of the columns back.
void fine_order(const Sizes &size, const Constants &constants, Buffers &work, float *out) {
    long row = (long)size.columns * LANES;
    for (int y = 0; y < size.rows; y++) {
        const float *wavelets = constants.fine + y * row;
        for (int x = 0; x < size.columns; x++) {
            Vector wavelet = load(wavelets + x * LANES);
            long at = (long)y * size.columns + x;
            work.a[x] = {wavelet * work.spectrum_re[at], wavelet * work.spectrum_im[at]};
        }
        Complex *done = transform(constants.columns, 1.0f, work.a, work.b);
        scatter(done, size.columns, LANES, work.re + y * row, work.im + y * row);
    }
    for (int x = 0; x < size.columns; x++) {
        Complex *a = gather(work.re + x * LANES, work.im + x * LANES, size.rows, row, work.a);
        a = transform(constants.rows, 1.0f, a, work.b);
        for (int y = 0; y < size.rows; y++) {
            Vector value = modulus(a[y]);
            store(work.line + y * LANES, value);
            work.c[y] = {value, (Vector){}};
        }
        smooth(constants.left_full, size.out_rows(), size.rows, work.line, LANES, work.smoothed + x * LANES, row);
        Complex *c = transform(constants.rows, -1.0f, work.c, work.d);
        scatter(c, size.rows, row, work.re + x * LANES, work.im + x * LANES);
    }
    write_channels(size, constants.right_full, work.smoothed, size.columns, work.line, out, 1, 1);
}

// Both orders at scale 1 in Fourier space: products, folded to half size, and the inverse transforms of the rows.
void filter_and_fold(const Sizes &size, const Constants &constants, Buffers &work) {
    int rows = size.half_rows(), columns = size.half_columns();
    long row = (long)size.columns * LANES, half_row = (long)columns * LANES, half = rows * half_row;
    for (int y = 0; y < rows; y++) {
        // Rows y and y + rows of the moduli's spectra, in work.a and work.c or wherever their transforms end.
        Complex *upper = gather(work.re + y * row, work.im + y * row, size.columns, LANES, work.a);
        upper = transform(constants.columns, -1.0f, upper, work.b);
        long below = (y + rows) * row;
        Complex *lower = gather(work.re + below, work.im + below, size.columns, LANES, work.c);
        lower = transform(constants.columns, -1.0f, lower, work.d);
        Complex *products = upper == work.a ? work.b : work.a, *spare = lower == work.c ? work.d : work.c;
        long first = (long)y * size.columns, second = (long)(y + rows) * size.columns;
        for (int map = 0; map <= ANGLES; map++) {
            for (int x = 0; x < columns; x++) {
                if (map == ANGLES) {  // first order: one spectrum, wavelets in the lanes
                    Vector re = (Vector){}, im = (Vector){};
                    for (long at : {first + x, first + x + columns, second + x, second + x + columns}) {
                        Vector wavelet = load(constants.coarse + at * LANES);
                        re += wavelet * work.spectrum_re[at];
                        im += wavelet * work.spectrum_im[at];
                    }
                    products[x] = {re, im};
                    continue;
                }
                const float *wavelet = constants.coarse_scalars + (long)map * size.rows * size.columns;
                float w0 = wavelet[first + x], w1 = wavelet[first + x + columns];
                float w2 = wavelet[second + x], w3 = wavelet[second + x + columns];
                products[x] = {w0 * upper[x].re + w1 * upper[x + columns].re + w2 * lower[x].re +
                                   w3 * lower[x + columns].re,
                               w0 * upper[x].im + w1 * upper[x + columns].im + w2 * lower[x].im +
                                   w3 * lower[x + columns].im};
            }
            Complex *done = transform(constants.half_columns, 1.0f, products, spare);
            long at = map * half + y * half_row;
            scatter(done, columns, LANES, work.half_re + at, work.half_im + at);
        }
    }
}

// What is left of the maps at half size: inverse transforms of the columns, moduli, smoothing.
void finish_half(const Sizes &size, const Constants &constants, Buffers &work, float *out) {
    int rows = size.half_rows(), columns = size.half_columns();
    long half_row = (long)columns * LANES, half = rows * half_row;
    for (int map = 0; map <= ANGLES; map++) {
        for (int x = 0; x < columns; x++) {
            long at = map * half + (long)x * LANES;
            Complex *a = gather(work.half_re + at, work.half_im + at, rows, half_row, work.a);
            a = transform(constants.half_rows, 1.0f, a, work.b);
            for (int y = 0; y < rows; y++) store(work.line + y * LANES, modulus(a[y]));
            smooth(constants.left_half, size.out_rows(), rows, work.line, LANES, work.smoothed + x * LANES, half_row);
        }
        // Second order: channel 13 + first angle (a lane) * 6 + second angle (a map).
        bool first_order = map == ANGLES;
        write_channels(size, constants.right_half, work.smoothed, columns, work.line, out, first_order ? 7 : 13 + map,
                       first_order ? 1 : ANGLES);
    }
}

// Low-pass of the frame itself: channel 0.
void low_pass(const Sizes &size, const Constants &constants, Buffers &work, const float *padded, float *out) {
    float *half = work.smoothed;  // [out_rows][columns]
    for (int r = 0; r < size.out_rows(); r++) {
        for (int x = 0; x < size.columns; x++) half[(long)r * size.columns + x] = 0.0f;
        for (int y = 0; y < size.rows; y++) {
            float weight = constants.left_full[(long)r * size.rows + y];
            for (int x = 0; x < size.columns; x++)
                half[(long)r * size.columns + x] += weight * padded[(long)y * size.columns + x];
        }
    }
    for (int r = 0; r < size.out_rows(); r++)
        for (int c = 0; c < size.out_columns(); c++) {
            Vector sums = (Vector){};
            const float *in = half + (long)r * size.columns, *matrix = constants.right_full + (long)c * size.columns;
            int x = 0;
            for (; x + LANES <= size.columns; x += LANES)
                for (int lane = 0; lane < LANES; lane++) sums[lane] += in[x + lane] * matrix[x + lane];
            float total = 0.0f;
            for (int lane = 0; lane < LANES; lane++) total += sums[lane];
            for (; x < size.columns; x++) total += in[x] * matrix[x];
            out[(long)r * size.out_columns() + c] = total;
        }
}

Plan take_plan(Taken &give, const int *&factors, int length) {
    Plan plan = {length, *factors++, {}, {}};
    for (int number = 0, left = length; number < plan.count; number++) {
        int factor = plan.factors[number] = *factors++;
        left /= factor;
        plan.tables[number] = give(2L * factor + 2L * (factor - 1) * left);
    }
    return plan;
}

}  // namespace

extern "C" {

int fused_scattering_longest() { return LONGEST; }

// Floats of workspace that ``fused_scatter`` needs, aligned to 64 bytes.
long fused_scattering_workspace(int rows, int columns) {
    Sizes size = {rows, columns};
    long full = (long)rows * columns * LANES;
    long half = (1L + ANGLES) * size.half_rows() * size.half_columns() * LANES;
    return 2 * full + 2 * to_vectors((long)rows * columns) + 2 * to_vectors(half) +
           to_vectors((long)size.out_rows() * columns * LANES) + LONGEST * LANES + 4 * LONGEST * 2 * LANES;
}

// ``padded`` [rows][columns] -> ``out`` [49][rows / 4 - 2][columns / 4 - 2]. ``factors``: of the transforms of
// rows, columns, and half of them, each after their number; ``constants``: what scattering.py packs.
void fused_scatter(const float *padded, int rows, int columns, const int *factors, const float *constants,
                   float *workspace, float *out) {
    Sizes size = {rows, columns};
    long full = (long)rows * columns;
    Taken give = {const_cast<float *>(constants)};
    Constants fixed;
    fixed.rows = take_plan(give, factors, rows);
    fixed.columns = take_plan(give, factors, columns);
    fixed.half_rows = take_plan(give, factors, size.half_rows());
    fixed.half_columns = take_plan(give, factors, size.half_columns());
    fixed.fine = give(full * LANES);
    fixed.coarse = give(full * LANES);
    fixed.coarse_scalars = give(full * ANGLES);
    fixed.left_full = give((long)size.out_rows() * rows);
    fixed.right_full = give((long)size.out_columns() * columns);
    fixed.left_half = give((long)size.out_rows() * size.half_rows());
    fixed.right_half = give((long)size.out_columns() * size.half_columns());

    Taken take = {workspace};
    Buffers work;
    work.re = take(full * LANES);
    work.im = take(full * LANES);
    work.spectrum_re = take(full);
    work.spectrum_im = take(full);
    long half = (1L + ANGLES) * size.half_rows() * size.half_columns() * LANES;
    work.half_re = take(half);
    work.half_im = take(half);
    work.smoothed = take((long)size.out_rows() * columns * LANES);
    work.line = take((long)LONGEST * LANES);
    for (Complex **buffer : {&work.a, &work.b, &work.c, &work.d})
        *buffer = reinterpret_cast<Complex *>(take(2L * LONGEST * LANES));

    frame_spectrum(size, fixed, work, padded);
    fine_order(size, fixed, work, out);
    filter_and_fold(size, fixed, work);
    finish_half(size, fixed, work, out);
    low_pass(size, fixed, work, padded, out);
}

}  // extern "C"
