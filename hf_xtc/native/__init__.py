"""The native operator: C++ sources in `csrc/`, the library built from them, and its Python interface."""
