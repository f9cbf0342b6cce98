"""The tasks, one file each, registered in `TASKS`."""

import hf_xtc.tasks.regression
import hf_xtc.tasks.sequence_classification  # noqa: F401
from hf_xtc.tasks.base import TASKS, Task, task_of

__all__ = ["TASKS", "Task", "task_of"]
