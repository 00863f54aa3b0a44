import math

import pytest

from hbm_jax.notation import quote, quoted_math
from hbm_jax.plotting import label
from hbm_jax.plotting.labels import LABELS


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [
        ("M0", "mag", "$M_0$ [mag]"),
        ("w0", "", "$w_0$"),
        ("my_slope", "", "my_slope"),
        ("price_$", "", r"price_\$"),
        ("theta[3]", "keV", r"$\theta$[3] [keV]"),
        ("theta[a cluster with a long name, 3]", "", "$\\theta$[a cluster w\u2026long name, 3]"),
        ("H0", "km/s/Mpc", r"$H_0$ [km s$^{-1}$ Mpc$^{-1}$]"),
    ],
)
def test_label(name, unit, expected):
    assert label(name, unit) == expected


def test_every_symbol_is_read_by_matplotlib():
    from matplotlib.mathtext import MathTextParser

    parser = MathTextParser("path")
    for symbol in LABELS.values():
        assert parser.parse(symbol).width > 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.346654, 0.2631, 0.405852), ("0.347", "0.059", "0.084", 0)),
        ((-19.0492, -19.0647, -19.0339), ("-19.049", "0.015", "0.015", 0)),
        ((123456.0, 123000.0, 124000.0), ("123456", "544", "456", 0)),
        ((2.346e-12, 2.2461e-12, 2.4459e-12), ("2.346", "0.100", "0.100", -12)),
        ((2.346e12, 2.2461e12, 2.4459e12), ("2.346", "0.100", "0.100", 12)),
        ((0.5, 0.5, 0.5), ("0.5", "0", "0", 0)),
        ((0.0, -1.0, 1.0), ("0.0", "1.0", "1.0", 0)),
    ],
)
def test_numbers_have_the_digits_of_their_error(values, expected):
    assert quote(*values) == expected


def test_numbers_that_are_not_finite_are_written_as_such():
    assert quote(math.nan, math.nan, math.nan).median == "nan"
    assert quote(1.0, -math.inf, 1.1).plus == "0.10"


def test_powers_of_ten_are_written_out():
    assert quoted_math(quote(2.346e12, 2.2461e12, 2.4459e12)) == r"$(2.346^{+0.100}_{-0.100}) \times 10^{12}$"
