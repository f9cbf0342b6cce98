"""Distillation: loss terms, matching of student and teacher, and the teacher cache."""
