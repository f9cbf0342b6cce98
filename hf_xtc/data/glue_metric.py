"""`GlueMetric`: the scores of GLUE for users of evaluate."""

from typing import Any

import numpy as np

from hf_xtc.data.metrics import GLUE_SCORES, Scores, check_glue
from hf_xtc.errors import DataError, needs_extra

with needs_extra("metrics"):
    import datasets
    import evaluate

CITATION = """\
@inproceedings{wang2019glue,
  title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author={Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and Bowman, Samuel R.},
  booktitle={ICLR},
  year={2019}
}
"""


class GlueMetric(evaluate.Metric):
    """The `glue` metric of the Hub, without a download: same keys, same values.

    | configuration | keys of `compute` |
    |---|---|
    | cola | `matthews_correlation` |
    | mrpc, qqp | `accuracy`, `f1` (of class 1) |
    | stsb | `pearson`, `spearmanr` |
    | mnli, mnli_matched, mnli_mismatched, qnli, rte, sst2, wnli | `accuracy` |

    `predictions` and `references` are `(rows,)`: class ids (`int64`), for stsb scores (`float32`). Predictions of one
    class only give Matthews 0.0, and an F1 with no positive row is 0.0. A correlation with a constant input, where
    the Hub's metric warns and returns nan, is 0.0 here, silently.

    Args:
        config_name (`str`): The GLUE configuration.
        **kwargs (`Any`): As for `evaluate.Metric`, for example `keep_in_memory` or `cache_dir`.

    Raises:
        DataError: if the configuration is unknown, or `compute` has no rows.

    Example:
        >>> GlueMetric("mrpc").compute(predictions=[0, 1, 1], references=[0, 1, 0])
        {'accuracy': 0.6666666666666666, 'f1': 0.6666666666666666}
    """

    def _info(self) -> evaluate.MetricInfo:
        check_glue(self.config_name)
        value = datasets.Value("float32" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description="GLUE, the General Language Understanding Evaluation benchmark (https://gluebenchmark.com).",
            citation=CITATION,
            inputs_description="\nArgs:\n    predictions, references: class ids; for stsb, scores.\n",
            features=datasets.Features({"predictions": value, "references": value}),
            format="numpy",
        )

    def _compute(self, predictions: Any, references: Any) -> Scores:
        if len(predictions) == 0:
            raise DataError(f"GLUE {self.config_name} has no rows to score. Add predictions and references first.")
        return GLUE_SCORES[self.config_name](np.asarray(predictions), np.asarray(references))
