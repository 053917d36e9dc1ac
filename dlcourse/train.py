"""Train on your own images with all that the course teaches: `python -m dlcourse.train
--help`.

The command reads the settings, checks everything that can be checked before work begins,
and hands over to `dlcourse.recipe`. What goes wrong is said in one line that says what to
do; set DLCOURSE_DEBUG=1 to see where it arose.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import sys
import warnings
from pathlib import Path

YEAR = 366 * 24 * 3600.0  # seconds: a launch needs a limit, and training has none
SCREEN = 100  # columns of the help


class OneScreen(argparse.HelpFormatter):
    """Help in two columns, with short names for options that take several words."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=SCREEN)

    def _format_args(self, action, default_metavar) -> str:
        if action.nargs == "+":
            return f"{action.metavar} ..."
        return super()._format_args(action, default_metavar)


class OneLine(argparse.ArgumentParser):
    """A parser whose errors are one line, with the option that was probably meant."""

    def error(self, message: str):
        """Print what is wrong and what to do; exit with 2."""
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        near = (
            difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
            if unknown
            else []
        )
        advice = f"did you mean {near[0]}? " if near else ""
        self.exit(2, f"{self.prog}: {message}; {advice}--help lists all options\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser: the command's own options, and one for each setting of a recipe."""
    from dlcourse.recipe import FIELDS, kind

    command = OneLine(
        prog="dlcourse-train",
        usage="dlcourse-train [--data digits|mnist|fashion_mnist|cifar10|folder PATH] [options]",
        description="Train an image classifier. Without options: the digits, in seconds.",
        formatter_class=OneScreen,
        allow_abbrev=False,
    )
    run = command.add_argument_group("run")
    run.add_argument(
        "--config", metavar="FILE", help="read settings from TOML; options go first"
    )
    run.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the run (runs/DATA, then runs/DATA-2 ...)",
    )
    run.add_argument("--resume", action="store_true", help="go on with the run in --out")
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    run.add_argument(
        "--log",
        nargs="+",
        metavar="TRACKER",
        default=[],
        help="write to csv, tensorboard, ...",
    )
    run.add_argument(
        "--tune", type=int, metavar="N", help="search N settings first, by validation"
    )
    run.add_argument(
        "--compress",
        nargs="+",
        metavar="HOW",
        help="then make it smaller: prune, quantize, distil",
    )
    run.add_argument(
        "--ablate", action="store_true", help="what each technique contributes"
    )
    run.add_argument(
        "--seeds", type=int, metavar="N", help="seeds of each arm of --ablate (5)"
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, spec in FIELDS().items():
        about = spec.metadata
        group = groups.setdefault(about["group"], None) or command.add_argument_group(
            about["group"]
        )
        groups[about["group"]] = group
        flag = f"--{name.replace('_', '-')}"
        more: dict = {"default": argparse.SUPPRESS, "help": about["help"]}
        if kind(spec) is bool:
            group.add_argument(flag, action="store_true", **more)
            continue
        if about["choices"]:
            more["help"] += f": {', '.join(about['choices'])}"
        if spec.default is not None:
            more["help"] += f" ({spec.default})"
        if name == "data":
            group.add_argument(flag, nargs="+", metavar="DATA", **more)
            continue
        word = {str: "NAME", int: "N", float: "X"}[kind(spec)]
        group.add_argument(flag, type=kind(spec), metavar=word, **more)
    return command


def read(arguments: list[str]):
    """Return (the command's own options, the recipe), from the command line and --config.

    Raises Problem for settings that cannot be; argparse ends the program for unknown
    options.
    """
    from dlcourse.recipe import FIELDS, NAMES, Problem, Recipe

    arguments = [
        re.sub(r"^(--\w+)", lambda m: m[1].replace("_", "-"), a) for a in arguments
    ]
    options = parser().parse_args(arguments)
    if options.seeds is not None and not options.ablate:
        raise Problem("--seeds goes with --ablate; --seed chooses the seed of one run")
    options.seeds = 5 if options.seeds is None else options.seeds
    if options.resume and options.out is None:
        raise Problem("--resume needs --out, the folder of the run to go on with")
    given = {name: getattr(options, name) for name in FIELDS() if hasattr(options, name)}
    if "data" in given:
        name, *path = given.pop("data")
        if name not in NAMES and Path(name).is_dir():
            raise Problem(
                f"--data {name}: write --data folder {name}, with one folder a class"
            )
        if len(path) > 1 or (path and name != "folder"):
            raise Problem(
                f"--data {name} {' '.join(path)}: only folder takes one path after it"
            )
        given |= {"data": name, **({"root": path[0]} if path else {})}
    # torchrun or accelerate launch: the recipe stores what is true
    if "WORLD_SIZE" in os.environ:
        world = int(os.environ["WORLD_SIZE"])
        if given.setdefault("processes", world) != world:
            raise Problem(
                f"--processes {given['processes']}, but {world} were launched: leave it out"
            )
    values: dict = {}
    stored = options.config
    if stored is None and options.resume:
        untuned = Path(options.out) / "untuned.toml"
        stored = str(Path(options.out) / "recipe.toml")
        if untuned.exists() and (options.tune or not Path(stored).exists()):
            stored = str(untuned)
        if not Path(stored).exists():
            raise Problem(
                f"{options.out} holds no run to resume: leave --resume out to start one"
            )
    if stored is not None:
        try:
            text = Path(stored).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Problem(f"cannot read {stored} ({error}): name a TOML file") from error
        values = vars(Recipe.from_toml(text, stored))
    recipe = Recipe.from_values({**values, **given}, "the command line")
    if recipe.data != "digits":  # so that the run goes on from another folder too
        root = Path(recipe.root or os.environ.get("DLCOURSE_ROOT") or "data")
        recipe = recipe.changed(root=str(root.absolute()))
    return options, recipe


def free_folder(recipe) -> Path:
    """Return runs/DATA, or the first of runs/DATA-2, -3, ... that does not exist.

    DATA is the name of the images, and for a folder the name of that folder.
    """
    name = Path(recipe.root).name if recipe.data == "folder" else ""
    base, number = Path("runs") / (name or recipe.data), 1
    folder = base
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def plan(recipe, data, folder: Path, options) -> list[str]:
    """Return what a run would do: one line for each of the sixteen techniques, and its
    cost.
    """
    import torch

    from dlcourse.recipe import build_model, on_gpus, updates
    from dlcourse.studies import FACTORS, arms

    per_epoch, epochs = updates(recipe, len(data.train))
    steps = per_epoch * epochs
    warm = round(recipe.warmup * steps)
    model = build_model(recipe, data.channels, data.size, data.num_classes)
    weights = sum(p.numel() for p in model.parameters())
    world = recipe.processes
    micro = recipe.batch_size / recipe.accumulation_steps / world
    device = torch.cuda.get_device_name() if on_gpus(recipe) else "CPU"
    stop = f"after {recipe.patience} epochs without gain" if recipe.patience else "off"
    held = f"{len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test"
    penalty = f"weight decay {recipe.weight_decay:g}, label smoothing {recipe.label_smoothing:g}"
    rows = [
        ("data splitting", f"{recipe.split}: {held}"),
        ("tuning", f"{options.tune} trials" if options.tune else "none (--tune N)"),
        (
            "regularization",
            f"{penalty}, dropout {recipe.dropout:g}, early stopping {stop}",
        ),
        ("gradient clipping", f"norm {recipe.max_norm:g}"),
        ("initialization", recipe.init),
        ("activation", recipe.activation),
        ("normalization", recipe.norm if recipe.model == "cnn" else "none in an MLP"),
        ("learning rate", f"peak {recipe.lr:g}, {recipe.optimizer}"),
        ("compression", ", ".join(options.compress or []) or "none (--compress)"),
        ("augmentation", recipe.augment),
        ("accumulation", f"{recipe.accumulation_steps} x {micro:g} images a process"),
        ("parallelism", f"{world} process{'es' if world > 1 else ''} on {device}"),
        ("warm-up", f"{warm} updates"),
        ("schedule", f"{recipe.schedule} over the other {steps - warm}"),
        ("precision", {"no": "float32"}.get(recipe.precision, recipe.precision)),
        ("data loading", f"{recipe.workers} workers" if recipe.workers else "in memory"),
    ]
    lines = [f"{data}", f"{recipe.model} of {weights:,} parameters"]
    lines += [f"{n:>2}  {name:<17}  {said}" for n, (name, said) in enumerate(rows, 1)]
    lines += [f"{steps} updates: {epochs} epochs of {per_epoch}"]
    if options.ablate:
        count = len(arms(recipe))
        each = f"{count} arms x {len(FACTORS)} rates or more x {options.seeds} seeds"
        lines += [f"ablation: {each} of this"]
    return [*lines, f"folder {folder}"]


def job(values: dict, out: str, log: list[str]) -> dict:
    """Train as one of several processes, and return the numbers; the folder is already
    checked.
    """
    from dlcourse.recipe import Recipe, train

    return train(Recipe(**values), out, resume=True, log=tuple(log)).numbers()


def run(recipe, folder: Path, options, data) -> dict:
    """Train here, or on the processes that the recipe asks for; return the numbers."""
    from dlcourse.lab.launching import launch
    from dlcourse.recipe import on_gpus, open_folder, train

    if recipe.processes == 1 or "WORLD_SIZE" in os.environ:
        return train(
            recipe, folder, resume=options.resume, data=data, log=options.log
        ).numbers()
    open_folder(folder, recipe, options.resume)
    arguments = {
        "values": dict(vars(recipe)),
        "out": str(folder),
        "log": list(options.log),
    }
    cpu = not on_gpus(recipe)
    found = launch(
        job, recipe.processes, kwargs=arguments, timeout=YEAR, cpu=cpu, live=True
    )
    return found[0]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, 1 (the run failed), 2 (it could not start) or 130
    (Ctrl-C).
    """
    options, folder = None, Path(os.devnull)
    try:
        from dlcourse.lab.launching import LaunchError
        from dlcourse.lab.training import NonFiniteLossError
        from dlcourse.recipe import Problem
    except ImportError as error:
        return fail(f"{error}: run python -m dlcourse.doctor", 2)
    except KeyboardInterrupt:
        return fail("stopped before the run began", 130)
    known = (
        ValueError,
        OSError,
        RuntimeError,
        MemoryError,
        LaunchError,
        NonFiniteLossError,
    )
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that lacks a letter of a path
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options, recipe = read(sys.argv[1:] if arguments is None else arguments)
        folder = Path(options.out) if options.out else free_folder(recipe)
        return carry_out(options, recipe, folder)
    except Problem as problem:
        return fail(str(problem), 2)
    except KeyboardInterrupt:
        if not begun(folder):
            return fail("stopped before the run began", 130)
        return fail(f"stopped; go on with: dlcourse-train {again(options, folder)}", 130)
    except known as error:
        if os.environ.get("DLCOURSE_DEBUG"):
            raise
        said, goes_on = explain(error)
        if goes_on and begun(folder):
            said += f", then go on with {again(options, folder)}"
        return fail(said, 1)


def carry_out(options, recipe, folder: Path) -> int:
    """Do what the options ask for; return the exit code."""
    from dlcourse import studies
    from dlcourse.recipe import Problem, check_machine, load_data, refuse_used

    studies.check(options)
    check_machine(recipe, options.log)
    first = int(os.environ.get("RANK", 0)) == 0
    # before the images are read, which may take a while
    if first and not options.dry_run:
        refuse_used(
            folder, options.resume, "untuned.toml" if options.tune else "recipe.toml"
        )
    said = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"dlcourse-train: {message}\n"
    try:
        data = load_data(recipe)
    finally:
        warnings.formatwarning = said
    if first:
        print("\n".join(plan(recipe, data, folder, options)), flush=True)
    if options.dry_run:
        return 0
    if options.ablate:
        print(studies.ablate(recipe, folder, options.seeds, options.resume))
        print(
            f"the table is in {folder / 'ablation.md'}, a picture in ablation.png beside it"
        )
        return 0
    if options.tune:
        recipe = studies.tune(recipe, folder, options.tune, options.resume, data)
    elif (folder / "untuned.toml").exists() and not (folder / "recipe.toml").exists():
        raise Problem(
            f"{folder} holds a search that has not ended: add --tune N --resume"
        )
    numbers = run(recipe, folder, options, data)
    if first:
        print(
            f"test accuracy {numbers['accuracy']:.4f} [{numbers['low']:.4f}, "
            f"{numbers['high']:.4f}], nll {numbers['nll']:.4f}, calibration error "
            f"{numbers['ece']:.4f}, on {numbers['count']} images; see {folder / 'MODEL_CARD.md'}"
        )
        print(mistakes(folder))
        if options.compress:
            print(studies.compress(folder, options.compress, data), end="")
            print(f"the smaller models are in {folder / 'compressed'}")
    return 0


def mistakes(folder: Path) -> str:
    """Return what went wrong on the test images, and how to ask the model about new ones."""
    import shlex

    from dlcourse.report import most_confused, read_confusion

    counts, classes = read_confusion(folder / "confusion.csv")
    wrong = int(counts.sum() - counts.diagonal().sum())
    often = "; ".join(most_confused(counts, classes, longest=3))
    said = f"wrong: {wrong}" + (
        f", most often {often}; see hardest.png there" if wrong else ""
    )
    return f"{said}\nnew images: python -m dlcourse.predict {shlex.quote(str(folder))} IMAGE ..."


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
    """Return one line, what went wrong and what to do, and whether to go on with the run
    then.
    """
    text = str(error)
    last = text.strip().splitlines() or [type(error).__name__]
    if getattr(error, "errno", None) == errno.ENOSPC or f"[Errno {errno.ENOSPC}]" in text:
        return "no space left on the disk: free some", True
    if isinstance(error, PermissionError):
        return f"{error.filename or 'a file'} may not be written: mend its rights", True
    if re.search("EADDRINUSE|address already in use", text, re.IGNORECASE):
        return (
            "a port is in use: end the other program or set MASTER_PORT to another",
            True,
        )
    if re.search("out of memory|allocate memory", text) or isinstance(error, MemoryError):
        advice = (
            "start anew with --accumulation-steps 2, a smaller --batch-size or --width"
        )
        return f"out of memory: {advice}", False
    # the last error that a process met, or how it ended
    if type(error).__name__ == "LaunchError":
        met = re.findall(
            r"^[\w.]*?(\w*(?:Error|Problem|Exception)): (.+)", text, re.MULTILINE
        )
        return (f"{met[-1][0]}: {met[-1][1]}" if met else last[0]), not met
    return " ".join(text.split()) or last[0], False


def fail(message: str, code: int) -> int:
    """Print one line to stderr, and return the exit code."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"dlcourse-train: {message}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
