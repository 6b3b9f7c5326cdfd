"""One member on one or several processes, and several members side by side; Ray only in ``ray_train``."""
