"""Reads and checks data (GLUE and other files), augments it, and computes metrics."""
