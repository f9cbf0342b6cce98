"""Parts of `benchmarks/accuracy.py`: two workers that share no training code, and what prepares and compares them."""
