"""A bar is drawn for what is slow, and is gone without a trace afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import nbclient
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from dlcourse.lab import progress
from dlcourse.lab.progress import bar, show_progress

ROOT = Path(__file__).resolve().parents[2]
CELLS = [
    "import sys, time\nfrom IPython.display import display\n"
    "from dlcourse.lab import progress\nfrom dlcourse.lab.progress import bar\n"
    "print('the importing cell')\n"
    "progress.DELAY = progress.SOONEST = 0\n"
    "for i in bar(range(3)):\n    time.sleep(0.15)",
    "print('before')\nprint('a warning', file=sys.stderr)\n"
    "handle = display('shown', display_id=True)\n"
    "for i in bar(range(3), desc='outer'):\n"
    "    for j in bar(range(2), desc='inner'):\n        time.sleep(0.15)\n"
    "    print('between', i)\n"
    "handle.update('changed')\nprint('after')\n'result'",
    "with bar(total=3) as open_bar:\n    time.sleep(0.15)\n    open_bar.update()",
    "print('kept')\nfor i in bar(range(3)):\n    time.sleep(0.15)\n"
    "    if i == 1:\n        raise ValueError('as planned')",
    "print('the next cell')",
]


def run_cells(progress_setting: str, monkeypatch) -> tuple[list, list]:
    """Run CELLS in a kernel; return their outputs, and the bars that were drawn."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.setenv("DLCOURSE_PROGRESS", progress_setting)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = [new_code_cell(source) for source in CELLS]
    cells[3].metadata["tags"] = ["raises-exception"]
    book = new_notebook(cells=cells)
    client = nbclient.NotebookClient(book, timeout=60, coalesce_streams=True)
    drawn = []
    take = client.process_message

    def watch(message, cell, cell_index):
        data = message["content"].get("data", {})
        if "%|" in data.get("text/plain", ""):
            drawn.append((cell_index, data["text/plain"]))
        return take(message, cell, cell_index)

    client.process_message = watch
    client.execute()
    outputs = [cell.outputs for cell in book.cells]
    for output in (output for found in outputs for output in found):
        output.pop("traceback", None)
    return outputs, drawn


def test_a_cell_ends_as_if_there_had_been_no_bar(monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        without, none = run_cells("0", patch)
    outputs, drawn = run_cells("1", monkeypatch)
    assert not none
    assert outputs == without
    assert [output.output_type for output in without[1]][-1] == "execute_result"
    assert without[1][2]["data"]["text/plain"] == "'changed'"
    assert [output.output_type for output in without[3]] == ["stream", "error"]
    assert {index for index, _ in drawn} == {1, 2, 3}
    both = [text for _, text in drawn if "outer" in text and "inner" in text]
    assert both and all(len(text.splitlines()) == 2 for text in both)


def test_progress_bar_needs_a_reader(monkeypatch):
    assert not show_progress()  # under pytest
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.delenv("DLCOURSE_PROGRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    assert show_progress()
    monkeypatch.setenv("DLCOURSE_PROGRESS", "0")
    assert not show_progress()


def test_a_bar_is_drawn_only_after_the_delay(capsys, monkeypatch):
    assert progress.DELAY == 2
    monkeypatch.setattr(progress, "DELAY", 3600.0)
    assert list(bar(range(5), show=True)) == list(range(5))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "DELAY", 0.0)
    assert list(bar(range(5), show=True)) == list(range(5))
    assert "/5" in capsys.readouterr().err


def test_a_hidden_bar_counts_for_nobody(capsys):
    with bar(total=3, show=False) as hidden:
        hidden.update()
        hidden.set_postfix(loss=1)
    assert list(bar([1, 2], show=False)) == [1, 2]
    assert capsys.readouterr().err == ""
