"""What the Hub checks of a card's metadata when it is published."""

import math
import re

import yaml

LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "other")  # of the Hub's list
DATASET_TYPE = re.compile(r"(?:[\w-]+/)?[\w.-]+", re.ASCII)  # as the Hub's message of refusal gives it


def metadata_errors(card: str) -> list[str]:
    """What the Hub refuses of a card's metadata, as far as cards of this package could have it wrong."""
    found = re.match(r"---\n(.*?)\n---(\n|$)", card, flags=re.S)
    if found is None:
        return []
    data, errors = yaml.safe_load(found[1]) or {}, []
    for name in data.get("license", []) if isinstance(data.get("license", []), list) else [data["license"]]:
        if name not in LICENSES:
            errors.append(f'"license" must be one of [{", ".join(LICENSES)}]')
    if not isinstance(data.get("base_model", ""), str) or data.get("base_model", "a").count("/") > 1:
        errors.append('"base_model" with value is not valid')
    if not all(isinstance(tag, str) for tag in data.get("tags", [])):
        errors.append('"tags" must be strings')
    for i, model in enumerate(data.get("model-index", [])):
        for j, result in enumerate(model["results"]):
            where, dataset = f"model-index[{i}].results[{j}]", result["dataset"]
            if not DATASET_TYPE.fullmatch(dataset["type"]):
                errors.append(f'"{where}.dataset.type" with value "{dataset["type"]}" fails to match')
            if not (dataset["name"] and result["task"]["type"]):
                errors.append(f'"{where}" lacks a name')
            for metric in result["metrics"]:
                if not isinstance(metric["value"], int | float) or not math.isfinite(metric["value"]):
                    errors.append(f'"{where}.metrics" must be numbers')
    return errors
