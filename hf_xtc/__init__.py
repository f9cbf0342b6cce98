"""XTC for Hugging Face: fine-tuned encoders compressed to 1-bit or ternary packed files that `from_pretrained` loads.

Importing the package registers its models with transformers' Auto classes: at once if transformers is imported
already, else as soon as it is. Public names are imported on first use. So `hf_xtc.runtime` runs without PyTorch and
transformers.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hf_xtc.version import __version__

if TYPE_CHECKING:
    from hf_xtc.backends import BACKENDS
    from hf_xtc.compression.convert import compress, pack_model, unpack_model
    from hf_xtc.compression.size_ledger import ledger
    from hf_xtc.data.glue_metric import GlueMetric
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

# Module -> the public names that it defines.
_NAMES = {
    "backends": ("BACKENDS",),
    "compression.convert": ("compress", "pack_model", "unpack_model"),
    "compression.size_ledger": ("ledger",),
    "data.glue_metric": ("GlueMetric",),
    "distillation.terms": ("TERMS", "DistillationTerm"),
    "errors": ("XTCError",),
    "modeling": ("ARCHITECTURES",),
    "modeling.bert": (
        *("XTCBertConfig", "XTCBertForMaskedLM", "XTCBertForMultipleChoice", "XTCBertForNextSentencePrediction"),
        *("XTCBertForPreTraining", "XTCBertForQuestionAnswering", "XTCBertForSequenceClassification"),
        *("XTCBertForTokenClassification", "XTCBertModel"),
    ),
    "modeling.layers": ("PackedEmbedding", "PackedLinear", "XTCEmbedding", "XTCLinear"),
    "quantization.quantizers": ("Quantizer", "fake_quantize"),
    "quantization.specs": ("QUANTIZERS", "QuantSpec"),
    "recipe.layer_map": ("LayerMap",),
    "recipe.xtc_recipe": ("XTCRecipe",),
    "training.arguments": ("XTCTrainingArguments",),
    "training.callbacks": ("PackedSizeCallback", "QuantizationCallback", "WeightStatisticsCallback"),
    "training.trainer": ("XTCTrainer",),
}
_LAZY = {name: f"hf_xtc.{module}" for module, names in _NAMES.items() for name in names}

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


class _AfterTransformers:
    """An entry of `sys.meta_path` that registers the models right after transformers is imported, or PEFT, which
    imports it: packed layers are registered with PEFT too, once it is complete.

    Rooms that modeling stands on do not import transformers. So modeling can be imported whoever imports transformers,
    except modeling itself, which is registering then.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in ("transformers", "peft"):
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = find_spec(name)
        if spec is None:
            sys.meta_path.insert(0, self)  # type: ignore[arg-type]
        elif spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register() -> None:
    """Imports the models, which registers them, unless they are being imported or there is no PyTorch."""
    if "hf_xtc.modeling" not in sys.modules and find_spec("torch") is not None:
        import_module("hf_xtc.modeling")


if "transformers" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _AfterTransformers())  # type: ignore[arg-type]
