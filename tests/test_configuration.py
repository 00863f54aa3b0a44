"""Keys and values of a configuration, from flags, --set and TOML."""

import inspect

import pytest
import tomli_w

from hbm_jax.configuration import FIXED, OPEN, ConfigError, defaults, merged, read_toml, set_key
from hbm_jax.inference import sample


def test_defaults_are_fresh_each_time():
    first = defaults()
    first["sample"]["seed"] = 5
    first["prior"]["w0"] = "Normal(0, 1)"
    assert defaults()["sample"]["seed"] == 0
    assert defaults()["prior"] == {}
    assert set(defaults()) == {*FIXED, *OPEN}


def test_defaults_are_those_of_sample():
    parameters = inspect.signature(sample).parameters
    for name, value in FIXED["sample"].items():
        assert parameters[name].default == value, name


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
        ("model.mass_step", "False", False),
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
        ("sampel.seed", 1, r"sampel\.seed: expected SECTION\.NAME with SECTION one of .* Did you mean 'sample'\?"),
        ("priors.w0", 1, "Did you mean 'prior'"),
        ("seed", 1, r"seed: expected SECTION\.NAME"),
        ("sample.", 1, r"expected SECTION\.NAME"),
        (".seed", 1, r"expected SECTION\.NAME"),
        ("sample.num_chain", 1, r"sample\.num_chain: expected one of .* Did you mean 'num_chains'\?"),
        ("data.file", "a", r"data\.file: expected one of data\.source"),
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


def test_merged_leaves_the_original_alone_and_checks_each_key():
    config = defaults()
    result = merged(config, {"sample": {"seed": 3}, "prior": {"w0": "Normal(-1, 1)"}}, "run.toml")
    assert config == defaults()
    assert result["sample"] == FIXED["sample"] | {"seed": 3}
    assert result["prior"] == {"w0": "Normal(-1, 1)"}
    with pytest.raises(ConfigError, match=r"^run\.toml: sample\.sed: .* Did you mean 'seed'"):
        merged(config, {"sample": {"sed": 3}}, "run.toml")
    with pytest.raises(ConfigError, match=r"^run\.toml: seed: expected a table such as \[seed\], found 3"):
        merged(config, {"seed": 3}, "run.toml")
    with pytest.raises(ConfigError, match=r"^run\.toml: smaple\.seed: .* Did you mean 'sample'"):
        merged(config, {"smaple": {"seed": 3}}, "run.toml")


def test_read_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps({"sample": {"seed": 3}, "prior": {"σ": "HalfNormal(1)"}}), encoding="utf-8")
    assert read_toml(str(path)) == {"sample": {"seed": 3}, "prior": {"σ": "HalfNormal(1)"}}


def test_toml_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: expected a TOML file, found none that can be read \(No such"):
        read_toml(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match=r"expected a TOML file, found none that can be read \(Is a directory"):
        read_toml(str(tmp_path))
    for content in (b"{'json': 1}", b"\xff\xfe\x00", b"[sample]\nseed = 1\nseed = 2"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.toml: expected TOML, found something else"):
            read_toml(str(tmp_path / "bad.toml"))
