"""The command `dlcourse-train`: settings from the command line, then one run or a study.

Everything that can be checked is checked before work begins. What goes wrong is said in
one line that says what to do; set DLCOURSE_DEBUG=1 to see where it arose.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
import warnings
from pathlib import Path

from dlcourse.capstone.command import fail, print_any_letter
from dlcourse.capstone.options import read
from dlcourse.capstone.settings import Problem, Recipe

PROGRAM = "dlcourse-train"


def free_folder(recipe: Recipe) -> Path:
    """Return runs/DATA, or the first of runs/DATA-2, -3, ... that does not exist.

    DATA is the name of the images, and for a folder the name of that folder.
    """
    name = Path(recipe.root or "").name if recipe.data == "folder" else ""
    base, number = Path("runs") / (name or recipe.data), 1
    folder = base
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, 1 (it failed), 2 (it could not start), 130 (Ctrl-C)."""
    options, folder = None, Path(os.devnull)
    print_any_letter()
    try:
        options, recipe = read(sys.argv[1:] if arguments is None else arguments)
        folder = Path(options.out) if options.out else free_folder(recipe)
        return carry_out(options, recipe, folder)
    except Problem as problem:
        said, code = str(problem), 2
    except KeyboardInterrupt:
        said, code = "stopped before the run began", 130
        if begun(folder):
            said = f"stopped; go on with: {PROGRAM} {again(options, folder)}"
    except ImportError as error:
        said, code = f"{error}: run python -m dlcourse.doctor", 2
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if os.environ.get("DLCOURSE_DEBUG"):
            raise
        said, goes_on = explain(error)
        code = 1
        if goes_on and begun(folder):
            said += f", then go on with {again(options, folder)}"
    return fail(PROGRAM, said, code)


def carry_out(options, recipe: Recipe, folder: Path) -> int:
    """Do what the options ask for; return the exit code."""
    from dlcourse.capstone import ablation, compression, studies
    from dlcourse.capstone.cache import forget
    from dlcourse.capstone.data import load_data
    from dlcourse.capstone.folder import check_writable, refuse_used
    from dlcourse.capstone.plan import plan
    from dlcourse.capstone.running import check_machine, run

    studies.check(options)
    if recipe.pretrained and options.ablate:
        raise Problem("--ablate goes without --pretrained, whose network is given")
    check_machine(recipe, options.log)
    first = int(os.environ.get("RANK", 0)) == 0
    if first and not options.dry_run:  # before images are read, which may take a while
        begins = "untuned.toml" if options.tune else "recipe.toml"
        refuse_used(folder, options.resume, begins)
        check_writable(folder)
    said = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"{PROGRAM}: {message}\n"
    try:
        data = load_data(recipe, None if options.dry_run else folder)
    finally:
        warnings.formatwarning = said
    if first:
        print("\n".join(plan(recipe, data, folder, options)), flush=True)
    if options.dry_run:
        return 0
    if options.ablate:
        print(ablation.ablate(recipe, folder, options.seeds, options.resume))
        table = folder / "ablation.md"
        print(f"the table is in {table}, a picture in ablation.png beside it")
        return 0
    if options.tune:
        recipe = studies.tune(recipe, folder, options.tune, options.resume, data)
    elif (folder / "untuned.toml").exists() and not (folder / "recipe.toml").exists():
        raise Problem(
            f"{folder} holds a search that has not ended: add --tune N --resume"
        )
    numbers = run(recipe, folder, options, data)
    if first:
        print(result(numbers, data, folder))
        if options.compress:
            print(compression.compress(folder, options.compress, data), end="")
            print(f"the smaller models are in {folder / 'compressed'}")
        forget(folder)
    return 0


def result(numbers: dict, data, folder: Path) -> str:
    """Return what came out, what went wrong, and how to ask the model about new images."""
    from dlcourse.capstone.report import most_confused, read_confusion

    lines = [
        "test accuracy {accuracy:.4f} [{low:.4f}, {high:.4f}], nll {nll:.4f}, calibration "
        "error {ece:.4f}, on {count} images; see ".format_map(numbers)
        + str(folder / "MODEL_CARD.md")
    ]
    if data.name == "folder":  # its classes may be uneven
        lines.append(
            "balanced accuracy {balanced:.4f}; naming the most frequent class always: "
            "{majority:.4f}".format_map(numbers)
        )
    counts, classes = read_confusion(folder / "confusion.csv")
    mistakes = f"wrong: {int(counts.sum() - counts.trace())}"
    often = "; ".join(most_confused(counts, classes, longest=3))
    if often:
        mistakes += f", most often {often}; see hardest.png there"
    ask = f"python -m dlcourse.predict {shlex.quote(str(folder))} IMAGE ..."
    return "\n".join([*lines, mistakes, f"new images: {ask}"])


def begun(folder: Path) -> bool:
    """Tell whether the folder holds a run, or a search that comes before one."""
    return any((folder / name).exists() for name in ("recipe.toml", "untuned.toml"))


def again(options, folder: Path) -> str:
    """Return the options that go on with what was begun."""
    words = ["--resume", "--out", f'"{folder}"' if " " in str(folder) else str(folder)]
    words += ["--tune", str(options.tune)] if options.tune else []
    words += ["--ablate", "--seeds", str(options.seeds)] if options.ablate else []
    words += ["--compress", *options.compress] if options.compress else []
    words += ["--log", *options.log] if options.log else []
    return " ".join(words)


def explain(error: BaseException) -> tuple[str, bool]:
    """Return one line on what went wrong, and whether the run can go on after it."""
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or f"[Errno {errno.ENOSPC}]" in text:
        return "no space left on the disk: free some", True
    if isinstance(error, PermissionError):
        return f"{error.filename or 'a file'} may not be written: mend its rights", True
    if re.search("EADDRINUSE|address already in use", text, re.IGNORECASE):
        said = "a port is in use: end the other program or set MASTER_PORT to another"
        return said, True
    if re.search("out of memory|allocate memory", text) or isinstance(error, MemoryError):
        smaller = "--accumulation-steps 2, a smaller --batch-size or --width"
        return f"out of memory: start anew with {smaller}", False
    if type(error).__name__ == "LaunchError":
        # the last error that a process met, or how it ended
        met = re.findall(
            r"^[\w.]*?(\w*(?:Error|Problem|Exception): .+)", text, re.MULTILINE
        )
        return (met[-1], False) if met else (text.strip().splitlines()[0], True)
    return " ".join(text.split()) or type(error).__name__, False
