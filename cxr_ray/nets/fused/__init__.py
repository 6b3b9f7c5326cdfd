"""The network for CPUs as compiled code, where it could be built: less than half the time of torch's own kernels.

``segmenter.cpp``, ``scattering.cpp`` and ``paths.cpp`` do the arithmetic, ``library`` finds what was built of them for
this processor; ``segmenter``, ``scattering`` and ``ensemble`` pack the constants and call it. Without a compiler at
installation nothing is missing but the speed.
"""
