"""Recorded trainings: the validations of some configurations, as `benchmarks/curves.py` writes them."""
