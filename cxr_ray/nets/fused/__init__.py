"""Module 1 for CPUs as compiled code: three times as fast as torch's own kernels, where it could be built.

``segmenter.cpp`` does the arithmetic, ``library`` finds what was built of it for this processor, ``segmenter`` packs
the weights and calls it. Without a compiler at installation nothing is missing but the speed.
"""
