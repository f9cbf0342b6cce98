"""An extension of griffe, which reads docstrings for the API reference: rewrites our style for griffe's parser."""

import ast
import re
from typing import Any

from griffe import Attribute, Docstring, Extension, Object

TYPE = re.compile(r"^(\s+\**\w+) \((`[^\n]*?)\):", flags=re.M)  # name (`type`, *optional*):


class HouseStyle(Extension):
    """Strips markup from parameter types, reads "Example:" as doctest and `help` as the docstring of a field."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Rewrites a docstring into the form that griffe parses."""
        if obj.docstring is not None:
            text = TYPE.sub(lambda match: f"{match[1]} ({re.sub('[`*]', '', match[2])}):", obj.docstring.value)
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", text, flags=re.M)

    def on_attribute_instance(self, *, node: Any, attr: Attribute, **_: Any) -> None:
        """Takes documentation and default of an attribute from `field(default=..., metadata={"help": ...})`."""
        call = getattr(node, "value", None)
        if not (isinstance(call, ast.Call) and getattr(call.func, "id", None) == "field"):
            return
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if attr.docstring is None and isinstance(metadata := given.get("metadata"), ast.Dict):
            for key, text in zip(metadata.keys, metadata.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "help" and isinstance(text, ast.Constant):
                    attr.docstring = Docstring(text.value, lineno=node.lineno, parent=attr)
        attr.value = ast.unparse(given["default"]) if "default" in given else None
