"""Parts of `benchmarks/ablation.py`."""
