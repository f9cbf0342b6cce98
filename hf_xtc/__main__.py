"""`python -m hf_xtc`: the command line `hf-xtc`."""

import sys

from hf_xtc.cli import main

if __name__ == "__main__":
    sys.exit(main())
