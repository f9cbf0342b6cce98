"""Latent and packed models: the layers, the base classes, the factory of families, and one module per family.

A family's module declares it with `register_family`; it is imported here.
"""

from contextlib import suppress

from hf_xtc.modeling import (  # noqa: F401
    albert,
    bert,
    deberta_v2,
    distilbert,
    electra,
    modernbert,
    mpnet,
    roberta,
)
from hf_xtc.modeling.architecture import ARCHITECTURES, Architecture
from hf_xtc.modeling.base import XTCConfig, XTCModel
from hf_xtc.modeling.family import register_family

with suppress(ImportError):  # if PEFT is installed, registers the packed layers with it
    from hf_xtc.modeling import tuners  # noqa: F401

__all__ = ["ARCHITECTURES", "Architecture", "XTCConfig", "XTCModel", "register_family"]
