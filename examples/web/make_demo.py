"""Writes the demo in this folder: pages of the example models, which stay where they are.

Serve the root of the repository, for example by GitHub Pages or `python -m http.server`, and open examples/web/.

Usage: python examples/web/make_demo.py [--output_dir examples/web]
"""

import argparse
from pathlib import Path

from hf_xtc.export.web import SiteModel, describe_model, write_site

EXAMPLES = Path(__file__).parent.parent
# Folder beside this one -> what the page says of it.
MODELS = {
    "minilm-3l-1bit-sst2": {
        "name": "Sentiment",
        "about": "MiniLM of 3 layers with 1-bit weights, 2.5 MB, trained on sentences of film reviews.",
        "examples": [
            "A joy from start to end, and the score is wonderful.",
            "Two hours of shouting, and not one idea.",
            "It is not without charm, but it never finds an ending.",
        ],
    },
    "minilm-6l-1bit-embedder": {
        "name": "Semantic search",
        "about": "MiniLM of 6 layers with 1-bit weights, 3.2 MB. Paste your own sentences below.",
    },
}


def models() -> list[SiteModel]:
    """Those of the models that are there."""
    return [
        describe_model(EXAMPLES / folder, f"../{folder}/", **options)
        for folder, options in MODELS.items()
        if (EXAMPLES / folder / "config.json").is_file()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent)
    write_site(parser.parse_args().output_dir, "Encoders of 1 bit in the browser", models())


if __name__ == "__main__":
    main()
