"""The screening pipeline: plan, units, stages, exactly-once publication.

Only ``stream``, ``cluster`` and ``progress`` of this room import Ray; everything else runs without it.
"""
