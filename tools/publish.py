"""Publishes the checkpoints with their cards, each folder as a repository of an organisation of the Hub.

    python tools/publish.py --organization my-organization --dry_run
    python tools/publish.py --organization my-organization

The folders are those that `make checkpoints` leaves in `checkpoints`, and the examples of this repository. A folder's
name is the repository's. All are read and checked before the first is uploaded; what the Hub has already is not
uploaded again, so a run that was interrupted can be started again.
"""

import argparse
import sys
from pathlib import Path

from huggingface_hub import ModelCard

from hf_xtc.errors import PackedFileError, XTCError
from hf_xtc.hub.upload import push_folder, shipped_files

ROOT = Path(__file__).parents[1]


def folders(places: list[Path], names: list[str]) -> list[Path]:
    """The folders with a packed model in these places, by name; of two with one name that of the first place.

    Raises:
        PackedFileError: if there is none, or one of the given names is missing.
    """
    found = {file.parent.name: file.parent for place in reversed(places) for file in place.glob("*/model.safetensors")}
    if missing := sorted(set(names) - set(found)) or not found:
        what = f"no checkpoint {', '.join(missing)}" if names else "no checkpoint"
        raise PackedFileError(f"There is {what} in {', '.join(map(str, places))}. Make them with make checkpoints.")
    return [found[name] for name in sorted(names or found)]


def check(folder: Path) -> int:
    """The bytes of a folder's files to publish.

    Raises:
        XTCError: if it holds no packed model, or no card that names a licence.
    """
    files = shipped_files(folder)
    if "README.md" not in files or ModelCard(files["README.md"].decode()).data.license is None:
        raise PackedFileError(f"{folder} has no card with a licence. Write it again with examples/checkpoints.py.")
    return sum(map(len, files.values()))


def main(arguments: list[str] | None = None) -> int:
    """Checks and publishes; returns the exit status."""
    parser = argparse.ArgumentParser(description="Publishes the checkpoints with their cards.")
    parser.add_argument("--organization", required=True, help="Organisation or user that owns the repositories.")
    places = [ROOT / "checkpoints", ROOT / "examples"]
    parser.add_argument("--places", nargs="+", type=Path, default=places, help="Folders of checkpoints.")
    parser.add_argument("--names", nargs="+", default=[], help="Only these; default: all.")
    parser.add_argument("--private", action="store_true", help="Make new repositories private.")
    parser.add_argument("--dry_run", action="store_true", help="Check and list what would be published.")
    args = parser.parse_args(arguments)
    try:
        chosen = {folder: check(folder) for folder in folders(args.places, args.names)}
        for folder, size in chosen.items():
            name = f"{args.organization}/{folder.name}"
            where = "not published (dry run)" if args.dry_run else push_folder(folder, name, private=args.private)
            print(f"{name}: {size:,} bytes, {where}")
    except XTCError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
