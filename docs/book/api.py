"""Pages of the public functions, written from the syntax trees: no module is imported.

So the book is built without PyTorch. A docstring's text is taken as Markdown, in which
only code between back-quotes is special.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from book.notebooks import Chapter
from book.settings import ROOT, on_github

PACKAGE = ROOT / "dlcourse"
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


def public(tree: ast.Module | ast.ClassDef) -> list[ast.FunctionDef | ast.ClassDef]:
    """Return the public functions and classes of a module, or methods of a class, that
    have a docstring.
    """
    return [
        node
        for node in tree.body
        if isinstance(node, DEFINITIONS)
        and not node.name.startswith("_")
        and ast.get_docstring(node)
    ]


def files_of(name: str) -> list[Path]:
    """Return the files of a module, or of a folder, that define something public."""
    single = PACKAGE / f"{name}.py"
    files = [single] if single.exists() else sorted((PACKAGE / name).rglob("*.py"))
    return [file for file in files if public(parse(file))]


def parse(file: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(file.read_text("utf-8"))


def exported(name: str) -> set[str]:
    """Return the names that a folder's __init__ offers under its own name."""
    init = PACKAGE / name / "__init__.py"
    if not init.exists():
        return set()
    return {
        alias.asname or alias.name
        for node in parse(init).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


# --- one page ---------------------------------------------------------------------------


def page(name: str, title: str, above: str) -> str:
    """Return the page of a module or folder of `dlcourse` as Markdown."""
    lines = [f"# {title}", "", above, ""]
    offered = exported(name)
    files = files_of(name)
    for file in files:
        tree = parse(file)
        if len(files) > 1:
            lines += [f"## {heading(tree, file)}", ""]
        module = dotted(file)
        for node in public(tree):
            owner = f"dlcourse.{name}" if node.name in offered else module
            lines += [entry(node, owner), ""]
        path = file.relative_to(ROOT).as_posix()
        lines += [f"Source: [`{path}`]({on_github(path)})", ""]
    return "\n".join(lines)


def heading(tree: ast.Module, file: Path) -> str:
    """Return what a file holds: the first sentence of its docstring."""
    words = " ".join((ast.get_docstring(tree) or file.stem).split())
    return markdown(re.split(r"(?<=[.:])\s", words)[0].rstrip(".:"))


def dotted(file: Path) -> str:
    """Return a file's name as a module."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def entry(node: ast.FunctionDef | ast.ClassDef, module: str, depth: int = 0) -> str:
    """Return one function or class, with its methods, as a directive."""
    fence = "`" * (5 - depth)
    options = [f":module: {module}"] if depth == 0 else []
    body = markdown_docstring(ast.get_docstring(node) or "")
    kind, inner = kind_of(node, depth), []
    if isinstance(node, ast.ClassDef):
        inner = [entry(method, module, depth + 1) for method in public(node)]
    if kind == "method" and decorated(node, "staticmethod"):
        options.append(":staticmethod:")
    if kind == "method" and decorated(node, "classmethod"):
        options.append(":classmethod:")
    parts = [f"{fence}{{py:{kind}}} {node.name}{signature(node)}", *options, ""]
    return "\n".join([*parts, body, "", *inner, fence])


def kind_of(node: ast.FunctionDef | ast.ClassDef, depth: int) -> str:
    """Return the name of the directive."""
    if isinstance(node, ast.ClassDef):
        return "class"
    if decorated(node, "property"):
        return "property"
    return "method" if depth else "function"


def decorated(node: ast.FunctionDef | ast.ClassDef, name: str) -> bool:
    """Tell whether a definition has this decorator."""
    return any(ast.unparse(item).endswith(name) for item in node.decorator_list)


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return the signature as it is written, or "" where there is none to call."""
    if isinstance(node, ast.FunctionDef):
        return "" if decorated(node, "property") else call(node)
    if any("dataclass" in ast.unparse(item) for item in node.decorator_list):
        return fields(node)
    inits = [item for item in node.body if getattr(item, "name", "") == "__init__"]
    return call(inits[0]) if inits else ""


def call(node: ast.FunctionDef) -> str:
    """Return `(arguments) -> result` of a function, without self or cls."""
    text = ast.unparse(node.args)
    text = re.sub(r"^(self|cls)(, |$)", "", text)
    result = ast.unparse(node.returns) if node.returns else "None"
    return f"({text})" + ("" if result == "None" else f" -> {result}")


def fields(node: ast.ClassDef) -> str:
    """Return the fields of a dataclass as a signature."""
    found = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign):
            default = f" = {ast.unparse(item.value)}" if item.value else ""
            found.append(
                f"{ast.unparse(item.target)}: {ast.unparse(item.annotation)}{default}"
            )
    return f"({', '.join(found)})"


# --- docstrings as Markdown -------------------------------------------------------------


def markdown_docstring(text: str) -> str:
    """Return a docstring as Markdown, its examples as code."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.lstrip().startswith(">>>"):
            parts.append(f"~~~python\n{paragraph}\n~~~")
        elif paragraph.startswith("    "):
            parts.append(f"~~~text\n{inspect.cleandoc(paragraph)}\n~~~")
        else:
            parts.append(markdown(paragraph))
    return "\n\n".join(parts)


def markdown(text: str) -> str:
    """Return plain text as Markdown: what is not between back-quotes means itself."""
    pieces = re.split(r"(`[^`]+`)", text)
    plain = [
        piece if piece.startswith("`") else re.sub(r"([*_<>$#\[\]{}\\])", r"\\\1", piece)
        for piece in pieces
    ]
    return "".join(plain)


# --- all pages --------------------------------------------------------------------------


def pages(chapters: list[Chapter]) -> dict[str, str]:
    """Return the pages of the package by their names."""
    lessons = [chapter for chapter in chapters if chapter.is_lesson]
    made = {}
    for chapter in lessons:
        link = f"[Chapter {chapter.number}](../chapters/{chapter.stem}.ipynb)"
        above = (
            f"`dlcourse.{chapter.technique}`: what {link} teaches, as tested functions."
        )
        made[chapter.technique] = page(chapter.technique, chapter.title, above)
    bench = "`dlcourse.lab`: the data, the models, the loop, claims, tables and plots."
    made["lab"] = page("lab", "The bench that chapters share", bench)
    predict = "`dlcourse.capstone.predict`: ask a trained model about new images."
    made["predict"] = page("capstone/predict", "Predict", predict)

    rows = [
        f"- [{chapter.title}]({chapter.technique}.md): `dlcourse.{chapter.technique}`"
        for chapter in lessons
    ]
    tree = ["```{toctree}", ":hidden:", "", *made, "```"]
    made["index"] = "\n".join(
        [
            "# The package",
            "",
            "What the chapters teach, as functions that are tested against PyTorch and "
            "Accelerate. Every page here is written from the docstrings.",
            "",
            *rows,
            "- [The bench that chapters share](lab.md): `dlcourse.lab`",
            "- [Predict](predict.md): `dlcourse.predict`",
            "",
            *tree,
            "",
        ]
    )
    return {f"api/{name}.md": text for name, text in made.items()}
