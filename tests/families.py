"""Tiny configs, teachers, batches and tokenizers of every family that the package knows."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, set_seed

from hf_xtc import ARCHITECTURES

# Widths are no multiples of 8, 5 or 4.
SIZES = {
    "vocab_size": 101,
    "hidden_size": 36,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 50,
    "max_position_embeddings": 40,
}
ROBERTA = {**SIZES, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
CONFIGS = {
    "bert": ("BertConfig", SIZES),
    "roberta": ("RobertaConfig", ROBERTA),
    "xlm-roberta": ("XLMRobertaConfig", ROBERTA),
    "camembert": ("CamembertConfig", ROBERTA),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": 101, "dim": 36, "n_layers": 4, "n_heads": 4, "hidden_dim": 50, "max_position_embeddings": 40},
    ),
    "electra": ("ElectraConfig", {**SIZES, "embedding_size": 20}),
    "mpnet": ("MPNetConfig", {**SIZES, "pad_token_id": 1}),
    "albert": ("AlbertConfig", {**SIZES, "embedding_size": 20, "num_hidden_groups": 2, "pad_token_id": 0}),
    "deberta-v2": (  # as v3: no token types, no absolute positions, buckets of relative ones
        "DebertaV2Config",
        {
            **SIZES,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
    ),
    "modernbert": (
        "ModernBertConfig",
        {
            **SIZES,
            "hidden_size": 40,  # rotary positions need an even size of heads
            "pad_token_id": 0,
            "bos_token_id": 2,
            "cls_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "local_attention": 6,
        },
    ),
}
CELLS = [(family, head) for family in CONFIGS for head in ARCHITECTURES[family].model_classes]
CLASSIFIERS = [(family, head) for family, head in CELLS if head.endswith("ForSequenceClassification")]
FEWER = {"albert": None}  # the layers that a student keeps, where it is not 2


def make_config(family, **changes):
    name, values = CONFIGS[family]
    return getattr(transformers, name)(**{"num_labels": 3, **values, **changes})


def make_teacher(family, head, **changes):
    """A random teacher without dropout whose weights, biases and norms are far from those of a fresh model."""
    config = make_config(family, **({"num_labels": 2} if head.endswith("QuestionAnswering") else {}), **changes)
    for name in vars(config):
        if "dropout" in name and getattr(config, name) is not None:
            setattr(config, name, 0.0)
    set_seed(0)
    teacher = getattr(transformers, head)(config).eval()
    for name, parameter in teacher.named_parameters():
        norm = "norm" in name.lower() and name.endswith("weight")
        nn.init.normal_(parameter, mean=float(norm), std=0.2)
    return teacher


def make_batch(config, head=""):
    """Three rows of eleven tokens, padded at their ends; each a choice of one example for a multiple-choice head."""
    generator = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(5, 101, (3, 11), generator=generator), torch.ones(3, 11, dtype=torch.long)
    mask[1, 6:] = mask[2, 3:] = 0
    batch = {"input_ids": ids.where(mask == 1, torch.tensor(config.pad_token_id)), "attention_mask": mask}
    return {key: value[None] for key, value in batch.items()} if head.endswith("MultipleChoice") else batch


def outputs(model, batch, **options):
    """The tensors that a model returns.

    Loaded parameters lie in the file at any address, and PyTorch sums in another order where they are not aligned.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        found = model(**batch, **options)
    return {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    wrong = {name: float((found[name] - expected[name]).abs().max()) for name in expected}
    assert all(torch.equal(found[name], expected[name]) for name in expected), wrong


def make_tokenizer(config):
    """A tokenizer of 90 words, "w0" to "w89", whose padding token is the config's."""
    special = dict(
        zip(("cls_token", "sep_token", "unk_token", "mask_token"), ("[C]", "[S]", "[U]", "[M]"), strict=True)
    )
    names = [*special.values(), *(f"w{i}" for i in range(90))]
    names.insert(config.pad_token_id, "[P]")
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[U]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[P]", **special)
