"""Training of both modules: plain torch, one process or many; Ray Train only in ``training.parallel.ray_train``."""
