"""One table type for every extension point: quantizers, backends, distillation terms, architectures."""

from collections.abc import Callable
from typing import Any

from hf_xtc.errors import XTCError


class Registry(dict[str, Any]):
    """Name -> object table that refuses duplicates and answers a typo with the known names.

    Always index (`TABLE[name]`): `.get` skips the message.

    Example:
        >>> TABLE = Registry("colour")
        >>> @TABLE.register("red")
        ... class Red: ...
        >>> TABLE["rde"]
        Traceback (most recent call last):
        ...
        hf_xtc.errors.XTCError: Unknown colour 'rde'; registered: red.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that enters the object under `name`; raises `XTCError` if the name is taken."""
        if name in self:
            raise XTCError(f"{self.kind} {name!r} is already registered (by {self[name].__module__}).")

        def decorate(obj: Any) -> Any:
            self[name] = obj
            return obj

        return decorate

    def __getitem__(self, name: str) -> Any:  # not __missing__, whose tables torch.compile cannot read up to 2.6
        if name not in self:
            raise XTCError(f"Unknown {self.kind} {name!r}; registered: {', '.join(sorted(self))}.")
        return super().__getitem__(name)
