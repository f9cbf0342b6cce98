"""The report: one file without scripts or network access, with text from outside escaped; a browser loads it."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from hf_xtc.errors import XTCError
from hf_xtc.runs.report import report_html, write_report

pytest.importorskip("matplotlib")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<script>alert('x')</script> $\\frac{a$"


def run(name="tiny"):
    """A run's record, with every kind of log entry."""
    log = [{"packed_bytes": 900, "packed_ratio": 30.0, "step": 0}]
    for step in (10, 20, 30):
        log.append({"loss": 3.0 / step, "logits": 1.0 / step, "grad_norm": 1.0, "learning_rate": 1e-3, "step": step})
        entry = {f"quantization_error/{part}": 0.3 for part in ("layer 0", "pooler")}
        log.append({**entry, "flip_rate/layer 0": 0.01, "step": step})
        log.append({"eval_loss": 0.5, "eval_accuracy": 0.6, "eval_runtime": 1.0, "step": step})
    rows = [
        {"model": "teacher", "metrics": {"accuracy": 0.9}, "bytes": 30000, "layers": 4, "storage": "float32"},
        {"model": name, "metrics": {"accuracy": 0.8}, "bytes": 1000, "layers": 2, "storage": "binary, packed"},
    ]
    return {
        "name": name,
        "task": name,
        "metric": "accuracy",
        "rows": rows,
        "ledger": {"parts": {"encoder codes": 600, "head": 300}, "total_bytes": 900, "float32_bytes": 27000},
        "recipe": {"weights": "binary"},
        "provenance": {"teacher": name},
        "selection": "the last step",
        "seeds": {},
        "command": None,
        "log": log,
    }


class Elements(HTMLParser):
    """Collects the tags of a page, and the addresses that it would fetch."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.fetched, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not v.startswith("#")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_shows_the_measurements_and_fetches_nothing():
    page = report_html(run())
    found = Elements(page)
    assert found.fetched == []
    assert found.tags.count("svg") == 6
    text = " ".join(found.text)
    for words in ("1,000 bytes, 30.0 times smaller", "0.8000", "Flip rate", "encoder codes", "logits", "layer 0"):
        assert words in text
    assert "url(http" not in page.replace("url(#", "")


def test_text_from_outside_is_escaped():
    page = report_html(run(EVIL))
    found = Elements(page)
    assert "script" not in found.tags
    assert html.escape(EVIL) in page


def test_the_report_names_what_was_not_logged():
    bare = {**run(), "log": []}
    page = report_html(bare)
    assert page.count("Nothing was logged.") == 4
    assert Elements(page).tags.count("svg") == 2


def test_the_report_is_written_beside_the_run_and_is_deterministic(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(run()))
    file = write_report(tmp_path)
    first = file.read_bytes()
    assert file == tmp_path / "report.html"
    assert write_report(tmp_path, tmp_path / "other.html").read_bytes() == first


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"rows": []}'])
def test_a_folder_without_a_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(XTCError, match="not the record of a finished run"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def everywhere(text):
    """A run's record in which every name is this text."""
    record = run(text)
    rows = [{**row, "model": text, "storage": text, "metrics": {text: 0.5}} for row in record["rows"]]
    log = [{"loss": 1.0, text: 1.0, f"eval_{text}": 0.5, f"flip_rate/{text}": 0.1, "step": step} for step in (1, 2)]
    ledger = {**record["ledger"], "parts": {text: 600}}
    names = {"metric": text, "selection": text, "recipe": {text: text}, "provenance": {text: [text]}}
    return {**record, **names, "rows": rows, "log": log, "ledger": ledger}


def test_names_are_escaped():
    found = Elements(report_html(everywhere(EVIL)))
    assert "script" not in found.tags
    assert sum("<script>" in text for text in found.text) > 10


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_shows_the_report_without_an_error(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(everywhere(EVIL)))
    file = write_report(tmp_path)
    headless = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [BROWSER, *headless, profile, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"<svg\b", done.stdout)) == 5
    assert "<script" not in done.stdout
    assert "CONSOLE" not in done.stderr  # where Chromium tells errors and warnings of the page
