// Arrays one after the other in one piece of memory, each beginning at a multiple of 64 bytes (packing.py).

#pragma once

namespace {

inline long to_vectors(long floats) { return (floats + 15) / 16 * 16; }

struct Taken {
    float *next;
    float *operator()(long floats) {
        float *taken = next;
        next += to_vectors(floats);
        return taken;
    }
};

}  // namespace
