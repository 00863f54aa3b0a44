"""Classic data sets of hierarchical modelling, bundled with the package."""

from importlib import resources

from hbm_jax.names import did_you_mean, listed
from hbm_jax.validation import DataError

EXAMPLES = {
    "baseball": "baseball_1970",
    "dugongs": "dugongs",
    "eight_schools": "eight_schools",
    "hogg_line": "hogg2010_line",
    "pumps": "pumps",
    "radon": "radon_minnesota",
    "rat_tumor": "rat_tumor",
    "rats": "rats_growth",
    "surgical": "surgical",
}


def load_example(name: str):
    """Load one of the classic data sets.

    Parameters
    ----------
    name : str
        ``"baseball"``: 18 players of 1970, their first 45 at-bats and the rest of the season (Efron & Morris 1975).
        ``"dugongs"``: age and length of 27 sea cows (Ratkowsky 1983). ``"eight_schools"``: effects of coaching (Rubin
        1981). ``"hogg_line"``: 20 points, some of them outliers (Hogg, Bovy & Lang 2010). ``"pumps"``: failures of
        power-plant pumps (Gaver & O'Muircheartaigh 1987). ``"radon"``: 919 homes in 85 counties of Minnesota (Price,
        Nero & Gelman 1996). ``"rat_tumor"``: 71 groups (Tarone 1982). ``"rats"``: weights of 30 rats on five days, one
        row per weight (Gelfand et al. 1990). ``"surgical"``: deaths in 12 hospitals (Spiegelhalter et al.).

    Returns
    -------
    astropy.table.Table
        Table for `hbm_jax.data.read_regression` and `hbm_jax.data.read_relation`; ``meta["comments"]`` has the
        description and the citation.

    Raises
    ------
    DataError
        For an unknown name.

    Examples
    --------
    >>> load_example("pumps").colnames
    ['pump', 'time', 'failures']
    """
    from astropy.table import Table

    if name not in EXAMPLES:
        raise DataError(
            f"load_example: unknown data set {name!r}{did_you_mean(name, EXAMPLES)}: expected one of "
            f"{listed(EXAMPLES)}; found {name!r}."
        )
    with resources.as_file(resources.files("hbm_jax.data") / "bundled" / f"{EXAMPLES[name]}.csv") as path:
        table = Table.read(path, format="ascii.csv", comment="#")
    return _one_row_per_weight(table) if name == "rats" else table


def _one_row_per_weight(table):
    """Convert a table with one column per day to one row per rat and day."""
    from astropy.table import Table

    days = [name for name in table.colnames if name.startswith("day")]
    rows = [(row["rat"], int(day[3:]), row[day]) for row in table for day in days]
    return Table(rows=rows, names=("rat", "day", "weight"), meta=table.meta)
