import pytest
from stored_fits import load


@pytest.fixture(scope="session")
def supernova_fit():
    return load("supernova")


@pytest.fixture(scope="session")
def own_fit():
    return load("own")
