"""Both modules for CPUs as compiled code, where it could be built: half the time of torch's own kernels.

``segmenter.cpp`` and ``paths.cpp`` do the arithmetic, ``library`` finds what was built of them for this processor,
``segmenter`` and ``ensemble`` pack the weights and call it. Without a compiler at installation nothing is missing but
the speed.
"""
