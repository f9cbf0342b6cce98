"""The exception tree of the package.

XTCError (ValueError)
├── RecipeError      a recipe, spec, layer map or option that is invalid
├── DataError        a data set that is empty, unreadable or does not match the model's head
├── PackedFileError  a packed checkpoint that is truncated, inconsistent or from another format version
│                    (also a RuntimeError)
├── StateError       the model is in the wrong state (latent where packed is needed, or the reverse)
├── HubError         the Hub cannot be reached, or refuses a request
└── ExtraError       an optional package cannot be imported (also an ImportError)

Every message states what is wrong, with which values, and what to do. Catch `XTCError` to catch them all.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class XTCError(ValueError):
    """Base class of all errors that this package raises on bad input."""


class RecipeError(XTCError):
    """A recipe, quantization spec, layer map or option that is invalid."""


class DataError(XTCError):
    """A data set that is empty, unreadable, or does not match the model's head."""


class PackedFileError(XTCError, RuntimeError):
    """A packed checkpoint that is truncated, inconsistent, or written by an unknown format version.

    Also a RuntimeError, which is what transformers raises for weights that do not match a model."""


class StateError(XTCError):
    """A model in the wrong state: latent where packed is needed, or the reverse."""


class HubError(XTCError):
    """The Hugging Face Hub cannot be reached, or refuses a request."""


class ExtraError(XTCError, ImportError):
    """An optional package that a feature needs cannot be imported."""


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Context manager for imports of optional packages that an extra of this package installs.

    Args:
        name (`str`): The extra, as in `pip install 'hf_xtc[name]'`.

    Raises:
        ExtraError: if one of them cannot be imported; names the package and the extra.

    Example:
        >>> with needs_extra("report"):
        ...     import no_such_package
        Traceback (most recent call last):
        hf_xtc.errors.ExtraError: The package no_such_package cannot be imported (No module named 'no_such_package'). \
Run: pip install 'hf_xtc[report]'
    """
    try:
        yield
    except ImportError as error:
        raise ExtraError(
            f"The package {error.name} cannot be imported ({error}). Run: pip install 'hf_xtc[{name}]'"
        ) from error
