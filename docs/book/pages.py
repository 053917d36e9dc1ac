"""Pages and parts of pages that are made of the course's files at build time."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from book import settings
from book.notebooks import BookError, Chapter, seconds
from book.verdicts import verdicts
from dlcourse.workshop import plan
from dlcourse.workshop.overview import COLUMNS

ROOT = settings.ROOT
HERE = Path(__file__).resolve().parents[1]
KINDS = {"right": "right", "loose": "loose", "wrong": "wrong", "mixed": "in parts"}


def link(chapter: Chapter, folder: str = "chapters/") -> str:
    """Return a link to a chapter, its number and title."""
    return f"[{chapter.number} {chapter.title}]({folder}{chapter.stem}.ipynb)"


def recipe(chapter: Chapter) -> Path | None:
    """Return the chapter's recipe, or None where it has none yet."""
    path = ROOT / "recipes" / f"{chapter.stem}.py"
    return path if path.exists() else None


# --- the map ----------------------------------------------------------------------------


def arrows(folder: Path) -> list[tuple[int, int]]:
    """Return (chapter, one that it helps) for the chapters of the map, from their cards."""
    there = {number for numbers in COLUMNS.values() for number in numbers}
    return [
        (helper, chapter.number)
        for chapter in plan.read_chapters(folder)
        for helper in chapter.better_after
        if chapter.number in there
    ]


def chapter_map(chapters: list[Chapter]) -> str:
    """Return the map of the chapters as lists of links, one list a column."""
    helps = arrows(chapters[0].path.parent)
    by_number = {chapter.number: chapter for chapter in chapters}
    lines = ["::::::{div} chapter-map", ""]
    for name, numbers in COLUMNS.items():
        lines += [":::::{div} map-column", f"**{name}**", ""]
        for number in numbers:
            later = [str(end) for start, end in helps if start == number]
            helped = f" [helps {', '.join(later)}]{{.helps}}" if later else ""
            lines.append(f"- {link(by_number[number])}{helped}")
        lines += [":::::", ""]
    lines.append("::::::")
    return "\n".join(lines)


# --- what takes how long ----------------------------------------------------------------


def hours(minutes: int) -> str:
    """Return minutes as hours, rounded.

    >>> hours(95)
    '2 hours'
    """
    return f"{round(minutes / 60)} hours"


def total_time(chapters: list[Chapter]) -> str:
    """Return a sentence with the time that the whole course takes."""
    reading = sum(chapter.minutes[0] for chapter in chapters)
    practice = sum(chapter.minutes[1] for chapter in chapters)
    running = sum(seconds().values())
    return (
        f"All {len(chapters)} notebooks take about {hours(reading)} to read and run, and "
        f"{hours(practice)} more for the exercises; one chapter takes an evening. Your "
        f"computer needs {round(running / 60)} minutes of that in all, on one CPU core."
    )


def shown(root: Path = ROOT) -> dict[int, str]:
    """Return what each chapter shows, from the README's table."""
    rows = re.findall(
        r"^\| (\d+) \| \[[^\]]*\]\(chapters/[^)]*\) \| (.*?) \|$",
        (root / "README.md").read_text("utf-8"),
        re.MULTILINE,
    )
    return {int(number): text for number, text in rows}


def time_of(reading: int, practice: int, running: int) -> str:
    """Return minutes and seconds as they stand in the table.

    >>> time_of(40, 30, 25)
    '40 + 30 minutes, 25 seconds'
    """
    return f"{reading} + {practice} minutes, {running} seconds"


def chapter_list(chapters: list[Chapter]) -> str:
    """Return the page with every chapter, what it shows, and its time."""
    measured, says = seconds(), shown()
    lines = [
        "# The chapters",
        "",
        total_time(chapters),
        "",
        "Minutes are those of the chapters' cards: to read and run, and for the exercises. "
        "Seconds are what your computer is busy for; they were measured on one core of the "
        "machine that stored the outputs (`chapters/seconds.json`).",
        "",
        "| chapter | what it shows | time |",
        "| --- | --- | --- |",
    ]
    for chapter in chapters:
        reading, practice = chapter.minutes
        if chapter.number not in says or chapter.stem not in measured:
            raise BookError(f"{chapter.stem}: no row in README.md or seconds.json")
        time = time_of(reading, practice, measured[chapter.stem])
        lines.append(f"| {link(chapter, '')} | {says[chapter.number]} | {time} |")
    reading, practice = (
        sum(chapter.minutes[part] for chapter in chapters) for part in (0, 1)
    )
    time = time_of(reading, practice, sum(measured.values()))
    lines.append(f"| **all** | | {time} |")
    return "\n".join([*lines, ""])


# --- the article ------------------------------------------------------------------------


def verdict_table(chapters: list[Chapter]) -> str:
    """Return the page with every statement of the article, verdict and chapter."""
    found = [
        item for chapter in chapters if chapter.is_lesson for item in verdicts(chapter)
    ]
    counts = [
        f"{sum(item.kind == kind for item in found)} {word}"
        for kind, word in KINDS.items()
    ]
    lines = [
        "# What the article says",
        "",
        "The course follows a short survey article on training technique, in Chinese, "
        "and tests each of its statements. *Right* holds as it stands; *loose* is true in "
        "part, or only under a condition that it does not name; *wrong* is contradicted "
        "by the chapter's experiment. The chapter has the correct statement, and the cell "
        "that shows it.",
        "",
        f"{len(found)} statements: {', '.join(counts)}.",
        "",
        "| the article says | verdict | chapter |",
        "| --- | --- | --- |",
    ]
    for item in found:
        page = f"chapters/{item.chapter.stem}.ipynb#what-the-article-says"
        where = f"[{item.chapter.number} {item.chapter.title}]({page})"
        verdict = f"[{item.verdict.rstrip('.,')}]{{.verdict .{item.kind}}}"
        lines.append(f"| {table_cell(item.statement)} | {verdict} | {where} |")
    return "\n".join([*lines, ""])


def table_cell(text: str) -> str:
    """Return Markdown that may stand in a cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", text.replace("\n", " "))


# --- symptoms ---------------------------------------------------------------------------


def symptoms(chapters: list[Chapter], file: Path = HERE / "symptoms.toml") -> str:
    """Return the page that goes from a symptom to the chapter and the recipe."""
    by_number = {chapter.number: chapter for chapter in chapters}
    content = tomllib.loads(file.read_text("utf-8"))
    lines = ["# Which technique do I need?", "", content["opening"].strip(), ""]
    for group in content["group"]:
        seen = [f"[{row['see']}](#{anchor(row['see'])})" for row in group["symptom"]]
        lines += [f"- **{group['title']}:** {', '.join(seen)}"]
    lines.append("")
    for group in content["group"]:
        lines += [f"## {group['title']}", ""]
        for row in group["symptom"]:
            lines += [f"### {row['see']}", "", row["first"].strip(), ""]
            lines += [_way(row, by_number), ""]
    return "\n".join(lines)


def anchor(title: str) -> str:
    """Return the anchor that Sphinx gives to a heading.

    >>> anchor("The GPU is idle, training is slow")
    'the-gpu-is-idle-training-is-slow'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _way(row: dict, by_number: dict[int, Chapter]) -> str:
    """Return where a symptom leads: chapters, and the recipes that exist."""
    way = []
    for number in row["chapters"]:
        chapter = by_number[number]
        script = recipe(chapter)
        take = f" ([recipe](recipes/{chapter.stem}.md))" if script else ""
        way.append(f"{link(chapter)}{take}")
    return "**Go to:** " + ", ".join(way)


# --- recipes ----------------------------------------------------------------------------


def recipe_pages(chapters: list[Chapter]) -> dict[str, str]:
    """Return a page for each recipe, and the page that lists them."""
    with_recipe = [chapter for chapter in chapters if recipe(chapter)]
    lacking = [
        chapter.stem for chapter in chapters if chapter.is_lesson and not recipe(chapter)
    ]
    if lacking:
        raise BookError(f"recipes/{lacking[0]}.py is not there")
    made = {f"recipes/{chapter.stem}.md": one_recipe(chapter) for chapter in with_recipe}
    made["recipes/index.md"] = recipe_list(with_recipe)
    return made


def summary(source: str) -> str:
    """Return the first paragraph of a script's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def one_recipe(chapter: Chapter) -> str:
    """Return the page of one recipe: what it is, how to start it, and the script."""
    path = recipe(chapter)
    source = path.read_text("utf-8")
    download = (
        f'<p><a class="door" href="../scripts/{path.name}" download="">Download</a></p>'
    )
    return "\n".join(
        [
            f"# Recipe {chapter.number}: {chapter.title.lower()}",
            "",
            summary(source),
            "",
            f"It belongs to {link(chapter, '../chapters/')}, which explains its lines.",
            "",
            ":::{div} not-in-epub",
            f"```{{raw}} html\n{download}\n```",
            ":::",
            "",
            f"```{{code-block}} bash\n{launch_lines(path.name)}\n```",
            "",
            f"~~~~~{{code-block}} python\n{source.rstrip()}\n~~~~~",
            "",
        ]
    )


def launch_lines(name: str) -> str:
    """Return the commands that start a recipe on one device and on several."""
    return f"""# a CPU, or one GPU
python {name}
# four GPUs of one machine
torchrun --standalone --nproc_per_node 4 {name}
# two machines: once on each, with --node_rank 0 and 1, HOST being the first
torchrun --nnodes 2 --node_rank 0 --nproc_per_node 4 --master_addr HOST {name}
# two processes on a CPU
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 {name}"""


def recipe_list(chapters: list[Chapter]) -> str:
    """Return the page that lists the recipes."""
    lines = [
        "# Recipes to take home",
        "",
        "One script a technique: a complete training run in torch and Accelerate alone, "
        "its constants on top; the last is a whole run on a folder of pictures of yours. "
        "It runs alike on a CPU, one GPU, several, several machines.",
        "",
    ]
    for chapter in chapters:
        what = summary(recipe(chapter).read_text("utf-8"))
        lines.append(f"- [{chapter.number} {chapter.title}]({chapter.stem}.md): {what}")
    tree = [chapter.stem for chapter in chapters]
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *tree, "```", ""])


# --- teaching ---------------------------------------------------------------------------


def plans(root: Path = ROOT) -> str:
    """Return the timed plans of half a day, one day and two, as `dlcourse-handout` makes
    them of the cards.
    """
    chapters = plan.read_chapters(root / "chapters")
    lengths = [
        ("Half a day", 1, plan.HALF_DAY),
        ("One day", 1, plan.DAY),
        ("Two days", 2, plan.DAY),
    ]
    lines = []
    for title, days, length in lengths:
        text = "\n".join(
            plan.plan_of(title, chapters, 9 * 60, days, length, chosen=False)
        )
        lines.append(re.sub(r"^(#+) ", r"#\1 ", text, flags=re.MULTILINE))
    return "\n".join(lines).replace("| minutes | |", "| minutes | what |")
