"""The teacher cache: a teacher's outputs on disk, so that training does not run the teacher.

`format` defines the files and when a cache is stale, `shards` writes and reads them, `rows` adds the cached outputs to
batches, and `making` makes, completes or reuses a cache. The trainer imports this package, never the reverse.
"""

from hf_xtc.distillation.cache.making import Teaching
from hf_xtc.distillation.cache.rows import ROW, TARGETS, CachedTargets, NumberedRows
from hf_xtc.distillation.cache.shards import TeacherCache

__all__ = ["ROW", "TARGETS", "CachedTargets", "NumberedRows", "TeacherCache", "Teaching"]
