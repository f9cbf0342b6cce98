"""The exception tree of the package.

XTCError (ValueError)
├── RecipeError      a recipe, spec or layer map that cannot be carried out
├── DataError        a data set that is empty, unreadable or does not match the model's head
├── PackedFileError  a packed checkpoint that is truncated, inconsistent or from another format version
├── StateError       the model is in the wrong state (latent where packed is needed, or the reverse)
└── HubError         the Hub cannot be reached, or refuses what was asked of it

Every message says what is wrong with which values, and what to do. Catch `XTCError` to catch them all.
"""


class XTCError(ValueError):
    """Root of all errors that this package raises on bad input."""


class RecipeError(XTCError):
    """A recipe, quantization spec or layer map that cannot be carried out."""


class DataError(XTCError):
    """A data set that is empty, unreadable, or does not match the model's head."""


class PackedFileError(XTCError):
    """A packed checkpoint that is truncated, inconsistent, or written by an unknown format version."""


class StateError(XTCError):
    """A model in the wrong state: latent where packed is needed, or the reverse."""


class HubError(XTCError):
    """The Hugging Face Hub cannot be reached, or refuses what was asked of it."""
