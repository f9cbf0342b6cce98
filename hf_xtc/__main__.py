"""`python -m hf_xtc` and `hf-xtc`: the command line, or one line that names the extra it needs."""

import sys

from hf_xtc.errors import ExtraError


def main() -> int:
    """Runs the command line; returns its exit status, 1 where the extra `cli` is not installed."""
    try:
        from hf_xtc.cli import main as run
    except ExtraError as error:
        print(f"hf-xtc: {error}", file=sys.stderr)
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
