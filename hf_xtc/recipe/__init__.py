"""The recipe of a compressed model, its layer map, and the reader of DeepSpeed configurations."""
