"""Importing hbm_jax imports neither JAX nor NumPy, sets no JAX option, and starts no device."""

import json
import subprocess
import sys

import pytest

import hbm_jax

PROBE = """
import json, sys
import hbm_jax
result = {"jax": "jax" in sys.modules, "numpy": "numpy" in sys.modules}
import contextlib, io
import jax
from hbm_jax.cli import main
from jax._src import xla_bridge
names = sorted(jax.config.values)
before = {name: repr(jax.config.values[name]) for name in names}
hbm_jax.data, hbm_jax.models, hbm_jax.cosmology, hbm_jax.distributions
hbm_jax.models.Supernova(cosmology="wcdm")
result["statistics"] = sorted({"arviz_stats", "pandas", "scipy.stats", "xarray"} & set(sys.modules))
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["fit", "supernova", "--help"])
result["help"] = sorted({"arviz_stats", "matplotlib", "optax", "pandas", "xarray"} & set(sys.modules))
result["matplotlib"] = "matplotlib" in sys.modules
result["astropy"] = "astropy" in sys.modules
hbm_jax.inference, hbm_jax.load, hbm_jax.sample
slow = {"arviz_base", "arviz_stats", "matplotlib", "scipy.stats", "hbm_jax.spectra"}
result["slow"] = sorted(slow & set(sys.modules))
after = {name: repr(jax.config.values[name]) for name in names}
result["changed"] = [name for name in names if before[name] != after[name]]
result["backends"] = xla_bridge.backends_are_initialized()
result["x64"] = bool(jax.config.jax_enable_x64)
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def probe():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_imports_no_jax(probe):
    assert not probe["jax"]
    assert not probe["numpy"]


def test_touching_the_rooms_starts_nothing(probe):
    assert not probe["backends"]
    assert not probe["x64"]
    assert probe["changed"] == []
    assert not probe["matplotlib"]
    assert not probe["astropy"]  # 0.3 s of every fit, which only files of spectra need
    assert probe["slow"] == []  # together as long as JAX, and no fit of supernovae needs any
    assert probe["statistics"] == []  # data and models need none; SciPy's takes half a second


def test_every_public_name_resolves():
    for name in hbm_jax.__all__:
        assert getattr(hbm_jax, name).__name__.removeprefix("hbm_jax.") == name
        assert name in dir(hbm_jax)
    assert len(set(hbm_jax.__all__)) == len(hbm_jax.__all__)


@pytest.mark.parametrize("room", ["cosmology", "data", "distributions", "inference", "models", "plotting"])
def test_every_public_name_of_a_room_resolves(room):
    module = getattr(hbm_jax, room)
    assert module.__all__
    for name in module.__all__:
        assert hasattr(module, name)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="module 'hbm_jax' has no attribute 'smaple'"):
        _ = hbm_jax.smaple


def test_the_help_of_a_model_needs_no_statistics(probe):
    assert probe["help"] == []
