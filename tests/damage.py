"""Changes to the files of a checkpoint, which make it a damaged one."""

import json

from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification


def load(folder, auto=AutoModelForSequenceClassification, **kwargs):
    return auto.from_pretrained(folder, **kwargs)


def edit_tensors(folder, change, name="model.safetensors"):
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def edit_config(folder, change):
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def drop(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


def put(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


def put_value(name, value):
    def change(tensors):
        tensors[name].view(-1)[3] = value

    return change
