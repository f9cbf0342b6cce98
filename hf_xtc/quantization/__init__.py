"""Values to codes to bytes and back: specs, quantizers of weights and activations, packing. PyTorch alone."""
