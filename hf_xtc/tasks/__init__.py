"""The tasks, one file each, registered in `TASKS`."""

import hf_xtc.tasks.masked_lm
import hf_xtc.tasks.multi_label_classification
import hf_xtc.tasks.question_answering
import hf_xtc.tasks.regression
import hf_xtc.tasks.reranking
import hf_xtc.tasks.sentence_embedding
import hf_xtc.tasks.sequence_classification
import hf_xtc.tasks.token_classification  # noqa: F401
from hf_xtc.tasks.base import TASKS, Task, find_task, kind_of, task_of_model

__all__ = ["TASKS", "Task", "find_task", "kind_of", "task_of_model"]
