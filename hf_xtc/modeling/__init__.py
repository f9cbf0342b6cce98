"""Latent and packed models: the layers, the base classes, and one module per family.

A family's module registers an `Architecture` and its classes with transformers' Auto classes; it is imported here.
"""

from contextlib import suppress

from hf_xtc.modeling import bert  # noqa: F401
from hf_xtc.modeling.architecture import ARCHITECTURES, Architecture
from hf_xtc.modeling.base import XTCConfig, XTCModel

with suppress(ImportError):  # if PEFT is installed, registers the packed layers with it
    from hf_xtc.modeling import tuners  # noqa: F401

__all__ = ["ARCHITECTURES", "Architecture", "XTCConfig", "XTCModel"]
