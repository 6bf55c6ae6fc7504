"""The metric recall_at_k: `scoring.py` is its arithmetic, `recall_at_k.py` its `evaluate` module."""
