"""Tables of results: pandas frames, with every measured number marked so that nbval masks it.

A measured number stands between two zero-width spaces. They are invisible, and the sanitizer
(chapters/nbval.cfg) replaces what stands between them: names, settings and the shape of the
table are compared, the last digits of a measurement are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real

import pandas as pd

MARK = "\u200b"  # a zero-width space


def measured(value: object, digits: int = 3) -> str:
    """Return a measured value as text between marks: a number, or an interval of `trials`.

    >>> measured(0.94349).strip(MARK)
    '0.943'
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        value = f"{float(value):.{digits}f}"
    return f"{MARK}{value}{MARK}"


def table(
    rows: pd.DataFrame | Mapping | Sequence[Mapping],
    settings: Iterable[str] = (),
    digits: int = 3,
) -> pd.DataFrame:
    """Return a frame of text, ready to be shown: measured values marked, settings as they are.

    `rows`: a frame, {row name: {column: value}}, or a list of {column: value}. A number with
    a fraction (a float) and an interval count as measured and get `digits` decimals; text
    and whole numbers do not, nor do the columns named in `settings`.
    Raises ValueError for no rows, or for a setting that is no column.
    """
    if isinstance(rows, Mapping):
        frame = pd.DataFrame.from_dict(dict(rows), orient="index")
    else:
        frame = pd.DataFrame(rows)
    if frame.empty:
        raise ValueError("the table has no rows: give at least one")
    unknown = sorted(set(settings) - set(frame.columns))
    if unknown:
        raise ValueError(f"settings {unknown} are no columns: {list(frame.columns)}")

    shown = frame.astype(object).copy()
    for name in frame.columns:
        exact = name in set(settings)
        shown[name] = [_cell(value, exact, digits) for value in frame[name]]
    return shown


def show_table(
    rows: pd.DataFrame | Mapping | Sequence[Mapping],
    settings: Iterable[str] = (),
    digits: int = 3,
) -> None:
    """Display `table(...)` under the cell: HTML in a notebook, plain text elsewhere."""
    shown = table(rows, settings, digits)
    index = not isinstance(shown.index, pd.RangeIndex)
    plain = shown.to_string(index=index)
    try:
        from IPython.core.getipython import get_ipython
        from IPython.display import display
    except ImportError:
        print(plain)
        return
    if get_ipython() is None:
        print(plain)
        return
    html = shown.to_html(index=index, border=0)
    display({"text/html": html, "text/plain": plain}, raw=True)


def _cell(value: object, exact: bool, digits: int) -> str:
    """Return one cell as text."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    item = getattr(value, "item", None)
    if item is not None:  # a NumPy number or a tensor of one element
        value = item()
    if exact and isinstance(value, Real):
        return f"{value:g}"
    if exact or isinstance(value, (str, bool, Integral)):
        return str(value)
    return measured(value, digits)
