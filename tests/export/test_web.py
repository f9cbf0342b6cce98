"""`hf-xtc export --format web`: the folder that is written, and the check in Node.js."""

import json
import shutil

import pytest
from node import EXAMPLE, needs_node

from hf_xtc.cli import main
from hf_xtc.errors import PackedFileError, StateError
from hf_xtc.export import web
from hf_xtc.export.web import MODULE, PAGE, SiteModel, describe_model, write_site
from hf_xtc.native.library import variants

pytestmark = pytest.mark.skipif(not variants(), reason="the native operator is not built")


def site_of(folder):
    text = (folder / "index.html").read_text()
    return json.loads(text.split('id="site">')[1].split("</script>")[0])


@needs_node
def test_the_command(tmp_path, capsys):
    assert main(["export", "--model", str(EXAMPLE), "--format", "web", "--output_dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "agreement: 6" in printed
    assert "verified on: 64 rows of random tokens" in printed
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    model = {
        f"model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    assert files == {*PAGE, *(f"hf-xtc/{name}" for name in MODULE), *model}
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (EXAMPLE / "model.safetensors").read_bytes()
    tokenizer = (tmp_path / "model" / "tokenizer.json").read_text()
    assert json.loads(tokenizer) == json.loads((EXAMPLE / "tokenizer.json").read_text())
    (described,) = site_of(tmp_path)["models"]
    assert described["name"] == EXAMPLE.name
    assert described["labels"] == ["negative", "positive"]


def test_without_node_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    main(["export", "--model", str(EXAMPLE), "--format", "web", "--output_dir", str(tmp_path / "site")])
    assert "not verified: node (Node.js 20 or later) is not installed here" in capsys.readouterr().out
    assert (tmp_path / "site" / "index.html").exists()


def test_weights_have_no_meaning(tmp_path, capsys):
    options = ["--format", "web", "--weights", "int8", "--output_dir", str(tmp_path / "site")]
    assert main(["export", "--model", str(EXAMPLE), *options]) != 0
    assert "--weights int8 has no meaning for a page" in capsys.readouterr().err


@needs_node
def test_a_file_that_node_refuses_leaves_nothing(tmp_path, capsys, monkeypatch):
    """Here by a module that is none."""
    shutil.copytree(web.page_files()[0], tmp_path / "page")
    shutil.copytree(web.page_files()[1], tmp_path / "dist")
    (tmp_path / "dist" / "hf-xtc.js").write_text("export const nothing = 1;")
    monkeypatch.setattr("hf_xtc.runs.web_export.page_files", lambda: (tmp_path / "page", tmp_path / "dist"))
    options = ["export", "--model", str(EXAMPLE), "--format", "web", "--output_dir", str(tmp_path / "site")]
    assert main(options) != 0
    assert "The model does not run in a browser: " in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


@needs_node
def test_an_embedder_with_a_prompt(tmp_path, capsys, monkeypatch):
    """The module reads the prompt as Python does; a module that does not is found out."""
    shutil.copytree(EXAMPLE.parent / "minilm-6l-1bit-embedder", tmp_path / "model")
    file = tmp_path / "model" / "config_sentence_transformers.json"
    file.write_text(json.dumps({"prompts": {"query": "find: "}, "default_prompt_name": "query"}))
    export = ["export", "--model", str(tmp_path / "model"), "--format", "web", "--output_dir", str(tmp_path / "site")]
    assert main(export) == 0
    assert "verified on: 64 rows of random tokens" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "site")
    shutil.copytree(web.page_files()[1], tmp_path / "dist")
    module = tmp_path / "dist" / "hf-xtc.js"
    module.write_text(module.read_text().replace("config_sentence_transformers.json", "absent.json"))
    monkeypatch.setattr("hf_xtc.runs.web_export.page_files", lambda: (web.page_files()[0], tmp_path / "dist"))
    assert main(export) != 0
    assert "'prompt': ''}, Python with {'pooling': 'mean', 'normalize': True" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_texts_cannot_end_the_script(tmp_path):
    model = SiteModel("</script><b>", "model/", "regression", ["a"], 1)
    write_site(tmp_path, "<i> & </script>", [model])
    assert site_of(tmp_path)["models"][0]["name"] == "</script><b>"
    text = (tmp_path / "index.html").read_text()
    assert "<title>&lt;i&gt; &amp; &lt;/script&gt;</title>" in text
    assert "<b>" not in text


def test_models_without_a_page(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"architectures": ["XTCBertForMaskedLM"]}))
    with pytest.raises(PackedFileError, match=r"holds a XTCBertForMaskedLM, which has no page\. Those that have one"):
        describe_model(tmp_path / "model", "model/", "one")


def test_an_installation_without_the_page(monkeypatch):
    monkeypatch.setattr(web, "__file__", "/nowhere/hf_xtc/export/web.py")
    with pytest.raises(StateError, match=r"^This installation has no files of the page\. Install hf_xtc from a wheel"):
        web.page_files()
