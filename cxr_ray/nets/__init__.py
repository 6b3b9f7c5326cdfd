"""The network, as pure torch modules without I/O (REFERENCE_SPEC sections 2 to 8).

``segmenter`` is Module 1; ``gate``, ``scattering``, ``attention``, ``path`` and ``ensemble`` are Module 2;
``heat_maps`` (NumPy only) turns its maps into the published pictures. Nothing is imported here, so that
``cxr_ray.nets.heat_maps`` costs no torch.

Shape letters used throughout: B images, C channels or classes, K paths, H x W a full frame (300 x 340 in the
published network), h x w the frame at a quarter of its size (75 x 85).
"""
