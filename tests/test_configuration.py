"""Keys and values of a configuration, from flags, --set and TOML."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest
import tomli_w

from hbm_jax.configuration import OPEN, ConfigError, defaults, merged, read_toml, read_value, set_key
from hbm_jax.data import MagnitudeErrorParts
from hbm_jax.inference import HMC, NUTS, WALNUTS, ChEES, IndependentProposals, Nutpie, sample


def test_defaults_are_fresh_each_time():
    first = defaults()
    first["sample"]["seed"] = 5
    first["prior"]["w0"] = "Normal(0, 1)"
    assert defaults()["sample"]["seed"] == 0
    assert defaults()["prior"] == {}
    assert set(defaults()) == {"sample", *OPEN}


def test_defaults_are_those_of_sample():
    parameters = inspect.signature(sample).parameters
    samplers = [
        inspect.signature(kind).parameters for kind in (NUTS, HMC, IndependentProposals, ChEES, Nutpie, WALNUTS)
    ]
    for name, value in defaults()["sample"].items():
        known = [signature[name] for signature in (parameters, *samplers) if name in signature]
        assert known or name == "independent_proposals", name
        assert all(parameter.default in (value, inspect.Parameter.empty) for parameter in known), name


@pytest.mark.parametrize(
    ("key", "value", "stored"),
    [
        ("sample.seed", "12", 12),
        ("sample.num_chains", 8, 8),
        ("sample.num_samples", 500.0, 500),
        ("sample.target_accept_prob", "0.9", 0.9),
        ("sample.target_accept_prob", 1, 1.0),
        ("sample.dtype", "float32", "float32"),
        ("data.source", "my.csv", "my.csv"),
        ("prior.w0", "Uniform(-2, 0)", "Uniform(-2, 0)"),
        ("prior.H0", 73, "73"),
        ("sample.until", "1000", 1000.0),
        ("sample.until", {"Om0": 1000}, {"Om0": 1000.0}),
        ("sample.until", "{Om0 = 1000, w0 = 500}", {"Om0": 1000.0, "w0": 500.0}),
        ("sample.max_seconds", "90", 90.0),
        ("data.format", "fits", "fits"),
        ("model.mass_step", "False", "False"),  # what the model's own field is, `read_value` finds
        ("model.mass_step", True, True),
        ("model.cosmology", "wcdm", "wcdm"),
        ("columns.m_b", "mB", "mB"),
        ("truth.Om0", "0.3", "0.3"),
    ],
)
def test_set_key(key, value, stored):
    config = defaults()
    set_key(config, key, value)
    section, name = key.split(".")
    assert config[section][name] == stored
    assert type(config[section][name]) is type(stored)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sampel.seed", 1, r"sampel\.seed \(did you mean 'sample'\?\): expected SECTION\.NAME with SECTION one of "),
        ("priors.w0", 1, "did you mean 'prior'"),
        ("seed", 1, r"seed: expected SECTION\.NAME"),
        ("sample.", 1, r"expected SECTION\.NAME"),
        (".seed", 1, r"expected SECTION\.NAME"),
        ("sample.num_chain", 1, r"sample\.num_chain \(did you mean 'num_chains'\?\): expected one of "),
        ("sample.until", "soon", r"sample\.until: expected a number or a table, each entry a number, found 'soon'"),
        ("sample.until.Om0", "many", r"sample\.until\.Om0: expected a number or a table, each entry a number"),
        ("sample.seeds.Om0", 3, r"sample\.seeds\.Om0 \(did you mean 'seed'\?\): expected one of "),
        ("sample.seed", "many", r"sample\.seed: expected a whole number, found 'many'"),
        ("sample.num_chains", "2.5", "expected a whole number, found '2.5'"),
        ("sample.num_chains", 2.5, r"expected a whole number, found 2\.5"),
        ("sample.num_chains", True, "expected a whole number, found True"),
        ("sample.num_chains", [4], r"expected a whole number, found \[4\]"),
        ("sample.target_accept_prob", "high", "expected a number, found 'high'"),
        ("sample.seed", None, "expected a whole number, found None"),
    ],
)
def test_bad_keys_and_values(key, value, message):
    config = defaults()
    with pytest.raises(ConfigError, match=message):
        set_key(config, key, value)
    assert config == defaults()


def test_entries_of_a_table_are_set_one_by_one():
    config = defaults()
    set_key(config, "sample.until", "500")
    set_key(config, "sample.until.Om0", "1000")
    first = config["sample"]["until"]
    set_key(config, "sample.until.w0", 2000)
    assert config["sample"]["until"] == {"Om0": 1000.0, "w0": 2000.0}
    assert first == {"Om0": 1000.0}
    set_key(config, "data.parts.lensing", "0.1")
    set_key(config, "data.parts.velocity", "150")
    assert config["data"] == {"parts": {"lensing": "0.1", "velocity": "150"}}


@pytest.mark.parametrize(
    ("value", "hint", "read"),
    [
        ("True", bool, True),
        ("3", int, 3),
        (3, float, 3.0),
        ("3", str, "3"),
        ("[1, 2.5]", tuple[float, ...], (1.0, 2.5)),
        ([1, 2], list[int], [1, 2]),
        ("[1, 'b']", tuple[int, str], (1, "b")),
        ("0.5", float | None, 0.5),
        ("low", Literal["low", "high"], "low"),
        ({"a": "2"}, Mapping[str, int], {"a": 2}),
        ("{a = 2}", dict[str, int], {"a": 2}),
        ({"lensing_per_z": "0.1"}, MagnitudeErrorParts | None, MagnitudeErrorParts(lensing_per_z=0.1)),
        ({"coherent_scatter": {"sdss": 0.1}}, MagnitudeErrorParts, MagnitudeErrorParts(coherent_scatter={"sdss": 0.1})),
        (np.ones(1), np.ndarray, np.ones(1)),
        ("anything", Any, "anything"),
    ],
)
def test_values_are_read_as_they_are_annotated(value, hint, read):
    found = read_value(value, hint, "model.x")
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("maybe", bool, "true or false"),
        (1, bool, "true or false"),
        ("inf", int, "a whole number"),
        ("[1]", tuple[int, str], "a list, each entry a whole number"),
        ("middle", Literal["low", "high"], "one of 'low', 'high'"),
        ({"a": "x"}, Mapping[str, float], "a table, each entry a number"),
        (
            {"lens": 1},
            MagnitudeErrorParts | None,
            "a table of coherent_scatter, lensing_per_z, sigma_v_km_s or nothing",
        ),
        (3, np.ndarray, "ndarray"),
    ],
)
def test_values_of_another_kind_are_refused(value, hint, expected):
    with pytest.raises(ConfigError) as caught:
        read_value(value, hint, "model.x")
    assert str(caught.value) == f"model.x: expected {expected}, found {value!r}."


def test_merged_leaves_the_original_alone_and_checks_each_key():
    config = defaults()
    result = merged(config, {"sample": {"seed": 3}, "prior": {"w0": "Normal(-1, 1)"}}, "run.toml")
    assert config == defaults()
    assert result["sample"] == defaults()["sample"] | {"seed": 3}
    assert result["prior"] == {"w0": "Normal(-1, 1)"}
    with pytest.raises(ConfigError, match=r"^run\.toml: sample\.sed .did you mean 'seed'"):
        merged(config, {"sample": {"sed": 3}}, "run.toml")
    with pytest.raises(ConfigError, match=r"^run\.toml: seed: expected a table such as \[seed\], found 3"):
        merged(config, {"seed": 3}, "run.toml")
    with pytest.raises(ConfigError, match=r"^run\.toml: smaple\.seed .did you mean 'sample'"):
        merged(config, {"smaple": {"seed": 3}}, "run.toml")


def test_read_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps({"sample": {"seed": 3}, "prior": {"σ": "HalfNormal(1)"}}), encoding="utf-8")
    assert read_toml(str(path)) == {"sample": {"seed": 3}, "prior": {"σ": "HalfNormal(1)"}}


def test_toml_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: expected a TOML file that can be read; found: No such"):
        read_toml(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match=r"expected a TOML file that can be read; found: Is a directory"):
        read_toml(str(tmp_path))
    for content in (b"{'json': 1}", b"\xff\xfe\x00", b"[sample]\nseed = 1\nseed = 2"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.toml: expected TOML, found something else"):
            read_toml(str(tmp_path / "bad.toml"))
