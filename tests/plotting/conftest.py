import pytest

from plotting import small_fits


@pytest.fixture(scope="session")
def supernova_fit():
    return small_fits.supernova_fit()


@pytest.fixture(scope="session")
def own_fit():
    return small_fits.own_fit()
