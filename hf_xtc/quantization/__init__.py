"""Quantization: specs, quantizers of weights and activations, packing. Depends on PyTorch only."""
