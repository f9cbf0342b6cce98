"""What a student learns from its teacher: terms of the loss, how the two are matched, the teacher cache."""
