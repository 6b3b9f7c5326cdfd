"""How a name is created once on each kind of store; ``cxr_ray.pipeline.publish`` is the one that callers use."""
