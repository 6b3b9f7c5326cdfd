// The trunk of one path of Module 2 on a CPU: 51 channels in, a class map out (path.py). One vector holds neighbouring
// pixels of one channel, since 51 and 17 channels fill no vectors.
//
// Memory: a channel is one flat plane of rows that are REACH columns longer than the frame, all zero there: these are
// the zeros right of one row and left of the next, so a tap is one fixed offset. Pixels computed in these columns are
// nobody's, and set to zero where a convolution reads them. As in segmenter.cpp all builds give the same bits.

#include "memory.h"

namespace {

constexpr int LANES = FUSED_LANES;
constexpr int BRANCHES = 3, TAPS = 9, REACH = 3;  // 3 x 3, dilation 1, 2, 3
constexpr int PAIRED = 12;                        // rows: holds whole pairs of 1, 2 or 3 rows; stays in the cache
constexpr int VECTORS = 3;                        // of a depthwise convolution, in each of two rows at a time
constexpr int SUMS = LANES == 16 ? 17 : 9;        // of a matrix product, in registers at a time
constexpr int MARGIN = 32;                        // floats before and after a plane, at least a vector and REACH
constexpr float SLOPE = 0.1f;

typedef float Vector __attribute__((vector_size(4 * LANES)));
// Held in a register: GCC would load it again for every use, which costs two loads where it crosses a cache line.
#ifdef __AVX512F__
#define KEEP(value) asm("" : "+v"(value))
#else
#define KEEP(value) asm("" : "+x"(value))
#endif

typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")

INLINE Vector load(const float *from) { return *reinterpret_cast<const Unaligned *>(from); }
INLINE void store(float *to, Vector value) { *reinterpret_cast<Unaligned *>(to) = value; }
INLINE Vector leaky(Vector x) { return x > 0.0f ? x : x * SLOPE; }

struct Shape {
    int rows, columns, stride;
    long pixels() const { return (long)rows * stride; }
    long begin() const { return MARGIN + REACH * stride; }  // of the first row in a plane
    long plane() const { return to_vectors(2 * MARGIN + (rows + 2 * REACH) * stride); }
    long chunk() const { return to_vectors(PAIRED * stride + VECTORS * LANES); }
};

// One branch: depthwise weights [channel][TAPS], matrices [in][out].
struct Branch {
    const float *first_depthwise, *first_matrix, *first_bias, *second_depthwise, *second_matrix;
};

struct Block {
    int inputs, filters, outputs;
    bool concatenates;
    const float *scale, *shift;  // of the norm before the block (A) or before its branches (B, C)
    const float *shortcut, *bias;
    Branch branches[BRANCHES];
};

struct Workspace {
    float *x, *next;   // planes of a block's input and output
    float *activated;  // planes, zero outside the frame
    float *middle;     // planes of all branches' filters, zero outside the frame
    float *chunk;      // [channels][chunk()], results of depthwise convolutions of PAIRED rows
};

// One channel's depthwise convolution at ``count`` pixels from ``in`` on. Pixels and those ``dilation`` rows below go
// together: of the three rows that each reads, two are the same. Rows after the last may be read, and up to PAIRED rows
// and some pixels written; what is written twice is equal, since a result depends on its place alone.
INLINE void depthwise(const float *in, const float *weights, int dilation, int stride, long count, float *out) {
    Vector taps[TAPS];
    UNROLL for (int t = 0; t < TAPS; t++) taps[t] = (Vector){} + weights[t];
    long below = (long)dilation * stride;
    for (long top = 0; top < count; top += 2 * below)
        for (long i = top; i < top + below; i += VECTORS * LANES) {
            Vector sums[2][VECTORS];
            UNROLL for (int v = 0; v < VECTORS; v++) sums[0][v] = sums[1][v] = (Vector){};
            UNROLL for (int r = 0; r < 4; r++)
                UNROLL for (int t = 0; t < 3; t++)
                    UNROLL for (int v = 0; v < VECTORS; v++) {
                        Vector value = load(in + i + v * LANES + (r - 1) * below + (t - 1) * dilation);
                        KEEP(value);
                        if (r < 3) sums[0][v] += taps[r * 3 + t] * value;
                        if (r > 0) sums[1][v] += taps[(r - 1) * 3 + t] * value;
                    }
            UNROLL for (int v = 0; v < VECTORS; v++) {
                store(out + i + v * LANES, sums[0][v]);
                store(out + below + i + v * LANES, sums[1][v]);
            }
        }
}

// sums += matrix of ``inputs`` channels, ``step`` floats apart, for one vector of pixels; OUT of ``width`` outputs.
template <int OUT>
INLINE void multiply(const float *in, long step, const float *matrix, int inputs, int width, Vector *sums) {
    for (int c = 0; c < inputs; c++) {
        Vector x = load(in + c * step);
        UNROLL for (int f = 0; f < OUT; f++) sums[f] += x * matrix[c * width + f];
    }
}

// Up to the activation between the two separable convolutions, filters [from, from + OUT) of a branch.
template <int OUT>
void first_matrix(const Branch &branch, const Block &block, const float *chunk, long step, long count, int from,
                  float *out, long plane) {
    for (long i = 0; i < count; i += LANES) {
        Vector sums[OUT];
        UNROLL for (int f = 0; f < OUT; f++) sums[f] = (Vector){} + branch.first_bias[from + f];
        multiply<OUT>(chunk + i, step, branch.first_matrix + from, block.inputs, block.filters, sums);
        UNROLL for (int f = 0; f < OUT; f++) store(out + (from + f) * plane + i, leaky(sums[f]));
    }
}

// Outputs [from, from + OUT) of a block, where ``chunk`` holds the second depthwise convolutions of all branches.
template <int OUT>
void finish(const Block &block, const float *in, const float *chunk, long step, long count, int from, float *out,
            long plane) {
    for (long i = 0; i < count; i += LANES) {
        Vector sums[OUT];
        UNROLL for (int f = 0; f < OUT; f++) sums[f] = (Vector){} + block.bias[from + f];
        multiply<OUT>(in + i, plane, block.shortcut + from, block.inputs, block.outputs, sums);
        for (int q = 0; q < BRANCHES; q++) {
            int first = block.concatenates ? from - q * block.filters : from;
            if (block.concatenates && (first < 0 || first >= block.filters)) continue;
            multiply<OUT>(chunk + (long)q * block.filters * step + i, step, block.branches[q].second_matrix + first,
                          block.filters, block.filters, sums);
        }
        UNROLL for (int f = 0; f < OUT; f++) store(out + (from + f) * plane + i, sums[f]);
    }
}

// Calls ``some(from)`` for spans of SUMS (or two) that cover ``filters``; the last may repeat some, with equal results.
template <typename Many, typename Two>
INLINE void by_spans(int filters, Many many, Two two) {
    int span = filters >= SUMS ? SUMS : 2;
    for (int done = 0; done < filters; done += span) {
        int from = done + span <= filters ? done : filters - span;
        if (span == SUMS)
            many(from);
        else
            two(from);
    }
}

void clear_outside(const Shape &shape, float *planes, int channels) {
    for (int c = 0; c < channels; c++) {
        float *plane = planes + c * shape.plane() + shape.begin();
        for (int y = 0; y < shape.rows; y++)
            for (int x = shape.columns; x < shape.stride; x++) plane[(long)y * shape.stride + x] = 0.0f;
        // A chunk's last vectors end after the frame.
        for (long i = shape.pixels(); i < shape.pixels() + MARGIN; i++) plane[i] = 0.0f;
    }
}

// x <- the block's output. The workspace's chunk must hold max(inputs, BRANCHES * filters) channels.
void run_block(const Shape &shape, const Block &block, Workspace &work, bool activates) {
    long plane = shape.plane(), begin = shape.begin(), pixels = shape.pixels();
    long step = shape.chunk(), rows = (long)PAIRED * shape.stride;
    const float *source = work.x;
    if (activates) {
        for (int c = 0; c < block.inputs; c++) {
            const float *in = work.x + c * plane + begin;
            float *out = work.activated + c * plane + begin;
            Vector scale = (Vector){} + block.scale[c], shift = (Vector){} + block.shift[c];
            for (long i = 0; i < pixels; i += LANES) store(out + i, leaky(load(in + i) * scale + shift));
        }
        clear_outside(shape, work.activated, block.inputs);
        source = work.activated;
    }
    for (int q = 0; q < BRANCHES; q++) {
        const Branch &branch = block.branches[q];
        float *middle = work.middle + q * block.filters * plane + begin;
        for (long at = 0; at < pixels; at += rows) {
            long count = pixels - at < rows ? pixels - at : rows;
            for (int c = 0; c < block.inputs; c++)
                depthwise(source + c * plane + begin + at, branch.first_depthwise + c * TAPS, q + 1, shape.stride,
                          count, work.chunk + c * step);
            by_spans(
                block.filters,
                [&](int from) { first_matrix<SUMS>(branch, block, work.chunk, step, count, from, middle + at, plane); },
                [&](int from) { first_matrix<2>(branch, block, work.chunk, step, count, from, middle + at, plane); });
        }
    }
    clear_outside(shape, work.middle, BRANCHES * block.filters);
    for (long at = 0; at < pixels; at += rows) {
        long count = pixels - at < rows ? pixels - at : rows;
        for (int q = 0; q < BRANCHES; q++)
            for (int f = 0; f < block.filters; f++) {
                int c = q * block.filters + f;
                depthwise(work.middle + c * plane + begin + at, block.branches[q].second_depthwise + f * TAPS, q + 1,
                          shape.stride, count, work.chunk + c * step);
            }
        const float *in = work.x + begin + at;
        float *out = work.next + begin + at;
        auto some = [&](int first) {
            by_spans(
                block.filters,
                [&](int from) { finish<SUMS>(block, in, work.chunk, step, count, first + from, out, plane); },
                [&](int from) { finish<2>(block, in, work.chunk, step, count, first + from, out, plane); });
        };
        for (int first = 0; first < block.outputs; first += block.filters) some(first);
    }
    float *spare = work.x;
    work.x = work.next;
    work.next = spare;
}

Block take_block(Taken &give, int inputs, int filters, bool concatenates) {
    Block block = {inputs, filters, concatenates ? BRANCHES * filters : filters, concatenates};
    block.scale = give(inputs);
    block.shift = give(inputs);
    block.shortcut = give((long)inputs * block.outputs);
    block.bias = give(block.outputs);
    for (int q = 0; q < BRANCHES; q++) {
        Branch &branch = block.branches[q];
        branch.first_depthwise = give(inputs * TAPS);
        branch.first_matrix = give((long)inputs * filters);
        branch.first_bias = give(filters);
        branch.second_depthwise = give(filters * TAPS);
        branch.second_matrix = give((long)filters * filters);
    }
    return block;
}

}  // namespace

extern "C" {

// Floats of workspace that ``fused_path`` needs; zero at the first call of one frame size, aligned to 64 bytes.
long fused_path_workspace(int rows, int columns, int channels) {
    Shape shape = {rows, columns, columns + REACH};
    return 4 * channels * shape.plane() + channels * shape.chunk();
}

// ``inputs`` [channels - 1][rows][columns] and ``attention`` [rows][columns] -> class map [classes][rows][columns],
// activated. ``channels`` is a multiple of 3, at least 51; at least two classes, and no more than ``channels`` / 3.
// ``weights``: see ensemble.py.
void fused_path(const float *inputs, const float *attention, int rows, int columns, int channels, int classes,
                const float *weights, float *workspace, float *class_map) {
    Shape shape = {rows, columns, columns + REACH};
    long plane = shape.plane();
    Taken take = {workspace};
    Workspace work;
    work.x = take(channels * plane);
    work.next = take(channels * plane);
    work.activated = take(channels * plane);
    work.middle = take(channels * plane);
    work.chunk = take(0);

    Taken give = {const_cast<float *>(weights)};
    int filters = channels / BRANCHES;
    Block a = take_block(give, channels, filters, true);
    Block b = take_block(give, channels, filters, true);
    Block c = take_block(give, channels, classes, false);
    for (int channel = 0; channel < channels; channel++) {
        const float *in = channel + 1 < channels ? inputs + (long)channel * rows * columns : attention;
        float *out = work.x + channel * plane + shape.begin();
        for (int y = 0; y < rows; y++)
            for (int x = 0; x < columns; x++)
                out[(long)y * shape.stride + x] = in[(long)y * columns + x] * a.scale[channel] + a.shift[channel];
    }
    clear_outside(shape, work.x, channels);
    run_block(shape, a, work, false);
    run_block(shape, b, work, true);
    run_block(shape, c, work, true);
    for (int k = 0; k < classes; k++)
        for (int y = 0; y < rows; y++)
            for (int x = 0; x < columns; x++) {
                float value = work.x[k * plane + shape.begin() + (long)y * shape.stride + x];
                class_map[((long)k * rows + y) * columns + x] = value > 0.0f ? value : value * SLOPE;
            }
}

}  // extern "C"
