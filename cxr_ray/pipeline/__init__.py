"""The screening pipeline: plan, units, stages, exactly-once publication.

What runs the graph imports Ray (``cluster``, ``rounds``, ``stream``, ``stages`` and what they keep and watch);
plan, units, parts and publication run without it.
"""
