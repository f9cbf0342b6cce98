"""Exported pages in headless Chromium: what they show, on a phone and offline too, and what they request."""

import http.server
import json
import subprocess
import threading
from urllib.parse import urlsplit

import pytest
from node import CHROMIUM, EXAMPLE, NODE, WEB, needs_packages
from test_module import written

from hf_xtc.export.web import copy_model, describe_model, write_site
from hf_xtc.native.library import variants

pytestmark = [
    needs_packages,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not variants(), reason="the native operator is not built"),
]


def make_site(model, folder, **options):
    copy_model(model, folder / "model")
    write_site(folder, "A <page> & more", [describe_model(folder / "model", "model/", "one", **options)])
    return folder


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(folder):
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), lambda *args: _Handler(*args, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def opened(url, width=1200):
    """The report of open_page.mjs, which must be free of errors and of requests to other hosts."""
    script = WEB.parent / "tests" / "web" / "open_page.mjs"
    command = [NODE, str(script), CHROMIUM, url, str(width)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert "failed" not in report, report
    assert report["messages"] == report["errors"] == []
    assert {urlsplit(request).netloc for request in report["requests"]} == {urlsplit(url).netloc}
    return report


@pytest.mark.parametrize("width", [1200, 360])
def test_a_classifier(width, serve, tmp_path):
    """The label at once, a table of many texts, the keyboard; nothing moves, and 360 pixels are wide enough."""
    report = opened(serve(make_site(EXAMPLE, tmp_path)), width)
    assert report["first"]["title"] == "A <page> & more"
    assert report["first"]["best"] == "positive"
    assert report["first"]["megabytes"] == "3.0 MB"  # not compressed by this server
    assert report["shifted"] < 0.01
    assert report["widths"][0] <= report["widths"][1]
    assert [row.split("\t")[:2] for row in report["rows"]] == [["a joy", "positive"], ["dull and long", "negative"]]
    assert report["offline"]["best"] == "positive"
    assert report["network"] == "off"


@pytest.mark.parametrize("head", ["BertModel", "BertForTokenClassification", "BertForQuestionAnswering"])
def test_other_tasks(head, serve, tmp_path):
    """A search, marked text and an answer; random weights, so only that they are shown counts."""
    model = written(tmp_path / "packed", head)
    examples = ["the film is not bad", "is it bad"]
    report = opened(serve(make_site(model, tmp_path / "site", examples=examples)), 360)
    assert report["first"]["lines"]
    assert report["offline"]["lines"] == report["first"]["lines"]
    assert report["shifted"] < 0.05
    assert report["widths"][0] <= report["widths"][1]
    if head == "BertModel":
        assert len(report["first"]["lines"]) == 8
    if head == "BertForTokenClassification":
        assert report["first"]["marks"]


def test_a_file_that_is_opened_says_what_to_run(tmp_path):
    site = make_site(EXAMPLE, tmp_path)
    script = WEB.parent / "tests" / "web" / "open_page.mjs"
    command = [NODE, str(script), CHROMIUM, (site / "index.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    report = json.loads(done.stdout)
    assert "python -m http.server" in report["note"]
    assert not report["footer"]
