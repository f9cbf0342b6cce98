"""Distillation: the terms of the loss, the matching of student and teacher, and the teacher cache."""
