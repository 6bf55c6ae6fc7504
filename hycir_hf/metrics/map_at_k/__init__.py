"""The metric map_at_k: `scoring.py` is its arithmetic, `map_at_k.py` its `evaluate` module."""
