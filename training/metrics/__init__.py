"""How good a model is, in figures with intervals: plain NumPy on arrays, no network and no files."""
