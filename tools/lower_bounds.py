"""Prints the lower bounds of setup.cfg as constraints for pip: `make test-oldest` installs all of them at once.

python tools/lower_bounds.py > constraints.txt
"""

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).parent.parent / "setup.cfg"


def lower_bounds(setup: Path = SETUP) -> dict[str, str]:
    """Requirement of the package or of one of its extras, except `test` -> the oldest version allowed."""
    config = configparser.ConfigParser()
    config.read(setup, encoding="utf-8")
    extras = [lines for extra, lines in config["options.extras_require"].items() if extra != "test"]
    lines = "\n".join([config["options"]["install_requires"], *extras])
    return dict(re.findall(r"^([\w-]+)>=([\w.]+)", lines, re.MULTILINE))


if __name__ == "__main__":
    for package, version in lower_bounds().items():
        print(f"{package}=={version}")
