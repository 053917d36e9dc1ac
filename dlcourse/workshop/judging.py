"""The judge, which sits inside the kernel of a handed-in notebook.

It keeps the exercises from before the notebook's first cell. The notebook's calls of
`check` only hand their answers over; the judge then runs them with what it has kept, so
that printing "Right.", replacing EXERCISES or patching `Exercise.check` changes nothing.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import importlib
import inspect
import os
import sys
from typing import Any

from IPython.core.getipython import get_ipython

from dlcourse.lab import exercises as lab
from dlcourse.lab import warm

PASS, HINT, BLANK, ERROR, TIME_OUT = "pass", "hint", "not started", "error", "time-out"
MIME = "application/x-dlcourse+json"  # of what the judge says to the asking process
STOPPED = "Your code stopped with "  # how a hint begins where the answer raised
HINT_FOR, IS_STUB = lab.Exercise.hint_for, lab._is_stub  # before a notebook runs
SHELLS = ("!", "bash", "cmd", "perl", "ruby", "script", "sh", "sx", "system")


def begin(name: str, technique: str, folder: str, memory: float) -> None:
    """Put a judge under `name` among the builtins, and bound the process (memory in GB).

    `folder` is searched for modules of the participant's own.
    """
    shell: Any = get_ipython()
    setattr(builtins, name, Judge(shell, technique))
    sys.path.append(folder)
    # A check installs nothing and deletes nothing: lines for the system's shell are mute.
    shell.system = shell.getoutput = lambda *arguments, **options: None
    for magic in SHELLS:
        shell.register_magic_function(lambda line, cell=None: None, "cell", magic)
    shell.ask_exit = sys.exit  # exit() fails its cell and leaves the kernel alive
    # What an answer launches is bounded as the kernel is, so by a helper of the kernel's own.
    # The import of `launch` would start it, in three seconds of processor time; hardly an
    # answer launches, so now the first launch does.
    os.environ.pop(warm.LENT, None)
    warm.get_ready = lambda env: None
    bound(memory)


def bound(memory: float) -> None:
    """Bound memory (GB), file sizes and core dumps, where the system offers it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    bounds = {"DATA": int(memory * 2**30), "FSIZE": 2**30, "CORE": 0}
    for name, value in bounds.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            if hard != resource.RLIM_INFINITY:
                value = min(value, hard)
            resource.setrlimit(kind, (value, value))


def has_dots(answer: Any) -> bool:
    """Tell whether a function is still the chapter's dots; `return None` is an answer."""
    try:
        return "..." in inspect.getsource(answer)
    except (OSError, TypeError):
        return True


class Judge:
    """Takes the answers of one notebook and says what the package thinks of each."""

    def __init__(self, shell, technique: str):
        module = importlib.import_module(f"dlcourse.exercises.{technique}")
        self.shell = shell
        self.publish = shell.display_pub.publish
        self.originals = tuple(module.EXERCISES)
        self.kept = [dataclasses.replace(exercise) for exercise in self.originals]
        self.modules = [(vars(part), dict(vars(part))) for part in (lab, module)]
        self.answers: list[tuple[int, object]] = []  # of the last cell
        self.coming: list[tuple[int, object]] = []  # of the cell that runs now
        self.restore()

    def restore(self) -> None:
        """Undo what a notebook has rebound in the package's exercises."""
        for now, before in self.modules:
            now.clear()
            now.update(before)

        def check(exercise, answer) -> bool:
            self.take(exercise, answer)
            return True

        def hint_for(exercise, answer) -> None:
            self.take(exercise, answer)

        for name, method in (("check", check), ("hint_for", hint_for)):
            setattr(lab.Exercise, name, method)

    def take(self, exercise: object, answer: object) -> None:
        """Note an answer that the notebook has given to check or hint_for."""
        for number, original in enumerate(self.originals, 1):
            if exercise is original:
                self.coming.append((number, answer))

    def hand_over(self) -> None:
        """Say to which exercises the cell just run has given answers, in their order."""
        self.answers, self.coming = self.coming, []
        self.restore()
        self.publish({MIME: [number for number, _ in self.answers]})

    def judge(self, position: int) -> None:
        """Say what an answer of the last cell gets."""
        self.say(*self.answers[position])

    def judge_name(self, number: int, name: str) -> None:
        """Say what the notebook's object of this name gets, or nothing without one."""
        if name in self.shell.user_ns:
            self.say(number, self.shell.user_ns[name])

    def say(self, number: int, answer: object) -> None:
        """Publish verdict and hint; last, so that nothing of the answer's comes after."""
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            verdict, hint = self.verdict(number, answer)
        self.publish({MIME: [verdict, hint[:5000]]})

    def verdict(self, number: int, answer: object) -> tuple[str, str]:
        """Return (verdict, hint) of an answer to exercise `number`."""
        self.restore()
        try:
            hint = HINT_FOR(self.kept[number - 1], answer)
        except SystemExit:
            return ERROR, "it calls exit()"
        except BaseException as error:
            return ERROR, f"{type(error).__name__}: {error}"
        if hint is None:
            return PASS, ""
        if hint == lab.BLANK or IS_STUB(answer) and has_dots(answer):
            return BLANK, ""
        return (ERROR if hint.startswith(STOPPED) else HINT), hint
