"""Files are written completely or not at all, and damaged ones are refused, with the exact messages."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from hf_xtc.errors import PackedFileError, StateError, XTCError
from hf_xtc.files.headers import check_header, read_header
from hf_xtc.files.writing import (
    WEIGHT_FILES,
    clear_unfinished,
    last_checkpoint,
    require_empty,
    whole_checkpoint,
    whole_folder,
    write_json,
    write_text,
    writing,
)

TENSORS = {
    "dense.weight_packed": torch.zeros(2, 3, dtype=torch.uint8),
    "dense.weight_scale": torch.ones(2, 1, dtype=torch.float16),
    "dense.bias": torch.ones(2),
}
HEADER = {
    "dense.weight_packed": (torch.uint8, (2, 3)),
    "dense.weight_scale": (torch.float16, (2, 1)),
    "dense.bias": (torch.float32, (2,)),
}


def refuses(text, error):
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def contents(folder):
    """Path -> text of every file below a folder, hidden ones included."""
    return {str(f.relative_to(folder)): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


def save_and_fail(folder, error):
    """A save that writes two files and stops."""
    with whole_folder(folder, replaces=("model*.safetensors",)) as scratch:
        (scratch / "config.json").write_text("new")
        (scratch / "model.safetensors").write_text("half")
        raise error("stop")


def save(folder, tensors):
    """A save of a config and tensors."""
    with whole_folder(folder, replaces=("model*.safetensors",)) as scratch:
        (scratch / "config.json").write_text("{}")
        save_file(tensors, scratch / "model.safetensors")


@pytest.fixture
def earlier(tmp_path):
    """A folder that holds a sharded save."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors", "notes.txt"):
        (folder / name).write_text(f"old {name}")
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB; needs the permission to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_whole_folder_makes_the_folder_and_fills_it(tmp_path):
    target = tmp_path / "a" / "b"
    with whole_folder(target) as scratch:
        assert scratch.parent == target
        assert list(scratch.iterdir()) == []
        (scratch / "config.json").write_text("1")
        (scratch / "onnx").mkdir()
        (scratch / "onnx" / "model").write_text("2")
        assert [f.name for f in target.iterdir()] == [scratch.name]  # nothing in place yet
    assert contents(target) == {"config.json": "1", "onnx/model": "2"}
    assert not scratch.exists()


def test_whole_folder_takes_a_path_as_text(tmp_path):
    with whole_folder(str(tmp_path / "model")) as scratch:
        (scratch / "config.json").write_text("1")
    assert contents(tmp_path) == {"model/config.json": "1"}


def test_whole_folder_replaces_files_and_keeps_others(earlier):
    with whole_folder(earlier) as scratch:
        (scratch / "config.json").write_text("new")
    assert contents(earlier) == {
        "config.json": "new",
        "model-1-of-2.safetensors": "old model-1-of-2.safetensors",
        "model-2-of-2.safetensors": "old model-2-of-2.safetensors",
        "notes.txt": "old notes.txt",
    }


@pytest.mark.parametrize(
    "replaces", [("model*.safetensors",), ("model-?-*", "model-2*"), ("none", "model-1*", "model-2*")], ids=str
)
def test_whole_folder_removes_stale_shards(earlier, replaces):
    with whole_folder(earlier, replaces=replaces) as scratch:
        (scratch / "model-1-of-2.safetensors").write_text("new shard")
        (scratch / "config.json").write_text("new")
    assert contents(earlier) == {
        "config.json": "new",
        "model-1-of-2.safetensors": "new shard",
        "notes.txt": "old notes.txt",
    }


def test_shards_that_nothing_supersedes_stay(earlier):
    with whole_folder(earlier, replaces=("model*.safetensors",)) as scratch:
        (scratch / "config.json").write_text("new")
    assert contents(earlier)["model-1-of-2.safetensors"] == "old model-1-of-2.safetensors"
    assert len(contents(earlier)) == 4


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, XTCError])
def test_whole_folder_leaves_nothing_behind_a_failure(tmp_path, error):
    with pytest.raises(error, match=r"^stop$"):
        save_and_fail(tmp_path / "model", error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_whole_folder_keeps_earlier_files_on_failure(earlier, error):
    before = contents(earlier)
    with pytest.raises((RuntimeError, StateError), match=r"stop"):
        save_and_fail(earlier, error)
    assert contents(earlier) == before
    assert len(list(earlier.iterdir())) == 4


def test_whole_folder_keeps_an_empty_folder_that_was_there(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path):
        raise RuntimeError
    assert tmp_path.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_config_json_moves_last(tmp_path, monkeypatch):
    moved = []
    replace = os.replace

    def record(source, target):
        moved.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    with whole_folder(tmp_path) as scratch:
        for name in ("zeta.txt", "config.json", "alpha.txt", "model.safetensors"):
            (scratch / name).write_text(name)
    assert moved == ["alpha.txt", "model.safetensors", "zeta.txt", "config.json"]


def test_whole_folder_where_a_file_is(tmp_path):
    target = tmp_path / "model"
    target.write_text("a file")
    with (
        refuses(
            f"Could not write {target}: [Errno 17] File exists: '{target}'. Nothing half-written was left there.",
            StateError,
        ),
        whole_folder(target),
    ):
        pytest.fail("there is no folder to write to")
    assert target.read_text() == "a file"


def test_whole_folder_names_the_cause(tmp_path):
    target = tmp_path / "model"
    text = (
        rf"^Could not write {re.escape(str(target))}: \[Errno 28\] No space left on device \([\d,]+ bytes are free\)"
        r"\. Nothing half-written was left there\.$"
    )
    with pytest.raises(StateError, match=text) as caught, whole_folder(target):
        raise OSError(28, "No space left on device")
    assert isinstance(caught.value.__cause__, OSError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error, told",
    [
        (SafetensorError("I/O error: No space left on device"), r"I/O error: No space left on device \(.* free\)"),
        (Exception("File too large (os error 27)"), r"File too large \(os error 27\) \(.* free\)"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . x"), r"PyTorch could not write .* \(.* free\)"),
        (RuntimeError("basic_ios::clear: iostream error"), r"PyTorch could not write .* \(.* free\)"),
        (OSError(13, "Permission denied"), r"\[Errno 13\] Permission denied"),
    ],
    ids=["safetensors", "tokenizers", "torch", "torch at the end", "python"],
)
def test_every_failed_write_gives_the_same_message(tmp_path, error, told):
    text = rf"^Could not write {re.escape(str(tmp_path / 'x'))}: {told}\. Nothing half-written was left there\.$"
    with pytest.raises(StateError, match=text), writing(tmp_path / "x"):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), StateError("packed"), KeyError("x")], ids=str)
def test_other_errors_are_raised_unchanged(error):
    with pytest.raises(type(error)) as caught, writing("x"):
        raise error
    assert caught.value is error


def test_nested_whole_folders_are_written_together(tmp_path):
    text = rf"^Could not write {re.escape(str(tmp_path / 'model'))}: "
    with (
        pytest.raises(StateError, match=text),
        whole_folder(tmp_path / "model") as outer,
        whole_folder(outer) as inner,
    ):
        raise OSError(28, "No space left on device")
    assert inner == outer
    assert list(tmp_path.iterdir()) == []


def test_a_config_of_other_weights_is_removed_before_they_are_written(earlier, monkeypatch):
    """If killed in between, the folder has no config.json, so new weights are not loaded with an old config."""
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *a: seen.append((earlier / "config.json").exists()) or replace(*a))
    save(earlier, TENSORS)
    assert seen == [False, False]
    save(earlier, TENSORS)
    assert seen[2:] == [True, True], "the same config stays"


ONE = {"config.json": "{}", "model.safetensors": "one", "tokenizer.json": "t"}
SHARDS = {f"model-0000{i}-of-00003.safetensors": f"shard {i}" for i in (1, 2, 3)}
SHARDED = {"config.json": "{}", "model.safetensors.index.json": "i", "onnx/graph": "g", **SHARDS}
FAILURES = [PermissionError(13, "in use"), KeyboardInterrupt()]


def fill(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def replace_with(folder, files):
    with whole_folder(folder, replaces=WEIGHT_FILES) as scratch:
        fill(scratch, files)


def fail_at(monkeypatch, calls, error, owner=os, name="replace"):
    """Makes these calls of `os.replace`, counted from 1, fail; returns the list of calls."""
    made, real = [], getattr(owner, name)

    def counted(*args):
        made.append(args)
        if len(made) in calls:
            raise error
        real(*args)

    monkeypatch.setattr(owner, name, counted)
    return made


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("config", ["{}", "another"])
@pytest.mark.parametrize("new", [ONE, SHARDED], ids=["to one", "to shards"])
@pytest.mark.parametrize("old", [ONE, SHARDED, {}], ids=["from one", "from shards", "from none"])
def test_a_replacement_that_fails_at_any_file_keeps_the_earlier_ones(tmp_path, monkeypatch, old, new, config, error):
    new = {**new, "config.json": config}
    for call in range(1, len(new) + 1):
        folder = tmp_path / str(call)
        fill(folder, old)
        with monkeypatch.context() as patch:
            fail_at(patch, [call], error)
            with pytest.raises((StateError, KeyboardInterrupt)) as caught:
                replace_with(folder, new)
        if isinstance(error, OSError):
            assert str(caught.value).endswith("in use. Nothing half-written was left there.")
        assert (contents(folder) if folder.exists() else {}) == old
        assert folder.exists() == bool(old)
        assert not list(folder.glob("**/.incomplete-*"))
        assert (folder / "onnx").exists() == ("onnx/graph" in old)
    replace_with(folder, new)
    expected = {**{name: text for name, text in old.items() if not name.startswith("model")}, **new}
    assert contents(folder) == expected


def test_a_replacement_interrupted_while_it_removes_files_keeps_them(tmp_path, monkeypatch):
    fill(tmp_path, SHARDED)
    unlinked = []
    unlink = Path.unlink

    def interrupt(path, *args, **options):
        unlink(path, *args, **options)
        unlinked.append(path.name)
        if path.name == "model-00002-of-00003.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_with(tmp_path, ONE)
    assert unlinked[-3:] == ["config.json", *sorted(SHARDS)[:2]]
    assert contents(tmp_path) == SHARDED


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "model.safetensors", "config.json", "model-00002-of-00003.safetensors"]
)
def test_a_folder_in_the_way_keeps_the_earlier_files(tmp_path, name):
    fill(tmp_path, {**ONE, **SHARDED})
    (tmp_path / name).unlink()
    fill(tmp_path / name, {"x": "mine"})
    before = contents(tmp_path)
    with pytest.raises(StateError, match=r"Is a directory.*Nothing half-written was left there\.$"):
        replace_with(
            tmp_path, {**ONE, "config.json": "new"} if "of" not in name else {**SHARDED, "config.json": "new"}
        )
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob(".incomplete-*"))


@pytest.fixture
def immutable():
    """Makes a file that can be neither replaced nor removed; needs the right to."""
    made = []

    def make(file):
        try:
            done = subprocess.run(["chattr", "+i", str(file)], capture_output=True).returncode == 0
        except OSError:
            done = False
        if not done:
            pytest.skip("needs the right to make a file immutable")
        made.append(file)

    yield make
    for file in made:
        subprocess.run(["chattr", "-i", str(file)], check=True)


@pytest.mark.parametrize("new", [ONE, SHARDED], ids=["to one", "to shards"])
@pytest.mark.parametrize("name", sorted(SHARDED))
def test_an_immutable_file_keeps_the_earlier_ones(tmp_path, immutable, name, new):
    fill(tmp_path, SHARDED)
    immutable(tmp_path / name)
    new = {**new, "config.json": "new"}
    if name in new or name.startswith("model"):
        with pytest.raises(StateError, match=r"Operation not permitted.*Nothing half-written was left there\.$"):
            replace_with(tmp_path, new)
        assert contents(tmp_path) == SHARDED
    else:
        replace_with(tmp_path, new)
        assert contents(tmp_path) == {**new, "onnx/graph": "g"}


def test_earlier_files_are_kept_where_there_are_no_links(tmp_path, monkeypatch):
    fill(tmp_path, SHARDED)
    fail_at(monkeypatch, range(1, 99), OSError(95, "Operation not supported"), name="link")
    fail_at(monkeypatch, [2], FAILURES[0])
    with pytest.raises(StateError, match="in use"):
        replace_with(tmp_path, ONE)
    assert contents(tmp_path) == SHARDED


def test_links_of_the_hubs_cache_come_back_as_files(tmp_path, monkeypatch):
    fill(tmp_path / "blobs", ONE)
    (tmp_path / "model").mkdir()
    for name in ONE:
        (tmp_path / "model" / name).symlink_to(Path("..") / "blobs" / name)
    fail_at(monkeypatch, [3], FAILURES[0])
    with pytest.raises(StateError, match="in use"):
        replace_with(tmp_path / "model", {name: "new" for name in ONE})
    assert contents(tmp_path / "model") == ONE
    assert contents(tmp_path / "blobs") == ONE


def test_files_that_cannot_be_put_back_are_named_and_kept(tmp_path, monkeypatch):
    """The third file cannot be moved, nor the config put back: nothing that loads is left, and the message says so."""
    fill(tmp_path, SHARDED)
    made = fail_at(monkeypatch, [3, 4], FAILURES[0])
    with pytest.raises(StateError) as caught:
        replace_with(tmp_path, {name: f"new {text}" for name, text in SHARDED.items()})
    moved = [Path(target).name for _, target in made]
    assert moved[:4] == [*sorted(SHARDS), "config.json"]
    (kept,) = tmp_path.glob("earlier-*")
    assert str(caught.value) == (
        f"Could not write {tmp_path}: [Errno 13] in use. Nor could config.json be put back: the folder holds files of "
        f"two saves, and no model that loads. The earlier ones are in {kept}."
    )
    assert contents(kept)["config.json"] == "{}"
    assert not (tmp_path / "config.json").exists()


def test_several_files_of_weights_are_replaced_without_a_config_even_if_it_is_the_same(tmp_path, monkeypatch):
    """A process that is killed in between must not leave shards of two saves that load together."""
    fill(tmp_path, SHARDED)
    seen, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *a: seen.append((tmp_path / "config.json").exists()) or replace(*a))
    replace_with(tmp_path, SHARDED)
    assert not any(seen)
    assert contents(tmp_path) == SHARDED


def test_a_checkpoint_without_its_last_file_is_ignored(tmp_path):
    for step, state in ((8, "{}"), (16, "{}\n"), (24, '{"log": [1,'), (32, "")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-40").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-16")


def test_what_killed_processes_had_begun_is_removed(tmp_path):
    for name in ("checkpoint-8", "checkpoint-16", ".incomplete-abc", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text("{}")
    (tmp_path / ".incomplete-run.json").write_text("{")
    clear_unfinished(tmp_path, tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-8", "notes"]


def test_a_checkpoint_that_cannot_be_written_is_removed(tmp_path):
    folder = tmp_path / "checkpoint-8"
    folder.mkdir()
    text = (
        r"^Could not write .*checkpoint-8: PyTorch could not write a file to its end \(.*\)\. "
        r"Earlier checkpoints are kept; make room and start again\.$"
    )
    with pytest.raises(StateError, match=text), whole_checkpoint(folder):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    assert not folder.exists()


def test_a_finished_checkpoint_is_kept_after_a_failure(tmp_path):
    (tmp_path / "trainer_state.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt), whole_checkpoint(tmp_path):
        raise KeyboardInterrupt
    assert tmp_path.exists()


def test_a_full_disk_keeps_the_earlier_files(small_disk):
    folder = small_disk / "model"
    save(folder, TENSORS)
    before = sorted((f.name, f.read_bytes()) for f in folder.iterdir())
    with pytest.raises(StateError, match=r"^Could not write .*model: .*No space left on device"):
        save(folder, {"large": torch.zeros(100_000, dtype=torch.uint8)})
    assert sorted((f.name, f.read_bytes()) for f in folder.iterdir()) == before


def test_a_full_disk_keeps_the_earlier_text(small_disk):
    write_text(small_disk / "notes.txt", "old")
    text = r"^Could not write .*notes\.txt: \[Errno 28\] No space left on device \([\d,]+ bytes are free\)\.$"
    with pytest.raises(StateError, match=text):
        write_text(small_disk / "notes.txt", "new" * 50_000)
    assert contents(small_disk) == {"notes.txt": "old"}


def test_write_json(tmp_path):
    value = {"b": [1, 2.5, None], "a": "größer"}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text == '{\n  "b": [\n    1,\n    2.5,\n    null\n  ],\n  "a": "größer"\n}\n'
    assert json.loads(text) == value
    assert [f.name for f in tmp_path.iterdir()] == ["x.json"]


def test_invalid_json_is_left_unchanged(tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(TypeError, match=r"set is not JSON serializable"):
        write_json(tmp_path / "x.json", {1})
    assert contents(tmp_path) == {"x.json": "1\n"}


def test_text_is_written_atomically(tmp_path, monkeypatch):
    """Text is written beside the file and renamed; if that fails, the old text stays and no scratch is left."""
    write_text(tmp_path / "x.md", "old")

    def fail(source, target):
        assert (tmp_path / "x.md").read_text() == "old"
        assert Path(source).read_text() == "new"
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fail)
    with refuses(f"Could not write {tmp_path / 'x.md'}: [Errno 13] Permission denied.", StateError):
        write_text(str(tmp_path / "x.md"), "new")
    assert contents(tmp_path) == {"x.md": "old"}


@pytest.mark.parametrize("write", [write_text, write_json])
def test_no_such_folder(tmp_path, write):
    target = tmp_path / "none" / "x"
    scratch = tmp_path / "none" / ".incomplete-x"
    with refuses(f"Could not write {target}: [Errno 2] No such file or directory: '{scratch}'.", StateError):
        write(target, "text")


@pytest.mark.parametrize("write", [write_text, write_json])
def test_a_file_where_the_folder_should_be(tmp_path, write):
    (tmp_path / "file").write_text("a file")
    target, scratch = tmp_path / "file" / "x", tmp_path / "file" / ".incomplete-x"
    with refuses(f"Could not write {target}: [Errno 20] Not a directory: '{scratch}'.", StateError):
        write(target, "text")
    assert contents(tmp_path) == {"file": "a file"}


@pytest.mark.parametrize("overwrite", [True, False])
def test_require_empty_accepts(tmp_path, overwrite):
    require_empty(tmp_path, overwrite=overwrite)
    require_empty(str(tmp_path / "none"), overwrite=overwrite)
    assert not (tmp_path / "none").exists()


def test_require_empty_ignores_what_a_killed_process_leaves(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".incomplete-training").mkdir()
    require_empty(tmp_path, overwrite=False)


def test_require_empty_with_files(tmp_path):
    (tmp_path / ".hidden").write_text("")
    with refuses(
        f"The folder {tmp_path} is not empty. Give another --output_dir, or --overwrite to replace it.", XTCError
    ):
        require_empty(tmp_path, overwrite=False)
    require_empty(tmp_path, overwrite=True)


@pytest.mark.parametrize("overwrite", [True, False])
def test_require_empty_with_a_file(tmp_path, overwrite):
    (tmp_path / "x").write_text("")
    with refuses(f"{tmp_path / 'x'} is a file; results need a folder. Give another --output_dir.", XTCError):
        require_empty(tmp_path / "x", overwrite=overwrite)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.uint8,
        torch.int8,
        torch.int64,
    ],
    ids=str,
)
def test_read_header(tmp_path, dtype):
    save_file({"x": torch.zeros(2, 0, 3, dtype=dtype), "y": torch.zeros((), dtype=dtype)}, tmp_path / "m")
    assert read_header(tmp_path / "m") == {"x": (dtype, (2, 0, 3)), "y": (dtype, ())}
    assert read_header(str(tmp_path / "m")) == read_header(tmp_path / "m")


def test_read_header_of_a_dtype_that_no_packed_file_has(tmp_path):
    """The name alone makes `check_header` refuse it."""
    save_file({"dense.weight_scale": torch.zeros(2, 1, dtype=torch.int32)}, tmp_path / "m")
    header = read_header(tmp_path / "m")
    assert header == {"dense.weight_scale": ("I32", (2, 1))}
    with pytest.raises(PackedFileError, match="has dtype I32, but"):
        check_header(header, {"dense.weight_scale": TENSORS["dense.weight_scale"]}, "m")


def test_every_truncation_is_refused(tmp_path):
    """A file is refused at every length but the full one."""
    file = tmp_path / "m"
    save_file(TENSORS, file, metadata={"format": "pt"})
    whole = file.read_bytes()
    assert len(whole) < 400
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(PackedFileError) as caught:
            read_header(file)
        assert str(caught.value).startswith(f"{file} is truncated or not a safetensors file (")
        assert str(caught.value).endswith("). Download or write it again.")
    file.write_bytes(whole)
    assert read_header(file) == HEADER


@given(data=st.data())
@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_damage_is_refused_or_read(tmp_path, data):
    """A few wrong bytes anywhere: a `PackedFileError`, or a header of other names, types or shapes; never a crash."""
    file = tmp_path / "m"
    save_file(TENSORS, file)
    damaged = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=3)):
        damaged[place] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(damaged))
    try:
        assert len(read_header(file)) <= len(TENSORS)
    except PackedFileError as error:
        assert str(error).endswith("Download or write it again.")  # noqa: PT017 (either outcome is right)


@pytest.mark.parametrize(
    "place, cause", [("none", "No such file or directory"), (".", "not a regular file")], ids=["missing", "folder"]
)
def test_not_a_file(tmp_path, place, cause):
    with pytest.raises(PackedFileError, match=rf"^{re.escape(str(tmp_path / place))} is .* \({cause}.*\)\. Download"):
        read_header(tmp_path / place)


def test_check_header_accepts():
    check_header(HEADER, TENSORS, "model.safetensors", exact=True)
    check_header({**HEADER, "pooler.bias": (torch.int64, (7,))}, TENSORS, "model.safetensors")
    check_header({}, {}, "model.safetensors", exact=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_is_not_quantized_may_have_any_float_dtype(dtype):
    check_header({**HEADER, "dense.bias": (dtype, (2,))}, TENSORS, "model.safetensors")


def test_check_header_with_tensors_too_many():
    header = {"z": (torch.float32, (1,)), **HEADER, "pooler.bias": (torch.float32, (7,))}
    with refuses(
        "model.safetensors holds 2 tensors that its config.json does not promise (first: pooler.bias). "
        "Config and weights do not belong together; download or write both again.",
        PackedFileError,
    ):
        check_header(header, TENSORS, "model.safetensors", exact=True)


def test_check_header_with_tensors_missing():
    with refuses(
        "model.safetensors does not hold 2 of the 3 tensors that its config.json promises (first: "
        "dense.weight_packed). Config and weights do not belong together; download or write both again.",
        PackedFileError,
    ):
        check_header({"dense.bias": HEADER["dense.bias"]}, TENSORS, "model.safetensors")


@pytest.mark.parametrize(
    "name, found", [("dense.weight_packed", (2, 4)), ("dense.bias", (3,)), ("dense.bias", (2, 1))]
)
def test_check_header_with_another_shape(name, found):
    with refuses(
        f"model.safetensors: {name} has shape {list(found)}, but config.json promises {list(TENSORS[name].shape)}. "
        "Config and weights do not belong together; download or write both again.",
        PackedFileError,
    ):
        check_header({**HEADER, name: (HEADER[name][0], found)}, TENSORS, "model.safetensors")


@pytest.mark.parametrize(
    "name, found",
    [
        ("dense.weight_packed", torch.int8),
        ("dense.weight_packed", torch.float32),
        ("dense.weight_scale", torch.float32),
        ("dense.weight_scale", torch.bfloat16),
        ("dense.bias", torch.uint8),
        ("dense.bias", "I32"),
    ],
)
def test_check_header_with_another_dtype(name, found):
    with refuses(
        f"model.safetensors: {name} has dtype {found}, but config.json promises {TENSORS[name].dtype}. "
        "The file was not written by this package; write it again with pack_model.",
        PackedFileError,
    ):
        check_header({**HEADER, name: (found, HEADER[name][1])}, TENSORS, "model.safetensors")


def test_files_get_the_permissions_of_the_umask(tmp_path):
    """By itself, safetensors writes files that other users cannot read."""
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "out") as folder:
            save_file({"x": torch.zeros(2)}, folder / "model.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
