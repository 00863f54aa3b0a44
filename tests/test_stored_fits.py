"""Stored fits are of the programs as they are: log densities and sites of some draws are computed again."""

import pytest
from stored_fits import FOLDER, RECIPES, assert_not_stale


def test_every_stored_fit_has_a_recipe():
    assert {path.stem for path in FOLDER.glob("*.nc")} == set(RECIPES)


# That of afterglows is compared beside its figures, which fold the same spectra.
SLOW_TO_COMPILE = (
    "relation", "relation_of_two", "golenetskii", "golenetskii_pooled", "regression", "normal_vectors", "spectral_fit",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in SLOW_TO_COMPILE else [])
        for name in RECIPES
        if name != "afterglow"
    ],
)
def test_a_stored_fit_is_not_stale(name):
    assert_not_stale(name)
