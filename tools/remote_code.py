"""Writes `modeling_xtc_bert.py`, the code that a packed model's folder carries, out of the package's own sources.

    python tools/remote_code.py

takes the definitions that `ROOTS` need, module by module, and leaves out what inference does not need: training, the
latent state, the native operator, the writing of files. Of docstrings the first paragraph stays, of comments nothing.
Run it after any change of these sources; a test compares the committed files with what it gives.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "hf_xtc"
WRITTEN = [
    PACKAGE / "remote_code" / "modeling_xtc_bert.py",
    REPOSITORY / "examples" / "minilm-3l-1bit-sst2" / "modeling_xtc_bert.py",
]
# Each imports from those above it only.
MODULES = [
    *["errors", "plain_json", "registry", "specs", "recipe", "quantizers", "activations", "packing", "checkpoint"],
    *["backends/base", "backends/choice", "backends/reference", "backends/integer", "layers"],
    *["modeling/architecture", "modeling/checks", "modeling/states", "modeling/bert_config", "modeling/bert"],
]
# What is looked up by its registered name, and what `auto_map` names.
ROOTS = [
    *["BinaryQuantizer", "TernaryQuantizer", "Int8Quantizer", "Int4Quantizer", "ReferenceBackend", "Int8Backend"],
    *["XTCBertConfig", "XTCBertModel", "XTCBertForSequenceClassification", "XTCBertForTokenClassification"],
    *["XTCBertForQuestionAnswering", "XTCBertForMaskedLM", "XTCBertForMultipleChoice"],
    *["XTCBertForNextSentencePrediction", "XTCBertForPreTraining"],
]
# Tests of what is settled here: models are packed, in eval mode as far as quantization goes, and nothing is native.
TRUE, FALSE = {"packed"}, {"training", "serves", "native_serves"}
OTHERWISE = {"DEFAULT": "'reference'", "STATES": "('packed',)", "XTCBertConfig.state": "'packed'"}
RENAMED = {"_FusedQuantizer": "Quantizer"}
LEFT_OUT = [
    *["*Quantizer.scale", "*Quantizer.encode", "Quantizer.fake", "Quantizer.bits", "*Quantizer._fake_into"],
    *["TernaryQuantizer._*", "ActivationQuantizer.*observe", "ActivationQuantizer.momentum"],
    *["LayerMap.skip", "LayerMap.hidden_states", "LayerMap.attentions"],
    *["XTCRecipe.paper", "XTCRecipe.from_deepspeed", "XTCRecipe.layer_map", "XTCRecipe.*_json"],
    *["Backend.linear", "_Packed.set_packed_weight", "XTCBertConfig.save_pretrained"],
    *["XTCBertModel.forward", "XTCBertModel._only_last"],
    *["XTCModel.save_pretrained", "XTCModel._file_state_dict", "XTCModel.push_to_hub"],
]
HEAD = '''"""Packed XTC BERTs for transformers without the package hf_xtc: what `trust_remote_code=True` runs.

Generated from hf_xtc's sources, not to be edited. It reads, checks and runs packed models: on the reference backend,
which decodes weights and multiplies in float, or after `set_backend("int8")` in whole numbers. To train, compress or
write packed files, or for the fast native operator, install hf_xtc: it then takes the place of this file by itself.
Needs torch, transformers, and what transformers itself needs. Licence: Apache-2.0.
"""
'''


def truth(test: ast.expr) -> bool | None:
    """What a test is known to come to, or `None`."""
    match test:
        case ast.Constant(bool(value)):
            return value
        case ast.Name(name) | ast.Attribute(attr=name) | ast.Call(ast.Name(name)):
            return True if name in TRUE else False if name in FALSE else None
    return None


class Trim(ast.NodeTransformer):
    """Leaves out members in `LEFT_OUT` and branches that are never taken, and replaces what is otherwise here."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.owner = ""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.owner = node.name
        node.body = [member for member in node.body if not self._left_out(member)]
        self.generic_visit(node)
        shorten_docstring(node)
        self.owner = ""
        return node

    def _left_out(self, member: ast.stmt) -> bool:
        path = f"{self.owner}.{name_of(member)}"
        found = [pattern for pattern in LEFT_OUT if fnmatch(path, pattern)]
        self.used.update(found)
        return bool(found)

    def _otherwise(self, node: ast.Assign | ast.AnnAssign) -> ast.AST:
        path = f"{self.owner}.{name_of(node)}" if self.owner else name_of(node)
        if path in OTHERWISE:
            self.used.add(path)
            node.value = ast.parse(OTHERWISE[path], mode="eval").body
        return self.generic_visit(node)

    visit_Assign = visit_AnnAssign = _otherwise

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        shorten_docstring(node)
        ends = [i for i, part in enumerate(node.body) if isinstance(part, ast.Return | ast.Raise)]
        node.body = node.body[: ends[0] + 1] if ends else node.body
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(RENAMED.get(node.id, node.id), node.ctx)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        return ast.Constant(None) if ast.unparse(node) == "variant()" else node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        neutral = isinstance(node.op, ast.And)
        if any(truth(value) is (not neutral) for value in node.values):
            return ast.Constant(not neutral)
        node.values = [value for value in node.values if truth(value) is None]
        return node if len(node.values) > 1 else node.values[0] if node.values else ast.Constant(neutral)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        known = truth(node.operand) if isinstance(node.op, ast.Not) else None
        return node if known is None else ast.Constant(not known)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        known = truth(node.test)
        return node if known is None else node.body if known else node.orelse

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        known = truth(node.test)
        return node if known is None else node.body if known else node.orelse


def shorten_docstring(node: ast.ClassDef | ast.FunctionDef) -> None:
    """Cuts a docstring down to its first paragraph."""
    docstring = ast.get_docstring(node)
    if docstring is not None:
        indented = docstring.partition("\n\n")[0].replace("\n", "\n" + " " * (node.col_offset + 4))
        node.body[0] = ast.Expr(ast.Constant(indented))


def name_of(node: ast.stmt) -> str:
    """The name that a definition or assignment binds, or an empty one."""
    match node:
        case ast.ClassDef(name) | ast.FunctionDef(name) | ast.AnnAssign(ast.Name(name)) | ast.Assign([ast.Name(name)]):
            return name
    return ""


def names_in(node: ast.AST) -> set[str]:
    """Every name that a definition reads."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}


def arguments_of(node: ast.AST) -> set[str]:
    """The names of the arguments of all functions in a definition."""
    return {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Local name and statement of every import."""
    for node in tree.body:
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            single = type(node)(**{**vars(node), "names": [alias]})
            yield alias.asname or alias.name, ast.unparse(single)


def read_sources() -> tuple[dict[str, ast.stmt], dict[str, str]]:
    """The trimmed definitions of all modules, and the statements that import what they use, by name.

    Raises:
        ValueError: if an entry of the tables above fits nothing, or two definitions share a name.
    """
    trim, definitions, imports = Trim(), dict[str, ast.stmt](), dict[str, str]()
    for module in MODULES:
        tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
        imports.update(imported(tree))
        for node in tree.body:
            name = name_of(node)
            if name and name not in RENAMED:
                trimmed = trim.visit(node)
                if name in definitions and ast.dump(definitions[name]) != ast.dump(trimmed):
                    raise ValueError(f"{name} is defined twice; in one file it cannot be. Rename one.")
                definitions[name] = trimmed
    unused = {*LEFT_OUT, *OTHERWISE} - trim.used
    if unused:
        raise ValueError(f"Nothing is called {', '.join(sorted(unused))} any more.")
    return definitions, imports


def reached(definitions: dict[str, ast.stmt]) -> list[ast.stmt]:
    """The definitions that `ROOTS` read, directly or through others, in their order."""
    needed, waiting = set[str](), list(ROOTS)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting.extend(names_in(definitions[name]) & definitions.keys())
    return [node for name, node in definitions.items() if name in needed]


def needed_imports(body: list[ast.stmt], imports: dict[str, str]) -> list[str]:
    """The import statements of what `body` reads and does not define.

    Raises:
        ValueError: if one is of the package: its module is missing among `MODULES`.
    """
    read = {name for node in body for name in names_in(node) - arguments_of(node)} - {name_of(node) for node in body}
    statements = sorted({imports[name] for name in read if name in imports})
    inside = [statement for statement in statements if statement.startswith(("from hf_xtc", "import hf_xtc"))]
    if inside:
        raise ValueError(f"Needed, but of no module in MODULES: {'; '.join(inside)}. Extend MODULES or LEFT_OUT.")
    return statements


def generate() -> str:
    """The code, formatted; raises `ValueError` where the tables above no longer fit the sources."""
    definitions, imports = read_sources()
    body = reached(definitions)
    text = "\n".join([HEAD, *needed_imports(body, imports), *(ast.unparse(node) for node in body)])
    for command in (["check", "--quiet", "--select=I,UP034", "--fix"], ["format", "--quiet"]):
        text = _ruff(command, text)
    return text


def _ruff(command: list[str], text: str) -> str:
    command = [sys.executable, "-m", "ruff", *command, f"--stdin-filename={PACKAGE / 'generated.py'}", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    code = generate()
    for file in WRITTEN:
        file.write_text(code, encoding="utf-8")
