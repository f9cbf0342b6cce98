"""Models in their two states, one file per architecture.

Every sibling module is imported, so that adding an architecture is adding a file: it registers an `Architecture` and
its classes with transformers' Auto classes.
"""

from importlib import import_module
from pkgutil import iter_modules

from hf_xtc.modeling.architecture import ARCHITECTURES, Architecture
from hf_xtc.modeling.base import XTCConfig, XTCModel

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["ARCHITECTURES", "Architecture", "XTCConfig", "XTCModel"]
