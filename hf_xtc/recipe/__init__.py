"""What a compressed model is made of: the recipe, the layer map, and readers of other people's recipes."""
