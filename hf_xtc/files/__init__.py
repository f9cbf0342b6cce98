"""Files: written whole or not at all, and read only when their header says what is expected."""
