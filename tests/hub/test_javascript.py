"""The section of a card for JavaScript; that its code runs is tested in tests/export/test_transformers_js.py."""

import pytest
from families import make_teacher
from huggingface_hub import ModelCard

from hf_xtc import XTCRecipe, compress, pack_model
from hf_xtc.cli import main
from hf_xtc.hub.javascript import TITLE, with_section


@pytest.mark.parametrize("rest", ["", "\n## Results\n\nGood.\n"])
def test_the_section_stands_before_the_results_or_at_the_end(rest):
    card = with_section(f"---\ntags: [mine, onnx]\n---\n\n# Name\n\nText.\n{rest}", f"{TITLE}\n\nCode.\n")
    assert ModelCard(card).data.tags == ["mine", "onnx", "transformers.js"]
    assert ModelCard(card).text.strip() == f"# Name\n\nText.\n\n{TITLE}\n\nCode.\n{rest}".strip()


def test_a_model_without_a_graph_is_not_published(hub, tmp_path, capsys):
    pack_model(compress(make_teacher("albert", "AlbertModel"), XTCRecipe())).save_pretrained(tmp_path)
    assert main(["push", str(tmp_path), "user/tiny", "--with_onnx"]) == 1
    assert "XTCAlbertModel cannot be exported, since albert runs layer by layer." in capsys.readouterr().err
    assert not hub.repos
