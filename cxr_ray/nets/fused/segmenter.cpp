// Module 1 on a CPU: a frame goes through each residual block in strips of rows that stay in the cache.
//
// Compiled once for every instruction set (pyproject.toml): FUSED_LANES floats fill a vector, and FUSED_PIXELS vectors
// leave registers free. All arithmetic is float32, and every sum is formed in one order with fused multiply-add,
// whatever lanes, pixels and strips are: so every build gives the same bits.
//
// Memory: channels come in groups of one vector. A frame is [row][group][column][lane]; rows of intermediate results
// have PAD zero columns on both sides and live in rings of RING rows; rows outside the frame are one row of zeros.

#include "memory.h"

namespace {

constexpr int VERSION = 1;  // of what goes in and comes out; library.py asks for the same
constexpr int LANES = FUSED_LANES, PIXELS = FUSED_PIXELS;
constexpr int BRANCHES = 3, FILTERS = 16, CHANNELS = BRANCHES * FILTERS, CLASSES = 2;
constexpr int FILTER_GROUPS = FILTERS / LANES, GROUPS = CHANNELS / LANES;
constexpr int PAD = 15;                // of the widest kernel: 7 x 7, dilation 5
constexpr int STRIP = 10;              // rows
constexpr int RING = STRIP + 2 * PAD;  // a strip, and what its kernels reach above and below
constexpr float SLOPE = 0.1f;          // of LeakyReLU

typedef float Vector __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define KEPT_APART __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 64")

INLINE Vector load(const float *from) { return *reinterpret_cast<const Vector *>(from); }
INLINE void store(float *to, Vector value) { *reinterpret_cast<Vector *>(to) = value; }
INLINE Vector leaky(Vector x) { return x > 0.0f ? x : x * SLOPE; }

// One branch of a block. Depthwise weights are [group][K * K][lane], matrices [group out][in][lane].
struct Branch {
    const float *first_depthwise, *first_matrix, *first_bias, *second_depthwise, *second_matrix;
};

struct Block {
    const float *scale, *shift;    // [48], the norm before the branches
    const float *shortcut, *bias;  // matrix and [48]; the norm and the branches' last biases are folded in
    Branch branches[BRANCHES];
};

struct Frame {
    int rows, columns, padded;
    float *x;                 // [rows][GROUPS][columns][LANES]
    float *activated;         // [RING][GROUPS][padded][LANES]
    float *middle[BRANCHES];  // [RING][FILTER_GROUPS][padded][LANES]
    const float *zeros;       // as one row of ``activated``
    float *scratch;           // [columns * CHANNELS]

    long group() const { return (long)columns * LANES; }
    long padded_group() const { return (long)padded * LANES; }
    float *row(int y) const { return x + y * GROUPS * group(); }
    float *activated_row(int y) const { return activated + y % RING * GROUPS * padded_group(); }
    float *middle_row(int q, int y) const { return middle[q] + y % RING * FILTER_GROUPS * padded_group(); }
};

// PIXELS outputs of a depthwise convolution; rows[ky] points at the first tap of kernel row ky.
template <int K, int D>
INLINE void depthwise(const float *const *rows, long offset, const float *weights, float *out, int step) {
    Vector sums[PIXELS];
    UNROLL for (int i = 0; i < PIXELS; i++) sums[i] = (Vector){};
    for (int ky = 0; ky < K; ky++, weights += K * LANES) {
        const float *in = rows[ky] + offset;
        UNROLL for (int kx = 0; kx < K; kx++) {
            Vector weight = load(weights + kx * LANES);
            UNROLL for (int i = 0; i < PIXELS; i++) sums[i] += weight * load(in + (kx * D + i) * LANES);
        }
    }
    UNROLL for (int i = 0; i < PIXELS; i++) store(out + i * step, sums[i]);
}

template <int K, int D>
KEPT_APART void depthwise_row(const float *const *rows, int columns, const float *weights, float *out, int step) {
    for (long x = 0; x < columns; x += PIXELS) depthwise<K, D>(rows, x * LANES, weights, out + x * step, step);
}

// sums += in x matrix for PIXELS pixels, ``step`` floats apart.
INLINE void multiply(const float *in, int step, const float *matrix, int inputs, Vector *sums) {
    for (int c = 0; c < inputs; c++) {
        Vector weight = load(matrix + c * LANES);
        UNROLL for (int i = 0; i < PIXELS; i++) sums[i] += weight * in[i * step + c];
    }
}

// Where the taps of output row y begin, in rows that ``row(y)`` finds.
template <int K, int D, typename Row>
INLINE void find_taps(const Frame &frame, Row row, int y, const float **rows) {
    constexpr int reach = D * (K - 1) / 2;
    for (int ky = 0; ky < K; ky++) {
        int at = y - reach + ky * D;
        rows[ky] = (at >= 0 && at < frame.rows ? row(at) : frame.zeros) + (PAD - reach) * LANES;
    }
}

KEPT_APART void first_matrix_row(const Frame &frame, const Branch &branch, float *out) {
    for (int f = 0; f < FILTER_GROUPS; f++, out += frame.padded_group()) {
        Vector bias = load(branch.first_bias + f * LANES);
        for (long x = 0; x < frame.columns; x += PIXELS) {
            Vector sums[PIXELS];
            UNROLL for (int i = 0; i < PIXELS; i++) sums[i] = bias;
            multiply(frame.scratch + x * CHANNELS, CHANNELS, branch.first_matrix + f * CHANNELS * LANES, CHANNELS, sums);
            UNROLL for (int i = 0; i < PIXELS; i++) store(out + (PAD + x + i) * LANES, leaky(sums[i]));
        }
    }
}

// Row y of branch q up to the activation between its two separable convolutions.
template <int K, int D>
void first_half(const Frame &frame, const Block &block, int q, int y) {
    const Branch &branch = block.branches[q];
    const float *rows[K];
    find_taps<K, D>(frame, [&](int at) { return frame.activated_row(at); }, y, rows);
    for (int g = 0; g < GROUPS; g++) {
        const float *weights = branch.first_depthwise + g * K * K * LANES;
        depthwise_row<K, D>(rows, frame.columns, weights, frame.scratch + g * LANES, CHANNELS);
        for (int ky = 0; ky < K; ky++) rows[ky] += frame.padded_group();
    }
    first_matrix_row(frame, branch, frame.middle_row(q, y));
}

// Row y of branch q's second depthwise convolution, [columns][FILTERS], into the branch's part of the scratch.
template <int K, int D>
void second_depthwise(const Frame &frame, const Block &block, int q, int y) {
    const float *rows[K];
    find_taps<K, D>(frame, [&](int at) { return frame.middle_row(q, at); }, y, rows);
    for (int f = 0; f < FILTER_GROUPS; f++) {
        const float *weights = block.branches[q].second_depthwise + f * K * K * LANES;
        float *out = frame.scratch + (long)q * frame.columns * FILTERS + f * LANES;
        depthwise_row<K, D>(rows, frame.columns, weights, out, FILTERS);
        for (int ky = 0; ky < K; ky++) rows[ky] += frame.padded_group();
    }
}

// Row y of a block's output, over its input. ``plane``: the row of a one-channel input, or null.
KEPT_APART void finish_row(const Frame &frame, const Block &block, const float *plane, int y) {
    int inputs = plane ? 1 : CHANNELS;
    float *row = frame.row(y);
    alignas(64) float copy[PIXELS * CHANNELS];
    for (long x = 0; x < frame.columns; x += PIXELS) {
        const float *in = plane ? plane + x : copy;
        if (!plane)
            for (int g = 0; g < GROUPS; g++)
                UNROLL for (int i = 0; i < PIXELS; i++)
                    store(copy + i * CHANNELS + g * LANES, load(row + g * frame.group() + (x + i) * LANES));
        for (int g = 0; g < GROUPS; g++) {
            int q = g / FILTER_GROUPS;
            Vector sums[PIXELS], bias = load(block.bias + g * LANES);
            UNROLL for (int i = 0; i < PIXELS; i++) sums[i] = bias;
            multiply(in, inputs, block.shortcut + g * inputs * LANES, inputs, sums);
            multiply(frame.scratch + ((long)q * frame.columns + x) * FILTERS, FILTERS,
                     block.branches[q].second_matrix + g % FILTER_GROUPS * FILTERS * LANES, FILTERS, sums);
            UNROLL for (int i = 0; i < PIXELS; i++) store(row + g * frame.group() + (x + i) * LANES, sums[i]);
        }
    }
}

void second_half(const Frame &frame, const Block &block, const float *plane, int y) {
    second_depthwise<3, 1>(frame, block, 0, y);
    second_depthwise<5, 3>(frame, block, 1, y);
    second_depthwise<7, 5>(frame, block, 2, y);
    finish_row(frame, block, plane, y);
}

KEPT_APART void activate_row(const Frame &frame, const Block &block, int y) {
    for (int g = 0; g < GROUPS; g++) {
        Vector scale = load(block.scale + g * LANES), shift = load(block.shift + g * LANES);
        const float *in = frame.row(y) + g * frame.group();
        float *out = frame.activated_row(y) + g * frame.padded_group() + PAD * LANES;
        for (long x = 0; x < frame.group(); x += LANES) store(out + x, leaky(load(in + x) * scale + shift));
    }
}

void run_block(const Frame &frame, const Block &block) {
    int activated = 0, finished = 0;
    for (int top = 0; top < frame.rows; top += STRIP) {
        int end = top + STRIP < frame.rows ? top + STRIP : frame.rows;
        int ahead = end + PAD < frame.rows ? end + PAD : frame.rows;
        for (; activated < ahead; activated++) activate_row(frame, block, activated);
        for (int y = top; y < end; y++) first_half<3, 1>(frame, block, 0, y);
        for (int y = top; y < end; y++) first_half<5, 3>(frame, block, 1, y);
        for (int y = top; y < end; y++) first_half<7, 5>(frame, block, 2, y);
        // A finished row replaces its input, which nothing needs any more: it was activated already.
        int ready = end == frame.rows ? end : end - PAD;
        for (; finished < ready; finished++) second_half(frame, block, nullptr, finished);
    }
}

// The same of the first block, whose input is ``plane`` [rows + 2 PAD][padded].
template <int K, int D>
void stem_first_half(const Frame &frame, const Block &block, int q, const float *plane, int y) {
    constexpr int reach = D * (K - 1) / 2;
    const Branch &branch = block.branches[q];
    const float *first = plane + (long)(y + PAD - reach) * frame.padded + PAD - reach;
    float *sums = frame.scratch;
    for (int x = 0; x < frame.columns; x++) sums[x] = 0.0f;
    for (int ky = 0; ky < K; ky++)
        for (int kx = 0; kx < K; kx++) {
            float weight = branch.first_depthwise[ky * K + kx];
            const float *in = first + (long)ky * D * frame.padded + kx * D;
            for (int x = 0; x < frame.columns; x++) sums[x] += weight * in[x];
        }
    for (int f = 0; f < FILTER_GROUPS; f++) {
        Vector matrix = load(branch.first_matrix + f * LANES), bias = load(branch.first_bias + f * LANES);
        float *out = frame.middle_row(q, y) + f * frame.padded_group() + PAD * LANES;
        for (int x = 0; x < frame.columns; x++) store(out + x * LANES, leaky(bias + matrix * sums[x]));
    }
}

void run_stem(const Frame &frame, const Block &block, const float *plane) {
    int finished = 0;
    for (int top = 0; top < frame.rows; top += STRIP) {
        int end = top + STRIP < frame.rows ? top + STRIP : frame.rows;
        for (int y = top; y < end; y++) {
            stem_first_half<3, 1>(frame, block, 0, plane, y);
            stem_first_half<5, 3>(frame, block, 1, plane, y);
            stem_first_half<7, 5>(frame, block, 2, plane, y);
        }
        int ready = end == frame.rows ? end : end - PAD;
        for (; finished < ready; finished++)
            second_half(frame, block, plane + (long)(finished + PAD) * frame.padded + PAD, finished);
    }
}

// 48 channels -> activated logits [CLASSES][rows][columns]. The sum over channels has 16 parts, whatever the lanes.
void run_head(const Frame &frame, const float *matrix, const float *bias, float *logits) {
    for (int k = 0; k < CLASSES; k++)
        for (int y = 0; y < frame.rows; y++)
            for (int x = 0; x < frame.columns; x++) {
                float total = bias[k];
                for (int f = 0; f < FILTER_GROUPS; f++) {
                    Vector sum = (Vector){};
                    for (int q = 0; q < BRANCHES; q++) {
                        int g = q * FILTER_GROUPS + f;
                        sum += load(matrix + k * CHANNELS + g * LANES) *
                               load(frame.row(y) + g * frame.group() + x * LANES);
                    }
                    for (int lane = 0; lane < LANES; lane++) total += sum[lane];
                }
                logits[((long)k * frame.rows + y) * frame.columns + x] = total > 0.0f ? total : total * SLOPE;
            }
}

}  // namespace

extern "C" {

int fused_version() { return VERSION; }

int fused_lanes() { return LANES; }

// Columns must be a multiple of it.
int fused_pixels() { return PIXELS; }

// Floats of workspace that ``fused_segment`` needs. All zero at the first call, aligned to 64 bytes, kept between calls
// of one frame size.
long fused_workspace(int rows, int columns) {
    long padded = columns + 2 * PAD;
    return (long)rows * columns * CHANNELS + 2L * RING * padded * CHANNELS + padded * CHANNELS +
           (long)columns * CHANNELS + to_vectors((rows + 2 * PAD) * padded);
}

// ``pixels`` [rows][columns], 0 to 1 -> activated logits [2][rows][columns]. ``weights``, aligned to 64 bytes, is
// what segmenter.py packs: every array padded to a multiple of 16 floats.
void fused_segment(const float *pixels, int rows, int columns, const float *weights, int blocks, float *workspace,
                   float *logits) {
    Frame frame = {rows, columns, columns + 2 * PAD};
    Taken take = {workspace};
    frame.x = take((long)rows * columns * CHANNELS);
    frame.activated = take((long)RING * frame.padded * CHANNELS);
    for (int q = 0; q < BRANCHES; q++) frame.middle[q] = take((long)RING * frame.padded * FILTERS);
    frame.zeros = take((long)frame.padded * CHANNELS);
    frame.scratch = take((long)columns * CHANNELS);
    float *plane = take((long)(rows + 2 * PAD) * frame.padded);
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < columns; x++)
            plane[(long)(y + PAD) * frame.padded + PAD + x] = pixels[(long)y * columns + x];

    Taken give = {const_cast<float *>(weights)};
    for (int b = 0; b < blocks; b++) {
        int inputs = b ? CHANNELS : 1;
        Block block = {};
        if (b) {
            block.scale = give(CHANNELS);
            block.shift = give(CHANNELS);
        }
        block.shortcut = give(inputs * CHANNELS);
        block.bias = give(CHANNELS);
        for (int q = 0; q < BRANCHES; q++) {
            int kernel = 3 + 2 * q, taps = kernel * kernel;
            Branch &branch = block.branches[q];
            branch.first_depthwise = give(taps * inputs);
            branch.first_matrix = give(inputs * FILTERS);
            branch.first_bias = give(FILTERS);
            branch.second_depthwise = give(taps * FILTERS);
            branch.second_matrix = give(FILTERS * FILTERS);
        }
        if (b)
            run_block(frame, block);
        else
            run_stem(frame, block, plane);
    }
    const float *matrix = give(CLASSES * CHANNELS);
    run_head(frame, matrix, give(CLASSES), logits);
}

}  // extern "C"
