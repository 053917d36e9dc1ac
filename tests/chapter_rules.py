"""The rules of a chapter: each takes (path, notebook) and returns a list of problems."""

from __future__ import annotations

import ast
import functools
import io
import itertools
import json
import math
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from house_rules import GUIDES, TECHNIQUES, tree_of

from dlcourse.lab.claims import LINE

OUTPUT_KB = 400
ALT_LENGTH = 20
TAGS = {"hide-input", "nbval-ignore-output", "raises-exception"}
IGNORE_SHARE = 4  # at most one code cell in four may be tagged nbval-ignore-output
SECTIONS = [
    "The problem",
    "The idea",
    "In plain code",
    "Your turn",
    "The tested version",
    "Does it work?",
    "What the article says",
    "At scale",
    "In your own project",
    "Exercises",
    "In one minute",
]
DEEPER = "Deeper"  # may follow At scale
CARD = ["You will be able to", "Know first", "Minutes", "Seconds to run", "Hardware"]
RUN = {"capstone", "predict", "train"}
ALSO_IMPORTS = {
    "start_here": {"workshop"},  # reads the map from the cards
    "your_own_run": RUN | set(TECHNIQUES),
    "warmup": {"learning_rate_decay"},
    "lr_schedulers": {"learning_rate_decay", "warmup"},
}
MACHINE_PATH = re.compile(r"/(?:home|root|Users|tmp)/|[A-Za-z]:\\Users\\")
BOUNDS = {"at_least", "at_most", "between", "equals"}
SWALLOWERS = {"Exception", "BaseException", "AssertionError", "ExceptionGroup"}


# --- reading a notebook ---------------------------------------------------------------------------


def technique(path: Path) -> str:
    """Return the technique of a chapter file: 04_gradient_clipping.ipynb ->
    gradient_clipping.
    """
    return path.stem.partition("_")[2]


def guide(path: Path) -> bool:
    """Tell whether a notebook is a guide: no chapter, so without the ten sections."""
    return path.name in GUIDES


def for_chapters(rule):
    """Make a rule pass over the guides, which need not have a chapter's anatomy."""

    @functools.wraps(rule)
    def for_chapters_only(path: Path, book) -> list[str]:
        return [] if guide(path) else rule(path, book)

    return for_chapters_only


def code_cells(book) -> Iterator[tuple[int, dict]]:
    """Yield (number from 1 among all cells, cell) of each code cell."""
    for number, cell in enumerate(book.cells, 1):
        if cell.cell_type == "code":
            yield number, cell


def trees(book) -> Iterator[tuple[int, ast.Module]]:
    """Yield (number, syntax tree) of each code cell that is plain Python."""
    for number, cell in code_cells(book):
        try:
            yield number, tree_of(cell.source)
        except SyntaxError:
            continue


def without_fences(text: str) -> str:
    """Drop fenced code blocks from Markdown."""
    return re.sub(r"^(```|~~~).*?^\1[^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(book, level: int) -> list[tuple[int, str]]:
    """Return (cell number, title) of each Markdown heading of this level."""
    pattern = re.compile(rf"^{'#' * level}\s+(.*?)\s*$", re.MULTILINE)
    return [
        (number, title)
        for number, cell in enumerate(book.cells, 1)
        if cell.cell_type == "markdown"
        for title in pattern.findall(without_fences(cell.source))
    ]


def section(book, title: str) -> list[dict]:
    """Return the cells from the H2 heading ``title`` up to the next H2 heading."""
    starts = [*headings(book, 2), (len(book.cells) + 1, "")]
    for (start, found), (stop, _) in itertools.pairwise(starts):
        if found == title:
            return book.cells[start - 1 : max(stop - 1, start)]
    return []


def called(node: ast.AST) -> str:
    """Return the name that a call calls ("claim" for claim(...) and claims.claim(...)),
    or "".
    """
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "id", None) or getattr(node.func, "attr", "")


def output_text(output) -> str:
    """Return all text of one output, without HTML tags."""
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return "\n".join([output.ename, output.evalue, *output.traceback])
    texts = [text for kind, text in output.data.items() if kind.startswith("text/")]
    return "\n".join(re.sub(r"<[^>]*>", " ", str(text)) for text in texts)


# --- as JupyterLab saves it -----------------------------------------------------------------------

KERNEL = {
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "name": "python3",
}
LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}
PYTHON = re.compile(r"3\.\d+\.\d+")
CELL_METADATA = {"jupyter", "tags"}


def as_jupyterlab_saves(path: Path, book) -> list[str]:
    """The metadata are those that JupyterLab writes, and no bar or widget is left.

    The version of Python is that of whoever ran the chapter, any patch version of 3.
    """
    problems = []
    metadata = {name: dict(value) for name, value in book.metadata.items()}
    version = metadata.get("language_info", {}).pop("version", "missing")
    if metadata != {"kernelspec": KERNEL, "language_info": LANGUAGE}:
        problems.append(f"metadata are {metadata}; run tools/chapter.py {path.stem[:2]}")
    if not PYTHON.fullmatch(version):
        problems.append(f"version of Python is {version}; want all of it, as in 3.13.1")
    for number, cell in enumerate(book.cells, 1):
        more = set(cell.metadata) - CELL_METADATA
        if more:
            problems.append(f"cell {number} has metadata {sorted(more)}; remove them")
        for output in cell.get("outputs", ()):
            kinds = set(output.get("data", {"text": ""}))
            if not kinds or any("widget" in kind for kind in kinds):
                problems.append(f"cell {number} keeps what a widget or a bar has left")
    return problems


# --- cells and outputs ----------------------------------------------------------------------------


def executed(path: Path, book) -> list[str]:
    """Every code cell has run, and the counts are 1..n in order."""
    counts = [(number, cell.execution_count) for number, cell in code_cells(book)]
    never = [f"cell {number} never ran" for number, count in counts if count is None]
    stale = [
        f"cell {number} has count {count}, expected {expected}"
        for expected, (number, count) in enumerate(counts, 1)
        if count is not None and count != expected
    ]
    return never + stale


def output_size(path: Path, book) -> list[str]:
    """All outputs together take at most OUTPUT_KB kilobytes."""
    size = sum(len(json.dumps(cell.outputs)) for _, cell in code_cells(book)) / 1000
    return (
        [] if size <= OUTPUT_KB else [f"outputs take {size:.0f} kB, most is {OUTPUT_KB}"]
    )


def show_calls(tree: ast.AST) -> int:
    """Count the calls of plotting's show that run with the cell, not in a function it
    defines.
    """
    if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        return 0
    func = getattr(tree, "func", None)
    own = isinstance(func, ast.Name) and func.id == "show"
    own |= isinstance(func, ast.Attribute) and ast.unparse(func).endswith("plotting.show")
    return own + sum(show_calls(child) for child in ast.iter_child_nodes(tree))


def figures(path: Path, book) -> list[str]:
    """Each cell that shows a figure holds a PNG, and below each PNG stands its caption."""
    problems = []
    wanted = {number: show_calls(tree) for number, tree in trees(book)}
    for number, cell in code_cells(book):
        data = [output.get("data", {}) for output in cell.outputs]
        pictures = [place for place, found in enumerate(data) if "image/png" in found]
        if len(pictures) < wanted.get(number, 0):
            problems.append(
                f"cell {number} calls show() but holds no PNG for it; run it again"
            )
        for place in pictures:
            alt = cell.outputs[place].metadata.get("image/png", {}).get("alt", "")
            below = (
                data[place + 1].get("text/markdown", "") if place + 1 < len(data) else ""
            )
            if not isinstance(alt, str) or len(alt.strip()) < ALT_LENGTH:
                problems.append(
                    f"cell {number} holds a PNG without a caption of {ALT_LENGTH} "
                    'characters; show it with plotting.show(fig, caption="...")'
                )
            elif below != f"*{alt}*":
                problems.append(f"cell {number} holds a PNG without its caption below it")
    return problems


# What a cell that only draws does not call: it computes nothing and says nothing else.
NO_DRAWING = {
    "claim", "print", "show_table", "show_source", "fit", "evaluate", "run_trials", "launch",
}  # fmt: skip


def only_draws(tree: ast.Module) -> bool:
    """Tell whether a cell shows a figure and neither trains, prints, claims nor imports."""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    if not show_calls(tree) or any(isinstance(node, kinds) for node in tree.body):
        return False
    return not NO_DRAWING & {called(node) for node in ast.walk(tree)}


def drawing_is_folded(path: Path, book) -> list[str]:
    """A cell that only draws is folded, and no other; in a lesson every figure has such a cell."""
    problems = []
    parsed = dict(trees(book))
    for number, cell in code_cells(book):
        tagged = "hide-input" in cell.metadata.get("tags", ())
        hidden = bool(cell.metadata.get("jupyter", {}).get("source_hidden"))
        drawing = number in parsed and only_draws(parsed[number])
        if drawing and not (tagged and hidden):
            problems.append(
                f"cell {number} only draws; tag it hide-input, with jupyter.source_hidden"
            )
        if (tagged or hidden) and not drawing:
            problems.append(f"cell {number} is folded but does more than draw")
        if not guide(path) and not drawing and number in parsed:
            if show_calls(parsed[number]):
                problems.append(
                    f"cell {number} shows a figure and does something else: make two cells"
                )
    return problems


def tags(path: Path, book) -> list[str]:
    """Only tags in TAGS, few ignored outputs, no comment form, errors only where tagged."""
    problems, ignored, total = [], 0, 0
    for number, cell in enumerate(book.cells, 1):
        own = set(cell.metadata.get("tags", ()))
        if own - TAGS:
            problems.append(
                f"cell {number} has the tags {sorted(own - TAGS)}; remove them"
            )
        if cell.cell_type != "code":
            continue
        total += 1
        ignored += "nbval-ignore-output" in own
        if re.search(r"#\s*(NBVAL_\w+|PYTEST_VALIDATE_\w+)", cell.source):
            problems.append(f"cell {number} steers nbval by a comment; use a tag")
        failed = any(output.output_type == "error" for output in cell.outputs)
        if failed != ("raises-exception" in own):
            problems.append(
                f"cell {number}: raises-exception must be set exactly where it raises"
            )
    if ignored * IGNORE_SHARE > total:
        problems.append(
            f"{ignored} of {total} code cells are tagged nbval-ignore-output, "
            f"at most one in {IGNORE_SHARE}"
        )
    return problems


# --- code -----------------------------------------------------------------------------------------


def plain_python(path: Path, book) -> list[str]:
    """Cells are plain Python: no magics, no shell lines."""
    problems = []
    for number, cell in code_cells(book):
        try:
            tree = tree_of(cell.source)
        except SyntaxError as error:
            problems.append(
                f"cell {number} is not plain Python ({error.msg}): no % or ! lines"
            )
            continue
        if any(getattr(node, "id", "") == "get_ipython" for node in ast.walk(tree)):
            problems.append(f"cell {number} uses get_ipython; use plain Python")
    return problems


def nothing_swallowed(path: Path, book) -> list[str]:
    """No try/except or suppress that would hide a failing assert or claim."""
    problems = []
    for number, tree in trees(book):
        for node in ast.walk(tree):
            caught: list[ast.AST] = []
            if isinstance(node, ast.ExceptHandler):
                if node.type is None:
                    problems.append(f"cell {number} has a bare except; name the error")
                    continue
                caught = [node.type]
            elif called(node) == "suppress":
                caught = list(node.args)
            names = {
                getattr(part, "id", None) or getattr(part, "attr", "")
                for expression in caught
                for part in ast.walk(expression)
            }
            if names & SWALLOWERS:
                found = ", ".join(sorted(names & SWALLOWERS))
                problems.append(
                    f"cell {number} swallows {found}; name the one error expected"
                )
    return problems


def literal(node: ast.AST):
    """Return the number, bool or tuple of numbers written at ``node``, or None."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return None
    parts = value if isinstance(value, tuple) else (value,)
    return (
        value
        if parts and all(isinstance(part, (bool, int, float)) for part in parts)
        else None
    )


def claims(path: Path, book) -> list[str]:
    """Every claim(...) is called where it stands, with literal bounds and a computed
    value.
    """
    problems = []
    tagged = {
        n
        for n, cell in code_cells(book)
        if "raises-exception" in cell.metadata.get("tags", ())
    }
    for number, tree in trees(book):
        calls = [node for node in ast.walk(tree) if called(node) == "claim"]
        used = {id(node.func) for node in calls}
        for node in ast.walk(tree):
            if getattr(node, "id", "") == "claim" and id(node) not in used:
                problems.append(
                    f"cell {number} passes claim around; call it where it stands"
                )
            if isinstance(node, ast.alias) and node.name == "claim" and node.asname:
                problems.append(f"cell {number} renames claim; import it as claim")
        if calls and number in tagged:
            problems.append(
                f"cell {number} is tagged raises-exception, which would hide its claim"
            )
        for node in calls:
            where = f"cell {number}, line {node.lineno}: claim"
            given = {word.arg: word.value for word in node.keywords}
            if not BOUNDS & given.keys():
                problems.append(f"{where} has no bound; give one of {sorted(BOUNDS)}")
            for name in sorted((BOUNDS | {"tol"}) & given.keys()):
                if literal(given[name]) is None:
                    problems.append(
                        f"{where}: {name} must be a literal number or tuple of numbers"
                    )
            value = node.args[1] if len(node.args) > 1 else given.get("value")
            if value is not None and literal(value) is not None:
                problems.append(f"{where} is about a literal; give a computed value")
    return problems


def rounding(text: str) -> float:
    """Return how far a value printed with three digits may be from the measured one."""
    value = abs(float(text.replace(",", "")))
    exponent = math.floor(math.log10(value)) if value else 0
    return 0.5 * 10.0 ** min(exponent - 2, 0) * (1 + 1e-9)


def keeps(value: str, bound: str) -> bool:
    """Tell whether a printed value keeps a printed bound, rounding allowed for."""
    numbers = [
        float(text) for text in re.findall(r"-?(?:\d[\d.]*(?:e[-+]?\d+)?|inf)", bound)
    ]
    low, high = -math.inf, math.inf
    if bound.startswith("at least"):
        low = numbers[0]
    elif bound.startswith("at most"):
        high = numbers[0]
    elif bound.startswith("from"):
        low, high = numbers
    else:
        spread = numbers[1] if len(numbers) > 1 else 0.0
        low, high = numbers[0] - spread, numbers[0] + spread
    margin = rounding(value)
    return low - margin <= float(value.replace(",", "")) <= high + margin


def stored_values(path: Path, book) -> list[str]:
    """Each stored claim has a value that keeps its bound, and none failed."""
    problems = []
    for number, cell in code_cells(book):
        text = "\n".join(map(output_text, cell.outputs))
        found = list(LINE.finditer(text))
        if len(found) != len(re.findall(r"^HOLDS", text, re.MULTILINE)):
            problems.append(f"cell {number} holds a claim without value and bound")
        if re.search(r"^DOES NOT HOLD", text, re.MULTILINE) and not guide(path):
            problems.append(f"cell {number} holds a claim that failed")
        problems += [
            f"cell {number}: {line['value']} does not keep the bound ({line['bound']})"
            for line in found
            if not keeps(line["value"], line["bound"])
        ]
    return problems


def imports(path: Path, book) -> list[str]:
    """From dlcourse only the chapter's own technique and the lab; no star imports."""
    allowed = {technique(path), "exercises", "lab"} | ALSO_IMPORTS.get(
        technique(path), set()
    )
    problems = []
    for number, tree in trees(book):
        modules = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                if node.level:
                    problems.append(f"cell {number} has a relative import")
                if any(alias.name == "*" for alias in node.names):
                    problems.append(
                        f"cell {number} has a star import; name what it needs"
                    )
                modules += [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            top, *rest = module.split(".")
            if top == "dlcourse" and (not rest or rest[0] not in allowed):
                problems.append(
                    f"cell {number} imports {module}; allowed are {sorted(allowed)}"
                )
    return problems


def machine_paths(path: Path, book) -> list[str]:
    """No absolute path of one machine in a source or an output."""
    problems = []
    for number, cell in enumerate(book.cells, 1):
        texts = [cell.source, *map(output_text, cell.get("outputs", ()))]
        found = [match.group() for text in texts for match in MACHINE_PATH.finditer(text)]
        problems += [
            f"cell {number} holds a path of one machine ({text}...)" for text in found
        ]
    return problems


# --- anatomy --------------------------------------------------------------------------------------


def title(path: Path, book) -> list[str]:
    """The first cell holds the one H1, with the file's number and the Chinese term."""
    number = int(path.stem[:2])
    found = headings(book, 1)
    wanted = re.compile(rf"{number} \S.* \([^()]*[\u4e00-\u9fff][^()]*\)")
    if [cell for cell, _ in found] != [1] or not wanted.fullmatch(found[0][1]):
        return [
            f'expected one H1, in cell 1, like "# {number} Name (中文)"; found {found}'
        ]
    return []


@for_chapters
def anatomy(path: Path, book) -> list[str]:
    """The H2 headings are SECTIONS, in this order, with DEEPER after At scale or not."""
    found = [text for _, text in headings(book, 2)]
    plain = list(found)
    if DEEPER in found and found[found.index(DEEPER) - 1] == "At scale":
        plain.remove(DEEPER)
    return [] if plain == SECTIONS else [f"H2 headings are {found}, expected {SECTIONS}"]


def card_lines(book) -> dict[str, str]:
    """Return the text after each label of the card in the first two cells."""
    text = "\n".join(
        cell.source for cell in book.cells[:2] if cell.cell_type == "markdown"
    )
    matches = re.finditer(r"^- \*\*([^*]+?):?\*\*(.*)$", text, re.MULTILINE)
    return {match[1]: match[2] for match in matches}


def card(path: Path, book) -> list[str]:
    """The card has its five lines, and its seconds are the measured ones within a factor
    of 2.
    """
    lines = card_lines(book)
    problems = [f'the card lacks "- **{name}**"' for name in CARD if name not in lines]
    if "Seconds to run" not in lines:
        return problems
    stated = re.search(r"\d+", lines["Seconds to run"])
    record = path.parent / "seconds.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    measured = known.get(path.stem)
    if stated is None or measured is None:
        how = f"run tools/chapter.py {path.stem[:2]}"
        return [*problems, f"seconds on the card or in {record.name} are missing; {how}"]
    if not measured / 2 <= int(stated[0]) <= measured * 2:
        problems.append(
            f"the card says {stated[0]} seconds to run, measured were {measured}"
        )
    return problems


def stubs(book, title: str) -> set[str]:
    """Return the names `your_...` that the code cells of a section set."""
    cells = [cell for cell in section(book, title) if cell.cell_type == "code"]
    pattern = re.compile(r"^(your_\w+)\s*(?::[^=]*)?=(?!=)", re.MULTILINE)
    return {name for cell in cells for name in pattern.findall(cell.source)}


@for_chapters
def exercises(path: Path, book) -> list[str]:
    """Exercises has two or more stubs ``your_... = ``; a lesson has one in Your turn, too."""
    last = len(stubs(book, "Exercises"))
    problems = [] if last >= 2 else [f"{last} stubs your_... = in Exercises, want 2"]
    if not guide(path) and not stubs(book, "Your turn"):
        problems.append("no stub your_... = in Your turn")
    return problems


CHOOSES = {"run_arms", "best_lr", "best_rate"}
BRACKETS = {"check_rates", "inside", "best_of_rates"}


@for_chapters
def grids_bracket(path: Path, book) -> list[str]:
    """Where a best learning rate is chosen, the lesson checks that it is inside its grid."""
    names = {called(node) for _, tree in trees(book) for node in ast.walk(tree)}
    if names & CHOOSES and not names & BRACKETS:
        chosen = ", ".join(sorted(names & CHOOSES))
        return [f"calls {chosen} but none of {sorted(BRACKETS)}, which stop at an edge"]
    return []


@for_chapters
def recipe(path: Path, book) -> list[str]:
    """In your own project names the chapter's recipe, and a cell there runs it."""
    name = f"recipes/{path.stem}.py"
    cells = section(book, "In your own project")
    named = any(name in cell.source for cell in cells)
    return [] if named else [f"In your own project does not name {name}"]


@for_chapters
def sources(path: Path, book) -> list[str]:
    """The last cell is Markdown, in the section In one minute, and has a Sources
    paragraph.
    """
    last = section(book, SECTIONS[-1])[-1:]
    good = last == book.cells[-1:] and last and last[0].cell_type == "markdown"
    if not good or not re.search(r"^\*\*Sources", last[0].source, re.MULTILINE):
        return [
            f'the notebook must end, in "{SECTIONS[-1]}", with a paragraph "**Sources.** ..."'
        ]
    return []


# --- numbers in prose -----------------------------------------------------------------------------

PROSE_NUMBER = re.compile(
    r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
)
PERCENT = re.compile(r"\s?(?:%|percent\b|per cent\b|(?:percentage )?points?\b)")
CELL_NUMBER = re.compile(r"(?<![A-Za-z_\d])(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
THOUSANDS = re.compile(r"(?<!\d)\d{1,3}(?:,\d{3})+(?:\.\d+)?")
NOT_PROSE = [
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"^#{1,6}\s.*$", re.MULTILINE),
    re.compile(r"\$\$.*?\$\$", re.DOTALL),
    re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL),
    re.compile(r"(?<!\\)\$(?:[^$\n]|\n(?!\n))+\$"),
    re.compile(r"!?\[(?:[^\[\]])*\]\([^)]*\)"),
    re.compile(r"<?https?://\S+"),
    re.compile(r"<[^<>\n]*>"),
    re.compile(r"arXiv[: ]\d+\.\d+"),
    re.compile(
        r"\b[Cc]hapters?\s+\d+(?:(?:,?\s+(?:and|to|or)\s+|,\s*|\s*[-\u2013]\s*)\d+)*"
    ),
    re.compile(r"^\s*\d+[.)]\s", re.MULTILINE),
    re.compile(r"\d+(?:\.\d+){2,}"),
]


def key(value: float) -> float:
    """Round to 12 digits, so that numbers compare by value."""
    return float(f"{value:.12g}")


def cell_numbers(book) -> set[float]:
    """Return each number in the code (comments left out) and the text outputs."""
    texts = []
    for _, cell in code_cells(book):
        try:
            tokens = list(tokenize.generate_tokens(io.StringIO(cell.source).readline))
            texts += [token.string for token in tokens if token.type != tokenize.COMMENT]
        except (tokenize.TokenError, SyntaxError):
            texts.append(cell.source)
        texts += map(output_text, cell.outputs)
    found = set()
    for text in texts:
        for match in (*CELL_NUMBER.finditer(text), *THOUSANDS.finditer(text)):
            found.add(key(float(match.group().replace("_", "").replace(",", ""))))
    return found


def prose(book) -> Iterator[tuple[int, str]]:
    """Yield (cell number, text) of each Markdown cell, without all that is not prose."""
    for number, cell in enumerate(book.cells, 1):
        if cell.cell_type != "markdown":
            continue
        text = without_fences(cell.source)
        if number <= 2:
            for name in CARD:
                text = re.sub(
                    rf"^- \*\*{name}.*(?:\n[ \t]+.*)*$", "", text, flags=re.MULTILINE
                )
        text, *rest = re.split(r"^\*\*Sources", text, maxsplit=1, flags=re.MULTILINE)
        for pattern in NOT_PROSE:
            text = pattern.sub(" ", text)
        yield number, text
        if rest:
            return


def prose_numbers(path: Path, book) -> list[str]:
    """Every number in prose stands in the code or the text output of a cell of this
    notebook.
    """
    known, problems = cell_numbers(book), []
    for number, text in prose(book):
        for match in PROSE_NUMBER.finditer(text):
            before, after = text[: match.start()], text[match.end() :]
            factor = re.match(r"x(?!\w)", after)  # 2.5x is a number, 32x32 is a name
            if re.search(r"[A-Za-z]-$", before) or re.match(r"-bit\b", after):
                continue  # CIFAR-10, 16-bit
            if re.match(r"[^\W\d]", after) and not factor:
                continue
            value = float(match.group().replace(",", ""))
            percent = PERCENT.match(after)
            whole = match.group().isdigit()
            if (
                whole
                and not percent
                and not factor
                and (value <= 12 or 1900 <= value <= 2100)
            ):
                continue
            if key(value) in known or (percent and key(value / 100) in known):
                continue
            said = match.group() + (percent.group() if percent else "")
            problems.append(
                f"cell {number} says {said}, which no cell computes or sets "
                f"(...{text[max(0, match.start() - 30) : match.end() + 15]!r}...)"
            )
    return problems


RULES = (
    as_jupyterlab_saves,
    executed,
    output_size,
    figures,
    drawing_is_folded,
    tags,
    plain_python,
    nothing_swallowed,
    claims,
    stored_values,
    imports,
    machine_paths,
    title,
    anatomy,
    card,
    exercises,
    grids_bracket,
    recipe,
    sources,
    prose_numbers,
)
