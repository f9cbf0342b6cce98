"""The ONNX file that a push may add to a repository, and the section of the card that shows it to users of JavaScript.

The `config.json` of a packed repository names a model type that transformers.js does not know, so the card's code
gives it that of the graph.
"""

from typing import Any

from huggingface_hub import ModelCard

from hf_xtc.files.sentence_files import SentenceSettings
from hf_xtc.hub.upload import ONNX_FILE, REPO_ARGUMENT
from hf_xtc.tasks import kind_of, task_of_model

TITLE = "## In JavaScript"

_SECTION = """{title}

`{file}` ({bytes:,} bytes) is the same model for
[transformers.js](https://huggingface.co/docs/transformers.js) and ONNX Runtime: the packed weights, unpacked when the
file is loaded, and 8-bit integer arithmetic. Tested with transformers.js 3.0 (in Node) and 4.3 (in Node and Chromium),
and with ONNX Runtime from 1.18 on: the graph has opset 21.

```js
import {{ {imports} }} from "@huggingface/transformers";

const name = "{folder}";
const config = await AutoConfig.from_pretrained(name);
config.model_type = "{model_type}"; // of the graph
{use}
```
"""
_PIPELINE = """const pipe = await pipeline("{task}", name, {{ config, dtype: "q8" }});
console.log(await pipe({call}));"""
_LOGITS = """const model = await AutoModelForSequenceClassification.from_pretrained(name, {{ config, dtype: "q8" }});
const tokenizer = await AutoTokenizer.from_pretrained(name);
const {{ logits }} = await model(await tokenizer({call}));
console.log(logits.tolist());"""
_CALLS = {
    "text-classification": '"A sentence.", { top_k: null }',
    "token-classification": '"A sentence.", { aggregation_strategy: "simple" }',
    "question-answering": '"A question?", "A context."',
    "fill-mask": '"A [MASK]."',
}


def javascript_section(config: Any, class_name: str, model_type: str, size: int) -> str:
    """The section of a card, in Markdown.

    Args:
        config (`PreTrainedConfig`), class_name (`str`): Of the packed model.
        model_type (`str`): That of its graph, of a stock model.
        size (`int`): Bytes of the ONNX file.
    """
    task = task_of_model(class_name, kind_of(config))
    tag = "feature-extraction" if task is None else task.pipeline_tag
    imports = "AutoConfig, pipeline"
    if class_name.endswith("ForSequenceClassification") and config.num_labels == 1:
        imports = "AutoConfig, AutoModelForSequenceClassification, AutoTokenizer"
        pair = '"A query", { text_pair: "A passage." }' if tag == "text-ranking" else '"A sentence."'
        use = _LOGITS.format(call=pair)
    elif tag in _CALLS:
        use = _PIPELINE.format(task=tag, call=_CALLS[tag])
    else:
        use = _PIPELINE.format(task="feature-extraction", call=f'"A sentence.", {_pooling(config)}')
    facts = {"title": TITLE, "file": ONNX_FILE, "bytes": size, "folder": REPO_ARGUMENT}
    return _SECTION.format(imports=imports, model_type=model_type, use=use, **facts)


def _pooling(config: Any) -> str:
    """The options by which the pipeline for features gives what a sentence embedder gives."""
    recorded = config.xtc.get("sentences")
    settings = SentenceSettings.from_dict(recorded) if recorded else None
    pooling = "none" if settings is None else settings.pooling
    normalize = settings is not None and settings.normalize
    return f'{{ pooling: "{pooling}", normalize: {str(normalize).lower()} }}'


def with_section(text: str, section: str) -> str:
    """A card with the section before its results, or at its end, and the tags by which the Hub finds such models."""
    card = ModelCard(text, ignore_metadata_errors=True)
    tags = card.data.tags or []
    card.data.tags = [*tags, *(tag for tag in ("onnx", "transformers.js") if tag not in tags)]
    before, results, after = card.text.partition("\n## Results")
    card.text = f"{before.rstrip()}\n\n{section}{results}{after}"
    return str(card)
