"""Photo-ionisation of every ion: the published rule, by a plain transcription of it that shares no code with ours."""

import csv
import re
from importlib import resources

import jax
import numpy as np
import pytest

from hbm_jax.absorption import ion_name, photoionization_cross_section
from hbm_jax.absorption.coefficients import table
from hbm_jax.absorption.cross_sections import all_ions, evaluate, fit_coefficients, parse_ion
from hbm_jax.absorption.rates import ABSORBING


def columns(path):
    with open(path) as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


@pytest.fixture(scope="module")
def published(shared_data):
    shells, outer = {}, {}
    for row in columns(shared_data("atomic/verner_yakovlev_1995.csv")):
        shells.setdefault((int(row["Z"]), int(row["N_electrons"])), []).append({k: float(v) for k, v in row.items()})
    for row in columns(shared_data("atomic/verner_1996.csv")):
        outer[int(row["Z"]), int(row["N_electrons"])] = {k: float(v) for k, v in row.items()}
    return shells, outer


def by_hand(energy, ion, published):
    """Energies [keV], one ion, by the text of the README of the tables; [1e-22 cm^2]."""
    shells, outer = published
    eV = 1e3 * energy

    def shell(r):
        y, Q = eV / r["E_0_eV"], 5.5 + r["l"] - r["P"] / 2
        value = r["sigma_0_Mb"] * ((y - 1) ** 2 + r["y_w"] ** 2) * y**-Q * (1 + np.sqrt(y / r["y_a"])) ** -r["P"]
        return np.where(eV < r["E_th_eV"], 0.0, value)

    inner = {1: (0, 0), 3: (1, 0), 11: (2, 1), 19: (3, 1)}[max(n for n in (1, 3, 11, 19) if n <= ion[1])]
    edge = next((r["E_th_eV"] for r in shells[ion] if (r["n"], r["l"]) == inner), np.inf)
    total = 1e4 * sum(shell(r) for r in shells[ion])
    if ion not in outer:
        return total
    r = outer[ion]
    x = eV / r["E_0_eV"] - r["y_0"]
    y, Q = np.hypot(x, r["y_1"]), 5.5 - r["P"] / 2
    value = 1e4 * r["sigma_0_Mb"] * ((x - 1) ** 2 + r["y_w"] ** 2) * y**-Q * (1 + np.sqrt(y / r["y_a"])) ** -r["P"]
    return np.where(eV < edge, np.where(eV < r["E_th_eV"], 0.0, value), total)


def test_every_ion_is_the_published_rule(published):
    shells, outer = published
    assert len(shells) == 289
    for ion in shells:
        # On both sides of every threshold besides.
        thresholds = [r["E_th_eV"] / 1e3 for r in (*shells[ion], outer.get(ion, shells[ion][0]))]
        beside = [edge * (1 + side) for edge in thresholds for side in (-1e-9, 1e-9)]
        energies = np.concatenate([np.geomspace(0.006, 49.0, 76 - len(beside)), beside])
        ours = photoionization_cross_section(energies, *ion)
        np.testing.assert_allclose(ours, by_hand(energies, ion, published), rtol=1e-12, err_msg=str(ion))


def test_thresholds_are_where_the_cross_section_jumps():
    ions = ((8, 8), (8, 2), (26, 26), (26, 24), (11, 10), (1, 1), (19, 19))
    for ion, edges in zip(ions, fit_coefficients(ions).thresholds(), strict=True):
        step = 1e-9
        fits = fit_coefficients((ion,))
        for edge in edges:
            low, high = evaluate(np.array([edge * (1 - step), edge * (1 + step)]), fits)[0]
            assert abs(high - low) > 1e-4 * high, (ion, edge)
        # And nowhere else.
        grid = np.geomspace(0.004, 20.0, 200_001)
        values = evaluate(grid, fits)[0]
        jump = np.flatnonzero((np.abs(np.diff(values)) > 0.02 * values[1:]) & (values[1:] > 0))
        for i in jump:
            assert ((edges >= grid[i] * 0.9999) & (edges <= grid[i + 1] * 1.0001)).any(), (ion, grid[i])


def test_no_light_below_the_first_threshold():
    below, above = photoionization_cross_section(np.array([0.0135, 0.0137]), 1, 1).tolist()
    assert below == 0
    assert above == pytest.approx(6.2e4, rel=0.02)  # 6.3 Mb, of any textbook


@pytest.mark.parametrize("ion", [(1, 1), (8, 2), (8, 8), (26, 20), (28, 28)])
def test_gradient_and_single_precision(ion):
    energy = np.array([0.3, 1.1, 6.0, 45.0])
    slopes = jax.jit(jax.vmap(jax.value_and_grad(lambda e: photoionization_cross_section(e, *ion))))
    value, slope = (np.asarray(part) for part in slopes(energy))
    h = 1e-5 * energy
    up, down = (evaluate(energy + step, fit_coefficients((ion,)))[0] for step in (h, -h))
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-5, atol=1e-12)
    single = photoionization_cross_section(energy.astype(np.float32), *ion)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, value, rtol=1e-5)


def test_shapes_and_transformations():
    energies = np.geomspace(0.1, 10.0, 6).reshape(2, 3)
    eager = photoionization_cross_section(energies, 8, 8)
    assert eager.shape == (2, 3)
    mapped = jax.jit(jax.vmap(jax.vmap(lambda e: photoionization_cross_section(e, 8, 8))))(energies)
    np.testing.assert_allclose(mapped, eager, rtol=1e-13)
    assert photoionization_cross_section(1, 8, 8).dtype == np.float64  # also of a whole number


def test_names_of_ions():
    assert [ion_name(*ion) for ion in ((1, 1), (1, 0), (8, 2), (26, 26), (26, 7), (26, 0))] == [
        "H I", "H II", "O VII", "Fe I", "Fe XX", "Fe XXVII"
    ]  # fmt: skip
    for ion in all_ions(range(1, 31)):
        assert parse_ion(ion_name(*ion)) == ion
    assert len(ABSORBING) == 102


def test_packaged_tables_are_the_published_ones_and_carry_their_source(shared_data):
    folder = shared_data("atomic/abundances.csv").parent
    for path in folder.glob("*.csv"):
        found = table(path.stem)
        rows = columns(path)
        assert list(found) == list(rows[0])
        for name, column in found.items():
            text = [row[name] for row in rows]
            assert (column == (np.array(text, float) if column.dtype.kind == "f" else np.array(text))).all()
        packaged = (resources.files("hbm_jax.absorption") / "tables" / path.name).read_text()
        heading = [line for line in packaged.splitlines() if line.startswith("#")]
        assert any(re.search(r"(19|20)\d\d", line) for line in heading), path.name
        with pytest.raises(ValueError, match="read-only"):
            next(iter(found.values()))[0] = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 8, 8), r"energy: expected between 0\.001 and 500 keV; found 0"),
        (([1.0, 501.0], 8, 8), r"energy\[1\]: expected between 0\.001 and 500 keV; found 501"),
        ((np.nan, 8, 8), r"energy: expected between .*; found nan"),
        ((1.0, 31, 8), r"Z: expected the nuclear charge of an element from H \(1\) to Zn \(30\); found 31"),
        ((1.0, 8, 9), r"num_electrons of O: expected 1 to 8; found 9"),
        ((1.0, 8, 0), r"num_electrons of O: expected 1 to 8; found 0"),
        ((1.0, 8.9, 8), r"Z: expected a whole number; found 8\.9"),
        ((1.0, 25, 24), r"Mn with 24 electrons: there are fits for the neutral atom only"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        photoionization_cross_section(*arguments)


def test_traced_energies_out_of_the_domain_are_nan_and_spoil_nothing():
    @jax.jit
    def both(energies):
        values = photoionization_cross_section(energies, 8, 8)
        return values, jax.grad(lambda e: photoionization_cross_section(e, 8, 8)[1])(energies)

    values, gradient = both(np.array([-1.0, 0.6, 1e4]))
    assert list(np.isnan(values)) == [True, False, True]
    _, alone = both(np.array([0.6, 0.6, 0.6]))
    assert float(gradient[1]) == pytest.approx(float(alone[1]), rel=1e-13)
    assert float(alone[1]) < 0.0


@pytest.mark.parametrize("name", ["O", "Oo VII", "O XI", "VII O", ""])
def test_errors_of_names(name):
    with pytest.raises(ValueError, match=r"ion '.*': expected"):
        parse_ion(name)
