"""The version of the package, in one place; read by the build without importing anything else."""

__version__ = "0.3.0"
"""The version of the package."""
