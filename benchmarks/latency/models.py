"""The models: shapes of BERT, random weights, two labels. What they learnt changes no speed and no size."""

from typing import Any

# Name -> what differs from BertConfig's defaults, which are BERT-base's.
MODELS: dict[str, dict[str, Any]] = {
    "bert-base-12": {},
    "bert-base-5": {"num_hidden_layers": 5},
    "minilm-6": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    "minilm-3": {"hidden_size": 384, "num_hidden_layers": 3, "intermediate_size": 1536},
    "tiny": {
        "vocab_size": 101,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    },
}
# A student is also compared with the model that it was reduced from, in float32: the runtime "teacher".
TEACHERS = {"bert-base-5": "bert-base-12"}


def vocab_size(name: str) -> int:
    """How many tokens the model knows; 30522 as BERT, if nothing else is said."""
    return int(MODELS[name].get("vocab_size", 30522))


def build(name: str, seed: int) -> Any:
    """`BertForSequenceClassification` in eval mode, its weights drawn with that seed."""
    from transformers import BertConfig, BertForSequenceClassification, set_seed

    set_seed(seed)
    return BertForSequenceClassification(BertConfig(**MODELS[name])).eval()
