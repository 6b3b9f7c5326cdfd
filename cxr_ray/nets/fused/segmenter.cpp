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
    const struct Head *head;  // of the last block: takes its output, which is not kept
};

// The last convolution, 48 channels -> CLASSES, and the activation after it.
struct Head {
    const float *matrix, *bias;  // [CLASSES][48], [CLASSES]
    float *logits;               // [CLASSES][rows][columns]
};

struct Frame {
    int rows, columns, padded;
    float *x;                 // [rows][GROUPS][columns][LANES]
    float *activated;         // [RING][GROUPS][padded][LANES]
    float *middle[BRANCHES];  // [RING][FILTER_GROUPS][padded][LANES]
    const float *zeros;       // as one row of ``activated``
    float *scratch;           // [STRIP][columns * CHANNELS]

    long group() const { return (long)columns * LANES; }
    long padded_group() const { return (long)padded * LANES; }
    float *row(int y) const { return x + y * GROUPS * group(); }
    float *activated_row(int y) const { return activated + y % RING * GROUPS * padded_group(); }
    float *scratch_row(int row) const { return scratch + row * GROUPS * group(); }
    float *middle_row(int q, int y) const { return middle[q] + y % RING * FILTER_GROUPS * padded_group(); }
};

// One input row of a depthwise convolution into the outputs of rows FIRST to LAST, for which it is kernel row ky - row.
template <int K, int D, int FIRST, int LAST, int WIDE>
INLINE void add_row(const float *in, const float *weights, int ky, Vector (*sums)[WIDE]) {
    UNROLL for (int kx = 0; kx < K; kx++) {
        Vector weight[LAST + 1];
        UNROLL for (int r = FIRST; r <= LAST; r++) weight[r] = load(weights + ((ky - r) * K + kx) * LANES);
        UNROLL for (int i = 0; i < WIDE; i++) {
            Vector value = load(in + (kx * D + i) * LANES);
            UNROLL for (int r = FIRST; r <= LAST; r++) sums[r][i] += weight[r] * value;
        }
    }
}

// ROWS x WIDE outputs of a depthwise convolution, in one row or in two that are D apart, which share most of the rows
// they read. rows[ky] points at the first tap of kernel row ky of the first of them.
template <int K, int D, int ROWS>
INLINE void depthwise(const float *const *rows, long offset, const float *weights, float *const *out, long at,
                      int step) {
    constexpr int WIDE = PIXELS / ROWS;
    Vector sums[ROWS][WIDE];
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int i = 0; i < WIDE; i++) sums[r][i] = (Vector){};
    if (ROWS == 2) add_row<K, D, 0, 0>(rows[0] + offset, weights, 0, sums);
    for (int ky = ROWS - 1; ky < K; ky++) add_row<K, D, 0, ROWS - 1>(rows[ky] + offset, weights, ky, sums);
    if (ROWS == 2) add_row<K, D, ROWS - 1, ROWS - 1>(rows[K] + offset, weights, K, sums);
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int i = 0; i < WIDE; i++) store(out[r] + at + i * step, sums[r][i]);
}

template <int K, int D, int ROWS>
KEPT_APART void depthwise_rows(const float *const *rows, int columns, const float *weights, float *const *out,
                               int step) {
    for (long x = 0; x < columns; x += PIXELS / ROWS)
        depthwise<K, D, ROWS>(rows, x * LANES, weights, out, x * step, step);
}

// Rows [top, end) two by two, D apart; those without a partner alone.
template <int D, typename Two, typename One>
INLINE void in_pairs(int top, int end, Two two, One one) {
    for (int y = top; y < end; y++) {
        bool upper = (y - top) % (2 * D) < D;
        if (upper && y + D < end)
            two(y);
        else if (upper)
            one(y);
    }
}

// sums += in x matrix for PIXELS pixels, STEP floats apart.
template <int INPUTS, int STEP>
INLINE void multiply(const float *in, const float *matrix, Vector *sums) {
    for (int c = 0; c < INPUTS; c++) {
        Vector weight = load(matrix + c * LANES);
        UNROLL for (int i = 0; i < PIXELS; i++) sums[i] += weight * in[i * STEP + c];
    }
}

// Where the taps of output rows y, y + D... begin, in rows that ``row(y)`` finds.
template <int K, int D, int ROWS, typename Row>
INLINE void find_taps(const Frame &frame, Row row, int y, const float **rows) {
    constexpr int reach = D * (K - 1) / 2;
    for (int ky = 0; ky < K + ROWS - 1; ky++) {
        int at = y - reach + ky * D;
        rows[ky] = (at >= 0 && at < frame.rows ? row(at) : frame.zeros) + (PAD - reach) * LANES;
    }
}

KEPT_APART void first_matrix_row(const Frame &frame, const Branch &branch, const float *in, float *out) {
    for (int f = 0; f < FILTER_GROUPS; f++, out += frame.padded_group()) {
        Vector bias = load(branch.first_bias + f * LANES);
        for (long x = 0; x < frame.columns; x += PIXELS) {
            Vector sums[PIXELS];
            UNROLL for (int i = 0; i < PIXELS; i++) sums[i] = bias;
            multiply<CHANNELS, CHANNELS>(in + x * CHANNELS, branch.first_matrix + f * CHANNELS * LANES, sums);
            UNROLL for (int i = 0; i < PIXELS; i++) store(out + (PAD + x + i) * LANES, leaky(sums[i]));
        }
    }
}

// Rows y, y + D... of branch q up to the activation between its two separable convolutions.
template <int K, int D, int ROWS>
void first_half(const Frame &frame, const Block &block, int q, int y) {
    const Branch &branch = block.branches[q];
    const float *rows[K + ROWS - 1];
    float *out[ROWS];
    for (int r = 0; r < ROWS; r++) out[r] = frame.scratch_row(r);
    find_taps<K, D, ROWS>(frame, [&](int at) { return frame.activated_row(at); }, y, rows);
    for (int g = 0; g < GROUPS; g++) {
        depthwise_rows<K, D, ROWS>(rows, frame.columns, branch.first_depthwise + g * K * K * LANES, out, CHANNELS);
        for (const float *&row : rows) row += frame.padded_group();
        for (float *&row : out) row += LANES;
    }
    for (int r = 0; r < ROWS; r++)
        first_matrix_row(frame, branch, frame.scratch_row(r), frame.middle_row(q, y + r * D));
}

template <int K, int D>
void first_halves(const Frame &frame, const Block &block, int q, int top, int end) {
    in_pairs<D>(
        top, end, [&](int y) { first_half<K, D, 2>(frame, block, q, y); },
        [&](int y) { first_half<K, D, 1>(frame, block, q, y); });
}

// Rows y, y + D... of branch q's second depthwise convolution, [columns][FILTERS], into its part of scratch rows.
template <int K, int D, int ROWS>
void second_depthwise(const Frame &frame, const Block &block, int q, int top, int y) {
    const float *rows[K + ROWS - 1];
    float *out[ROWS];
    for (int r = 0; r < ROWS; r++) out[r] = frame.scratch_row(y + r * D - top) + (long)q * frame.columns * FILTERS;
    find_taps<K, D, ROWS>(frame, [&](int at) { return frame.middle_row(q, at); }, y, rows);
    for (int f = 0; f < FILTER_GROUPS; f++) {
        const float *weights = block.branches[q].second_depthwise + f * K * K * LANES;
        depthwise_rows<K, D, ROWS>(rows, frame.columns, weights, out, FILTERS);
        for (const float *&row : rows) row += frame.padded_group();
        for (float *&row : out) row += LANES;
    }
}

template <int K, int D>
void second_depthwises(const Frame &frame, const Block &block, int q, int top, int end) {
    in_pairs<D>(
        top, end, [&](int y) { second_depthwise<K, D, 2>(frame, block, q, top, y); },
        [&](int y) { second_depthwise<K, D, 1>(frame, block, q, top, y); });
}

// Logits of PIXELS pixels, [GROUPS][PIXELS][lane], from column x of row y on. The sum over channels has 16 parts,
// whatever the lanes are.
INLINE void apply_head(const Frame &frame, const Head &head, const float *in, int y, long x) {
    for (int k = 0; k < CLASSES; k++) {
        alignas(64) float sums[FILTER_GROUPS][PIXELS][LANES];
        float totals[PIXELS];
        for (int i = 0; i < PIXELS; i++) {
            totals[i] = head.bias[k];
            for (int f = 0; f < FILTER_GROUPS; f++) {
                Vector sum = (Vector){};
                for (int g = f; g < GROUPS; g += FILTER_GROUPS)
                    sum += load(head.matrix + k * CHANNELS + g * LANES) * load(in + (g * PIXELS + i) * LANES);
                store(sums[f][i], sum);
            }
        }
        for (int f = 0; f < FILTER_GROUPS; f++)
            for (int lane = 0; lane < LANES; lane++)
                for (int i = 0; i < PIXELS; i++) totals[i] += sums[f][i][lane];
        float *out = head.logits + ((long)k * frame.rows + y) * frame.columns + x;
        for (int i = 0; i < PIXELS; i++) out[i] = totals[i] > 0.0f ? totals[i] : totals[i] * SLOPE;
    }
}

// Row y of a block's output, over its input of INPUTS channels. ``plane``: the row of a one-channel input.
template <int INPUTS>
KEPT_APART void finish_row(const Frame &frame, const Block &block, const float *plane, const float *scratch, int y) {
    float *row = frame.row(y);
    alignas(64) float copy[PIXELS * CHANNELS], last[PIXELS * CHANNELS];
    for (long x = 0; x < frame.columns; x += PIXELS) {
        const float *in = INPUTS == 1 ? plane + x : copy;
        if (INPUTS == CHANNELS)
            for (int g = 0; g < GROUPS; g++)
                UNROLL for (int i = 0; i < PIXELS; i++) {
                    const float *from = row + g * frame.group() + (x + i) * LANES;
                    store(copy + i * CHANNELS + g * LANES, load(from));
                    __builtin_prefetch(from + PIXELS * LANES);  // 3 to 4 % of Module 1
                }
        for (int g = 0; g < GROUPS; g++) {
            int q = g / FILTER_GROUPS;
            Vector sums[PIXELS], bias = load(block.bias + g * LANES);
            UNROLL for (int i = 0; i < PIXELS; i++) sums[i] = bias;
            multiply<INPUTS, INPUTS>(in, block.shortcut + g * INPUTS * LANES, sums);
            multiply<FILTERS, FILTERS>(scratch + ((long)q * frame.columns + x) * FILTERS,
                                       block.branches[q].second_matrix + g % FILTER_GROUPS * FILTERS * LANES, sums);
            float *out = block.head ? last + g * PIXELS * LANES : row + g * frame.group() + x * LANES;
            UNROLL for (int i = 0; i < PIXELS; i++) store(out + i * LANES, sums[i]);
        }
        if (block.head) apply_head(frame, *block.head, last, y, x);
    }
}

// Rows [top, end) of a block's output. ``plane``: of a one-channel input, with its padding, or null.
void second_half(const Frame &frame, const Block &block, const float *plane, int top, int end) {
    for (int next; top < end; top = next) {
        next = top + STRIP < end ? top + STRIP : end;
        second_depthwises<3, 1>(frame, block, 0, top, next);
        second_depthwises<5, 3>(frame, block, 1, top, next);
        second_depthwises<7, 5>(frame, block, 2, top, next);
        for (int y = top; y < next; y++) {
            const float *scratch = frame.scratch_row(y - top);
            if (plane)
                finish_row<1>(frame, block, plane + (long)(y + PAD) * frame.padded + PAD, scratch, y);
            else
                finish_row<CHANNELS>(frame, block, nullptr, scratch, y);
        }
    }
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
        first_halves<3, 1>(frame, block, 0, top, end);
        first_halves<5, 3>(frame, block, 1, top, end);
        first_halves<7, 5>(frame, block, 2, top, end);
        // A finished row replaces its input, which nothing needs any more: it was activated already.
        int ready = end == frame.rows ? end : end - PAD;
        if (finished < ready) {
            second_half(frame, block, nullptr, finished, ready);
            finished = ready;
        }
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
        if (finished < ready) {
            second_half(frame, block, plane, finished, ready);
            finished = ready;
        }
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
           (long)STRIP * columns * CHANNELS + to_vectors((rows + 2 * PAD) * padded);
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
    frame.scratch = take((long)STRIP * columns * CHANNELS);
    float *plane = take((long)(rows + 2 * PAD) * frame.padded);
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < columns; x++)
            plane[(long)(y + PAD) * frame.padded + PAD + x] = pixels[(long)y * columns + x];

    Taken give = {const_cast<float *>(weights)};
    Head head = {nullptr, nullptr, logits};
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
        if (b == blocks - 1) {
            head.matrix = give(CLASSES * CHANNELS);
            head.bias = give(CLASSES);
            block.head = &head;
        }
        if (b)
            run_block(frame, block);
        else
            run_stem(frame, block, plane);
    }
}

}  // extern "C"
