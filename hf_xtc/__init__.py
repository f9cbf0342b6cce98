"""XTC for Hugging Face: fine-tuned encoders compressed to 1-bit or ternary packed files that `from_pretrained` loads.

Importing the package registers its models with the Auto classes. The trainer, its callbacks and `GlueMetric` are
imported on first use, since transformers' Trainer and evaluate take seconds to import.
"""

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_xtc.backends import BACKENDS
from hf_xtc.compression.convert import compress, pack_model, unpack_model
from hf_xtc.compression.size_ledger import ledger
from hf_xtc.distillation.terms import TERMS, DistillationTerm
from hf_xtc.errors import XTCError
from hf_xtc.hub import publish as _publish  # noqa: F401 (defines `push_to_hub` of the models)
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
from hf_xtc.version import __version__

with suppress(ImportError):  # if PEFT is installed, registers the packed layers with it
    from hf_xtc.modeling import tuners as _tuners  # noqa: F401

if TYPE_CHECKING:
    from hf_xtc.data.glue_metric import GlueMetric
    from hf_xtc.training.arguments import XTCTrainingArguments
    from hf_xtc.training.callbacks import PackedSizeCallback, QuantizationCallback, WeightStatisticsCallback
    from hf_xtc.training.trainer import XTCTrainer

# Public name -> the module that defines it, for names that are imported on first use.
_LAZY = {
    "GlueMetric": "hf_xtc.data.glue_metric",
    "PackedSizeCallback": "hf_xtc.training.callbacks",
    "QuantizationCallback": "hf_xtc.training.callbacks",
    "WeightStatisticsCallback": "hf_xtc.training.callbacks",
    "XTCTrainer": "hf_xtc.training.trainer",
    "XTCTrainingArguments": "hf_xtc.training.arguments",
}

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
    """Imports a public name on its first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'hf_xtc' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
