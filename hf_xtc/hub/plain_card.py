"""The card of a packed model that was pushed without a run of `hf-xtc compress`: what its configuration tells.

Size and recipe are facts of the file; metrics are those that the caller measured, or "not measured". Text that comes
from outside (names of models, labels, data) is escaped. The card of a whole run is `run_card.py`'s, which shares
metadata, example and lists with this one.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from hf_xtc.compression.origin import is_license_id
from hf_xtc.compression.size_ledger import ledger
from hf_xtc.distillation.terms import XTC
from hf_xtc.hub.upload import HERE
from hf_xtc.quantization.specs import QUANTIZERS
from hf_xtc.recipe.xtc_recipe import SCOPES, XTCRecipe

PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
}
_PIPELINE = """import {package}  # registers the architecture
from transformers import pipeline

pipe = pipeline("{tag}", {here}"""
_TEMPLATE = """---
{card_data}
---

# {name}

A {depth}-layer {family} with {weights} weights: {bytes:,} bytes of tensors, {ratio:.1f} times smaller than the same
layers in float32. Compressed with XTC (Wu et al., NeurIPS 2022) by hf_xtc.

```python
{use}
```

## Results

{results}

## Bytes

```
{ledger}
```

## How it was made

{made}

Recipe:

```json
{recipe}
```

## Limits

- Other metrics than those above, the spread over seeds, speed, fairness, robustness and other domains were not
  measured.
- The teacher's own limits and biases are inherited; see its card.

## Credits

{citations}
"""


def plain_card(
    config: Any,
    model_class: type[PreTrainedModel],
    name: str,
    *,
    metrics: Mapping[str, float] | None = None,
    made: Mapping[str, Any] | None = None,
    citations: tuple[str, ...] = (),
    sha256: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """The card of a packed model, checked to be a readable one.

    Args:
        config (`PreTrainedConfig`), model_class (`type`): Of an XTC model in either state.
        name (`str`): What the model is called: `user/name`, or the name of a folder.
        metrics (`dict[str, float]`, *optional*): Measured in the training that made it; none are "not measured".
        made (`dict`, *optional*): JSON facts of how it was made, beside the provenance in its configuration.
        citations (`tuple[str, ...]`): Sources of what trained it; those of its quantizers are added.
        sha256 (`str`, *optional*): Of `model.safetensors`; `hf-xtc verify` compares it with the file's.
        metadata (`dict`, *optional*): More fields of `ModelCardData`: license, language, tags, datasets.
    """
    made_of, facts = ledger(config, model_class=model_class), {**config.xtc.get("provenance", {}), **(made or {})}
    recipe: XTCRecipe = config.recipe
    given = {key: value for key, value in (metadata or {}).items() if value is not None}
    fields = {"pipeline_tag": pipeline_tag(model_class.__name__), "model_sha256": sha256, **given}
    text = _TEMPLATE.format(
        card_data=card_metadata(recipe, facts, **fields).to_yaml(),
        name=html.escape(name),
        depth=config.num_hidden_layers,
        family="BERT" if config.model_type == "xtc_bert" else html.escape(config.model_type.removeprefix("xtc_")),
        weights=recipe.weights or "float",
        bytes=made_of.total_bytes,
        ratio=made_of.float32_bytes / made_of.total_bytes,
        use=usage(model_class.__name__, model_class.__module__.partition(".")[0]),
        results=_results(metrics),
        ledger=made_of,
        made=facts_list(facts) or "- not recorded",
        recipe=recipe.to_json(),
        citations="\n".join(f"- {line}" for line in sorted({XTC, *citations, *quantizer_citations(recipe)})),
    )
    ModelCard(text)
    return text


def card_metadata(
    recipe: XTCRecipe, facts: Mapping[str, Any], *, tags: Sequence[str] | str = (), **fields: Any
) -> ModelCardData:
    """What the Hub reads of a card: tags of the recipe, the teacher's name and licence, and what is given.

    Args:
        recipe (`XTCRecipe`), facts (`dict`): Of the model; `base_model` and `teacher_license` are read of the facts.
        tags (`list[str]`): More tags.
        fields: Of `ModelCardData`; they win over the facts, and `None` leaves a field out.
    """
    own = ["xtc", "hf_xtc", recipe.weights or "float", "quantization"]
    more = [tag for tag in ([tags] if isinstance(tags, str) else tags) if tag not in own]
    known = {"base_model": facts.get("base_model"), "license": _license(facts), "library_name": "transformers"}
    given = {key: value for key, value in {**known, **fields}.items() if value is not None}
    return ModelCardData(tags=[*own, *more], **given)


def _license(facts: Mapping[str, Any]) -> str | list[str] | None:
    """The teacher's licence, where the Hub knows its name."""
    stated = facts.get("teacher_license") or []
    names = [name for name in ([stated] if isinstance(stated, str) else stated) if is_license_id(name)]
    return names[0] if len(names) == 1 else names or None


def pipeline_tag(cls: str) -> str | None:
    """The pipeline that the head of a class, by name, serves, or `None`."""
    return next((tag for head, tag in PIPELINES.items() if cls.endswith(head)), None)


def usage(cls: str, package: str = "hf_xtc") -> str:
    """Three lines that load a model of a class of a package, both by name, from the card's own folder; see `HERE`."""
    tag = pipeline_tag(cls)
    if tag is not None:
        return _PIPELINE.format(package=package, tag=tag, here=HERE)
    return f"from {package} import {cls}\n\nmodel = {cls}.from_pretrained({HERE}"


def _results(metrics: Mapping[str, float] | None) -> str:
    if not metrics:
        return "Not measured."
    rows = "\n".join(f"| {html.escape(key)} | {metric_text(value)} |" for key, value in metrics.items())
    return (
        "Measured at the last evaluation of its training, on the model before it was packed: biases, LayerNorm and "
        f"head are rounded in the file.\n\n| metric | value |\n|---|---|\n{rows}"
    )


def quantizer_citations(recipe: XTCRecipe) -> set[str]:
    """Sources of the quantizers that a recipe uses."""
    return {QUANTIZERS[spec.quantizer].citation for spec in map(recipe.spec, SCOPES) if spec is not None} - {""}


def metric_text(metric: float | None) -> str:
    """A metric to four digits; one that is missing or no number was not measured."""
    return "not measured" if metric is None or not math.isfinite(metric) else f"{metric:.4f}"


def facts_list(facts: Mapping[str, Any]) -> str:
    """JSON facts of how a model was made as a Markdown list, escaped, with its teacher's licence or that it is not
    stated; stages of a schedule need a table of their own and are left out."""
    if "teacher" in facts:
        facts = {"teacher": facts["teacher"], "teacher_license": "not stated", **facts}
    return "\n".join(
        f"- {html.escape(key.replace('_', ' '))}: {html.escape(fact_text(value), quote=False)}"
        for key, value in facts.items()
        if key != "stages"
    )


def fact_text(value: Any) -> str:
    """A JSON value in words."""
    if isinstance(value, dict):
        return ", ".join(
            f"{name.replace('_', ' ')} {fact_text(entry)}" for name, entry in value.items() if entry != []
        )
    if isinstance(value, list):
        return "; ".join(map(fact_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
