"""The two losses: weighted Tanimoto for Module 1 and weighted cross-entropy for Module 2 (REFERENCE_SPEC 9 and 10)."""
