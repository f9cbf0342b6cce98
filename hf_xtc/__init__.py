"""XTC for Hugging Face: fine-tuned encoders compressed to 1-bit or ternary packed files that `from_pretrained` loads.

Importing the package registers its models with the Auto classes and does nothing else.
"""

from typing import Any

from hf_xtc.backends import BACKENDS
from hf_xtc.compression.convert import compress, pack_model, unpack_model
from hf_xtc.compression.size_ledger import ledger
from hf_xtc.distillation.terms import TERMS, DistillationTerm
from hf_xtc.errors import XTCError
from hf_xtc.modeling import ARCHITECTURES
from hf_xtc.modeling.bert import (
    XTCBertConfig,
    XTCBertForMaskedLM,
    XTCBertForMultipleChoice,
    XTCBertForNextSentencePrediction,
    XTCBertForPreTraining,
    XTCBertForQuestionAnswering,
    XTCBertForSequenceClassification,
    XTCBertForTokenClassification,
    XTCBertModel,
)
from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear, XTCEmbedding, XTCLinear
from hf_xtc.quantization.quantizers import Quantizer, fake_quantize
from hf_xtc.quantization.specs import QUANTIZERS, QuantSpec
from hf_xtc.recipe.layer_map import LayerMap
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.training.arguments import XTCTrainingArguments
from hf_xtc.training.callbacks import PackedSizeCallback, QuantizationCallback, WeightStatisticsCallback
from hf_xtc.training.trainer import XTCTrainer
from hf_xtc.version import __version__

__all__ = [
    "ARCHITECTURES",
    "BACKENDS",
    "QUANTIZERS",
    "TERMS",
    "DistillationTerm",
    "GlueMetric",
    "LayerMap",
    "PackedEmbedding",
    "PackedLinear",
    "PackedSizeCallback",
    "QuantSpec",
    "QuantizationCallback",
    "Quantizer",
    "WeightStatisticsCallback",
    "XTCBertConfig",
    "XTCBertForMaskedLM",
    "XTCBertForMultipleChoice",
    "XTCBertForNextSentencePrediction",
    "XTCBertForPreTraining",
    "XTCBertForQuestionAnswering",
    "XTCBertForSequenceClassification",
    "XTCBertForTokenClassification",
    "XTCBertModel",
    "XTCEmbedding",
    "XTCError",
    "XTCLinear",
    "XTCRecipe",
    "XTCTrainer",
    "XTCTrainingArguments",
    "__version__",
    "compress",
    "fake_quantize",
    "ledger",
    "pack_model",
    "unpack_model",
]


def __getattr__(name: str) -> Any:
    """`GlueMetric` on first use: `evaluate` takes seconds to import."""
    if name == "GlueMetric":
        from hf_xtc.data.metrics import GlueMetric

        return GlueMetric
    raise AttributeError(f"module 'hf_xtc' has no attribute {name!r}")
