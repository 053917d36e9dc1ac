"""The options of the command: one for each setting, made from the settings themselves.

jsonargparse gives each setting its option, its type and its place in the help. What it
refuses is said in the words of `settings`.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from dlcourse.capstone.settings import GROUPS, Problem, Recipe, choices

SCREEN = 100  # columns of the help
OPTION = r"--[\w-]+"
IN_THE_INSTALL = ("digits", "mnist_5k")


def dashes(text: str) -> str:
    """Return a text with its options as they are shown: --weight-decay."""
    return re.sub(OPTION, lambda found: found[0].replace("_", "-"), text)


def underscores(argument: str) -> str:
    """Return an argument, its option called like the setting: --weight_decay."""
    name, equals, value = argument.partition("=")
    if re.fullmatch(OPTION, name):
        name = "--" + name[2:].replace("-", "_")
    return name + equals + value


class OneScreen(argparse.HelpFormatter):
    """Help in two columns: the choices and the default of a setting after its text."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=SCREEN)

    def _format_args(self, action, default_metavar) -> str:
        if action.nargs == "+":
            return f"{action.metavar} ..."
        if action.choices or str(action.metavar).startswith("{"):
            return "NAME"
        return super()._format_args(action, "VALUE")

    def _format_action_invocation(self, action) -> str:
        return dashes(super()._format_action_invocation(action))

    def _get_help_string(self, action) -> str:
        text, metavar = str(action.help), str(action.metavar)
        if metavar.startswith("{"):
            text += ": " + metavar.strip("{}").replace(",", ", ")
        shown = action.default not in (None, [], argparse.SUPPRESS) and action.nargs != 0
        return f"{text} (%(default)s)" if shown else text


class OneLine(ArgumentParser):
    """A parser whose errors are one line, with the option that was probably meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise Problem: what is wrong and what to do."""
        value = re.match(r'Parser key "(\w+)":.*Got value: (.*)', message, re.DOTALL)
        if value and value[1] in Recipe.model_fields:
            Recipe.from_values({value[1]: value[2]}, "the command line", strict=False)
        if value:
            message = f"--{value[1]} takes no {value[2]}"
        unknown = re.search(rf"unrecognized arguments: ({OPTION})", message)
        known = self._option_string_actions
        near = difflib.get_close_matches(unknown[1], known, 1) if unknown else []
        advice = f"did you mean {near[0]}? " if near else ""
        raise Problem(dashes(f"{message}; {advice}--help lists all options")) from ex


def parser(stored: Mapping[str, Any] | None = None) -> OneLine:
    """Return the parser: the command's own options, and one for each setting.

    `stored`: values that stand in place of the defaults.
    """
    sets = "|".join(choices("data"))
    command = OneLine(
        prog="dlcourse-train",
        usage=f"dlcourse-train [--data {sets} PATH] [options]",
        formatter_class=OneScreen,
        allow_abbrev=False,
        add_help=False,
    )
    add = command.add_argument_group("run").add_argument
    add("-h", "--help", action="help", help="show this list and stop")
    images = "images to learn to name; the digits take seconds"
    add("--data", nargs="+", metavar="DATA", default="digits", help=images)
    add("--config", metavar="FILE", help="read settings from TOML; options go first")
    add("--out", metavar="DIR", help="the run's folder (runs/DATA, then runs/DATA-2 ...)")
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--dry_run", action="store_true", help="print the plan and stop")
    trackers = "write to csv, tensorboard, ..."
    add("--log", nargs="+", metavar="TRACKER", default=[], help=trackers)
    add("--tune", type=int, metavar="N", help="search N settings first, by validation")
    add("--compress", nargs="+", metavar="HOW", help="smaller: prune, quantize, distil")
    add("--ablate", action="store_true", help="what each technique contributes")
    add("--seeds", type=int, metavar="N", help="seeds of each arm of --ablate (5)")
    for group in GROUPS:
        command.add_class_arguments(group, skip={"data", "skip_corrupt"})
    groups = command.groups or {}
    for group in GROUPS:  # jsonargparse reads docstrings only where docstring-parser is
        groups[group.__name__].title = group.__doc__
    without = "leave unreadable images out"
    groups["Data"].add_argument("--skip_corrupt", action="store_true", help=without)
    if stored:
        command.set_defaults(dict(stored))
    return command


def read(arguments: Sequence[str]) -> tuple[Namespace, Recipe]:
    """Return (the command's own options, the recipe), from the command line and --config.

    Raises Problem for options and settings that cannot be.
    """
    given = [underscores(argument) for argument in arguments]
    command = parser()
    options = command.parse_args(given)
    if options.seeds is not None and not options.ablate:
        raise Problem("--seeds goes with --ablate; --seed chooses the seed of one run")
    options.seeds = 5 if options.seeds is None else options.seeds
    if options.resume and options.out is None:
        raise Problem("--resume needs --out, the folder of the run to go on with")
    before = stored_settings(options)
    world = os.environ.get("WORLD_SIZE")
    if world:  # torchrun or accelerate launch: the recipe stores what is true
        before["processes"] = int(world)
    if before:
        command = parser(before)
    values = command.parse_args(given).as_dict()
    if world and values["processes"] != int(world):
        raise Problem(
            f"--processes {values['processes']}, but {world} were launched: leave it out"
        )
    if isinstance(values["data"], list):
        values |= chosen_data(*values["data"])
    settings = {name: values[name] for name in Recipe.model_fields}
    recipe = Recipe.from_values(settings, "the command line")
    if options.root is not None and recipe.data in IN_THE_INSTALL:
        raise Problem(
            f"--root {options.root}: {recipe.data} comes with the install; for images of "
            f"your own write --data folder {options.root}"
        )
    return options, recipe.changed(**absolute(recipe))


def absolute(recipe: Recipe) -> dict[str, str]:
    """Return the recipe's paths in full, so that it goes on from another folder too."""
    paths = {"labels": recipe.labels}
    if recipe.data not in IN_THE_INSTALL:
        paths["root"] = recipe.root or os.environ.get("DLCOURSE_ROOT") or "data"
    if recipe.groups and recipe.groups.lower().endswith(".csv"):
        paths["groups"] = recipe.groups
    return {name: os.path.abspath(path) for name, path in paths.items() if path}


def chosen_data(name: str, *path: str) -> dict[str, str]:
    """Return the settings for the words after --data: a name, or folder and a path."""
    if name not in choices("data") and Path(name).is_dir():
        advice = f"write --data folder {name}, with one folder a class"
        raise Problem(f"--data {name}: {advice}")
    if len(path) > 1 or (path and name != "folder"):
        words = " ".join([name, *path])
        raise Problem(f"--data {words}: only folder takes one path after it")
    return {"data": name, "root": path[0]} if path else {"data": name}


def stored_settings(options: Namespace) -> dict[str, Any]:
    """Return the settings of --config, or of the run that --resume goes on with."""
    stored = options.config
    if stored is None and options.resume:
        folder = Path(options.out)
        untuned, stored = folder / "untuned.toml", folder / "recipe.toml"
        if untuned.exists() and (options.tune or not stored.exists()):
            stored = untuned
        if not stored.exists():
            raise Problem(
                f"{folder} holds no run to resume: leave --resume out to start one"
            )
    if stored is None:
        return {}
    try:
        text = Path(stored).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"cannot read {stored} ({error}): name a TOML file") from error
    return Recipe.from_toml(text, str(stored)).model_dump()
