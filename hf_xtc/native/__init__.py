"""The native operator: C++ sources in `csrc/`, the library built of them, and what is computed with it."""
