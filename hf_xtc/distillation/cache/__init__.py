"""A teacher's outputs on disk, so that training costs the student alone.

`format` says what the files hold, `shards` writes and reads them, `rows` brings a data set's rows and their targets
together, `making` makes a cache or says why one cannot be used. None knows the trainer, which drives them.
"""

from hf_xtc.distillation.cache.making import Teaching
from hf_xtc.distillation.cache.rows import ROW, TARGETS, CachedTargets, NumberedRows
from hf_xtc.distillation.cache.shards import TeacherCache

__all__ = ["ROW", "TARGETS", "CachedTargets", "NumberedRows", "TeacherCache", "Teaching"]
