"""A teacher becomes a student, a student a packed model; and the bytes of its file, counted before training."""
