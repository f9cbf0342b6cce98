"""Teacher to student, student to packed model, and the size of its file before any training."""
