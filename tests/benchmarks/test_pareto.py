"""Bytes against accuracy: points from the results file, and the linear rival on a task it can solve."""

import json

import pytest
from datasets import Dataset

import pareto
from hf_xtc.data.task_data import TaskData


def result(task="sst2", layers=3, seed=1, packed=0.8, **changes):
    line = {"run": f"{task}-{layers}-{seed}", "task": task, "layers": layers, "weights": "binary", "seed": seed}
    line |= {"teacher": 0.9, "teacher_bytes": 90, "packed": packed, "packed_bytes": 2}
    return {**line, "stages": {"layer-reduced student": 0.85, "binary student": packed}, **changes}


def test_students_are_means_over_seeds(tmp_path):
    lines = [result(seed=1, packed=0.8), result(seed=2, packed=0.7), result(layers=6), result(task="cola")]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for line in lines:
        folder = tmp_path / line["run"] / "training" / "reduced"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * 10 * line["layers"])
    points = {point.model: point for point in pareto.students(tmp_path, "sst2")}
    assert points["3 layers binary"] == pareto.Point("sst2", "3 layers binary", "binary", 2, pytest.approx(0.75), 2)
    assert points["6 layers binary"].seeds == 1
    assert points["3 layers float32"].bytes == 30
    assert points["teacher, float32"].score == pytest.approx(0.9)


def test_a_float_student_counts_once(tmp_path):
    line = result(weights="float", packed=0.88, packed_bytes=70, stages={"layer-reduced student": 0.88})
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    teacher, student = pareto.students(tmp_path, "sst2")
    assert teacher.family == "teacher"
    assert student == pareto.Point("sst2", "3 layers float32", "float", 70, pytest.approx(0.88))


def words(count, start):
    texts = [f"{'good fine' if i % 2 else 'bad poor'} film {i % 5}" for i in range(start, start + count)]
    return Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(start, start + count)]})


@pytest.mark.parametrize("names", [("bad", "good"), ("bad", "good", "odd"), None], ids=["two", "three", "regression"])
def test_linear_rival_learns_what_words_tell(names):
    splits = [words(60, 0), words(20, 60), words(20, 80)]
    if names is not None and len(names) == 3:
        splits = [s.map(lambda row, i: {"label": i % 3, "text": f"kind{i % 3}"}, with_indices=True) for s in splits]
    train, selection, validation = splits
    task = "stsb" if names is None else None
    data = TaskData("toys", task, train, validation, {}, names, "f" * 64, selection)
    point = pareto.linear("toys", data, 8)
    assert point.score > 0.95
    outputs = 3 if names is not None and len(names) == 3 else 1
    assert point.bytes == 256 * outputs + 4 * (1 + outputs)


def test_second_texts_have_words_of_their_own():
    split = Dataset.from_dict({"text": ["a b"], "text_pair": ["b c"]})
    assert pareto.texts_of(split) == ["a b 2_b 2_c"]
