"""Grating spectra: rows of PHA files that are orders of a grating (TG_PART, TG_M), and their background columns.

References: the columns written by CIAO tgextract, and the sums of the two background regions in its script tg_bkg.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.names import listed
from hbm_jax.spectra.folding.spectrum import GratingOrder
from hbm_jax.spectra.ogip.tables import as_floats, opened, spectrum_table
from hbm_jax.validation import DataError, Floats

ARMS = {0: "ZERO", 1: "HEG", 2: "MEG", 3: "LEG"}  # by TG_PART
REGIONS = {"BACKGROUND_UP": "BACKSCUP", "BACKGROUND_DOWN": "BACKSCDN"}  # counts on both sides, and their scales
FIELDS = ("{arm}", "{ARM}", "{order}")  # of file names of responses
_ORDER = re.compile(r"([A-Za-z]+)\s*([+-]?\d+)")


def orders_of(hdu: Any, where: str) -> list[GratingOrder | None]:
    """Return arm and order of each row of a spectrum table of type II, or of the single spectrum; None if not known."""
    columns = {column.name.upper(): column.name for column in hdu.columns}

    def read(name: str) -> list[Any]:
        """Return the values of a column with one number for each row, or of a keyword."""
        if name in columns:
            return np.atleast_1d(as_floats(hdu.data[columns[name]], f"{where}, {name}")).tolist()
        return [hdu.header.get(name)] * max(len(hdu.data), 1)

    arms = [ARMS.get(int(p)) if isinstance(p, int | float) and p % 1 == 0 else None for p in read("TG_PART")]
    numbers = [int(m) if isinstance(m, int | float) and m % 1 == 0 else None for m in read("TG_M")]
    return [
        None if arm is None or number is None else GratingOrder(arm, number)
        for arm, number in zip(arms, numbers, strict=True)
    ]


def selected_rows(path: str | Path) -> tuple[Path, list[int] | None]:
    """Split ``name{3}`` or ``name{MEG -1, MEG +1}`` into the name and the numbers of rows, from 1.

    The numbers are None without braces. Raises DataError unless each order is that of exactly one row.
    """
    match = re.fullmatch(r"(.*)\{([^{}]*)\}\s*", str(path), flags=re.DOTALL)
    if match is None:
        return Path(path), None
    base, texts = Path(match[1]), [text.strip() for text in match[2].split(",")]
    if not all(re.fullmatch(r"\d+", text) or _ORDER.fullmatch(text) for text in texts):
        return Path(path), None  # not a selection
    orders: list[GratingOrder | None] = []
    if not os.path.isfile(base):
        return base, [1]  # reading then raises an error
    if not all(text.isdigit() for text in texts):
        with opened(base) as hdus:
            hdu = spectrum_table(hdus, base)
            orders = orders_of(hdu, f"{base}[{hdu.name}]")
    return base, [int(text) if text.isdigit() else _row_of_order(text, orders, base) for text in texts]


def _row_of_order(text: str, orders: Sequence[GratingOrder | None], base: Path) -> int:
    """Return the number of the only row with this arm and order."""
    match = _ORDER.fullmatch(text)
    assert match is not None
    order = GratingOrder(match[1].upper(), int(match[2]))
    rows = [row for row, other in enumerate(orders, start=1) if other == order]
    if len(rows) != 1:
        names = listed(str(other) for other in orders if other is not None)
        advice = "" if not rows else f" in rows {listed(map(str, rows))}; select one by its number"
        raise DataError(f"{base}: expected one spectrum of {order}; found {names or 'no orders of a grating'}{advice}.")
    return rows[0]


def file_name(name: str, order: GratingOrder | None, where: str) -> str:
    """Return the name of a response file with ``{arm}`` (meg), ``{ARM}`` (MEG) and ``{order}`` (-1) replaced.

    Raises DataError for such a name if the spectrum has no known order.
    """
    if not any(field in name for field in FIELDS):
        return name
    if order is None:
        raise DataError(f"{where}: expected a grating spectrum with TG_PART and TG_M, for the file {name!r}.")
    return name.replace("{arm}", order.arm.lower()).replace("{ARM}", order.arm).replace("{order}", f"{order.order:d}")


def background_columns(table: Any, row: int | None, num: int) -> tuple[Floats, Floats] | None:
    """Return counts and BACKSCAL of the background regions beside a grating spectrum, or None without such columns.

    They are the sums of BACKGROUND_UP and BACKGROUND_DOWN and of BACKSCUP and BACKSCDN. ``table`` is the table of a
    spectrum as in `hbm_jax.spectra.ogip.pha`.
    """
    present = {name: scale for name, scale in REGIONS.items() if name in table.columns}
    if not present:
        return None
    counts = sum(table.column(name, row) for name in present)
    scale = sum(table.per_channel(name, np.nan, row, num) for name in present.values())
    if np.shape(counts) != (num,) or not (np.isfinite(scale) & (scale > 0)).all():
        raise DataError(
            f"{table.location(row)}: expected {num} counts in {listed(present)} and positive numbers in "
            f"{listed(present.values())}; found an array of shape {np.shape(counts)} and {np.ravel(scale)[:1]}."
        )
    return np.asarray(counts, float), np.asarray(scale, float)
