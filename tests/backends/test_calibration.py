"""Measured times: kept for the process, written to a file that may be damaged, another program's or not writable."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from hf_xtc.backends import calibration
from hf_xtc.native.arrays import BYTES, NIBBLES
from hf_xtc.native.library import variants

LAYOUTS, TIMES = (NIBBLES, BYTES), {NIBBLES: [0.5, 0.25], BYTES: [1.0, 2.0]}


@pytest.fixture
def measurements(monkeypatch):
    """The shapes that were measured, by a stand-in that gives `TIMES`; nothing is known before."""
    made = []

    def product_seconds(levels, layouts, rows, columns, *, cached):
        made.append((levels, rows, columns, cached))
        return {layout: TIMES[layout] * (1 + cached) for layout in layouts}

    monkeypatch.setattr(calibration, "product_seconds", product_seconds)
    monkeypatch.delenv("XTC_CALIBRATION", raising=False)
    new_process(monkeypatch)
    return made


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "calibration.json"
    monkeypatch.setenv("XTC_CALIBRATION", str(path))
    return path


def new_process(monkeypatch):
    monkeypatch.setattr(calibration, "_KEPT", {})
    calibration._warn.cache_clear()


def measured(cached=False):
    return calibration.measured(2, LAYOUTS, cached)


def test_a_shape_is_measured_once(measurements):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: measured(), range(8)))
    assert found == [(TIMES, "by calibration")] * 8
    assert measured(True).times[BYTES] == [1.0, 2.0, 1.0, 2.0]
    assert measurements == [(2, 768, 768, False), (2, 768, 384, True)]


def test_the_file_serves_other_processes(measurements, file, monkeypatch, caplog):
    measured(), measured(True)
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # no scratch file is left
    new_process(monkeypatch)
    assert measured() == (TIMES, f"by the calibration in {file}")
    assert measured(True).source == f"by the calibration in {file}"
    assert measurements == [(2, 768, 768, False), (2, 768, 384, True)]
    assert caplog.messages == []


def test_other_processors_variants_and_interfaces_have_times_of_their_own(measurements, file, monkeypatch):
    measured()
    changes = [("processor", lambda: "another"), ("variant", lambda: "another"), ("INTERFACE", -1)]
    for name, value in changes:
        new_process(monkeypatch)
        with monkeypatch.context() as changed:
            changed.setattr(calibration, name, value)
            assert measured().source == "by calibration"
    assert len(measurements) == len(calibration._read(file)) == 4
    new_process(monkeypatch)
    assert measured().source != "by calibration"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"a": 1}',
        b'{"version": 1, "seconds": {}}',
        json.dumps({**calibration._HEAD, "version": 2, "seconds": {}}).encode(),
        json.dumps(calibration._HEAD).encode(),
        *[
            json.dumps({**calibration._HEAD, "seconds": {"x": layouts}}).encode()
            for layouts in (1, [1], {"a": [1.0]}, {"0": 1.0}, {"0": [-1.0]}, {"0": ["1"]}, {"0": [None]}, {"0": [9e9]})
        ],
    ],
)
def test_a_file_of_another_kind_is_not_used_and_written_anew(measurements, file, monkeypatch, caplog, content):
    file.write_bytes(content)
    assert measured().source == "by calibration"
    (message,) = caplog.messages
    assert message.startswith(f"XTC_CALIBRATION: {file} holds no measurements (")
    new_process(monkeypatch)
    assert measured().source == f"by the calibration in {file}"


@pytest.mark.parametrize("layouts", [{"0": [1.0, 1.0]}, {"0": [1.0, 1.0], "2": [1.0]}])
def test_incomplete_times_are_measured_again(measurements, file, layouts):
    name = calibration._name(2, False)
    file.write_text(json.dumps({**calibration._HEAD, "seconds": {name: layouts}}))
    assert measured().source == "by calibration"
    assert calibration._read(file) == {name: TIMES}


def test_a_file_that_cannot_be_written_costs_one_warning(measurements, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XTC_CALIBRATION", str(tmp_path / "none" / "x.json"))
    assert measured().source == measured(True).source == "by calibration"
    (message,) = caplog.messages
    assert message.endswith(
        "x.json cannot be written (No such file or directory); other processes will calibrate again."
    )


def test_folders_and_devices_stay_what_they_are(measurements, tmp_path, monkeypatch, caplog):
    for path in (str(tmp_path), os.devnull):
        new_process(monkeypatch)
        monkeypatch.setenv("XTC_CALIBRATION", path)
        assert measured().source == "by calibration"
    assert tmp_path.is_dir()
    assert not os.path.isfile(os.devnull)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    "lines, name",
    [
        (
            "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n\nmodel : 7\n",
            "GenuineIntel family 6 model 143",
        ),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n\n", "ARM implementer 0x41 part 0xd40"),
    ],
)
def test_the_name_of_a_processor(lines, name, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(lines)
    info = calibration._cpuinfo(tmp_path / "cpuinfo")
    monkeypatch.setattr(calibration, "_cpuinfo", lambda: info)
    assert calibration.processor.__wrapped__() == name


def test_without_cpuinfo_there_is_some_name(tmp_path, monkeypatch):
    assert calibration._cpuinfo(tmp_path / "none") == {}
    monkeypatch.setattr(calibration, "_cpuinfo", dict)
    assert calibration.processor.__wrapped__()


@pytest.mark.skipif(not variants(), reason="the native operator is not built")
def test_a_real_calibration_needs_no_pytorch(tmp_path):
    code = """
import sys
sys.modules["torch"] = None
from hf_xtc.backends import calibration, layouts
layouts._TABLE.clear()
print(layouts.choose_layout("ternary", 768, 768).source)
"""
    environment = {**os.environ, "XTC_CALIBRATION": str(tmp_path / "x.json"), "XTC_NATIVE": next(iter(variants()))}
    if environment["XTC_NATIVE"] == "portable":
        pytest.skip("portable code has one layout")
    found = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        ).stdout
        for _ in range(2)
    ]
    assert found == ["by calibration\n", f"by the calibration in {tmp_path / 'x.json'}\n"]
