"""Module 1 for GPUs as Triton kernels; torch does the work where triton is missing or a chip is not up to it.

``half_blocks`` are the kernels, ``packing`` their weights, ``segmenter`` puts them in order; all three need triton.
``network`` does not, and imports the others only where they are used.
"""
