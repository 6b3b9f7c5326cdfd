"""The network for GPUs: Triton kernels, CUDA graphs; torch does the work where they are missing or not up to it.

``half_blocks`` are the kernels, ``packing`` their weights, ``launches`` calls them for a chain of blocks, ``segmenter``
(Module 1) and ``ensemble`` (Module 2) are such chains; all five need triton. ``network`` does not, and imports the
others only where they are used; ``replay`` records a network as a CUDA graph.
"""
