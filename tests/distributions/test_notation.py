"""Priors as text: what is written is read back, and what is not a distribution of numbers is refused by name."""

import numpy as np
import numpyro.distributions as dist
import pytest

from hbm_jax.distributions import distribution_from_text, distribution_to_text
from hbm_jax.distributions.notation import _distributions

WRITABLE = [
    dist.Normal(0.1, 1e-3),
    dist.Uniform(-3, 0),
    dist.HalfNormal(0.3),
    dist.LogUniform(1e-3, 10.0),
    dist.LogNormal(0.0, 0.5),
    dist.TruncatedNormal(0.3, 0.1, low=0.0),
    dist.TruncatedNormal(0.3, 0.1, high=1.0),
    dist.TruncatedNormal(0.3, 0.1, low=0.0, high=1.0),
    dist.Beta(2.0, 3.0),
    dist.Gamma(2.0, 3.0),
    dist.InverseGamma(2.0, 3.0),
    dist.StudentT(3.0, 0.1, 2.0),
    dist.Exponential(1 / 3),
    dist.Cauchy(0.0, 1.0),
    dist.HalfCauchy(1.0),
]


@pytest.mark.parametrize("prior", WRITABLE, ids=distribution_to_text)
def test_what_is_written_is_read_back(prior):
    text = distribution_to_text(prior)
    again = distribution_from_text(text)
    assert type(again) is type(prior)
    assert distribution_to_text(again) == text


@pytest.mark.parametrize("value", [70.0, -1, 1e-30, 0.1 + 0.2, np.float64(1 / 3), np.float32(0.1)])
def test_numbers_come_back_exactly(value):
    number = distribution_from_text(distribution_to_text(value))
    assert type(number) is float
    assert number == float(value)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Normal(0, 1)", dist.Normal(0, 1)),
        ("  Normal( loc = 0,scale=1 ) ", dist.Normal(0, 1)),
        ("Uniform(high=+2e0, low=-3)", dist.Uniform(-3, 2)),
        ("TruncatedNormal(0, 1, low=0)", dist.TruncatedNormal(0, 1, low=0)),
    ],
)
def test_ways_of_writing(text, same):
    found = distribution_from_text(text)
    assert type(found) is type(same)
    assert distribution_to_text(found) == distribution_to_text(same)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("Normal(0, 1", "cannot be read"),
        ("a = 1", "cannot be read"),
        ("\x00", "cannot be read"),
        ("-" * 20_000 + "1", "cannot be read"),
        ("Norml(0, 1)", "'Norml' is not a NumPyro distribution (did you mean 'Normal'?)"),
        ("open(0)", "'open' is not a NumPyro distribution"),
        ("Distribution(0)", "'Distribution' is not a NumPyro distribution"),
        ("dist.Normal(0, 1)", "found 'dist.Normal(0, 1)'."),
        ("HalfNormal(1)(2)", "found 'HalfNormal(1)(2)'."),
        ("Normal", "'Normal' is not a number"),
        ("nan", "'nan' is not a number"),
        ("1j", "'1j' is not a number"),
        ("True", "'True' is not a number"),
        ("None", "'None' is not a number"),
        ("'3'", "is not a number"),
        ("1e999", "'1e309' is not a number"),
        ("Normal(0, 1e999)", "'1e309' is not a number"),
        ("LKJ(1000)", "which is a distribution of 1000000 numbers, not of one"),
        ("1" + "0" * 400, "is not a number"),
        ("[1, 2]", "'[1, 2]' is not a number"),
        ("Normal(0, x)", "'x' is not a number"),
        ("Normal([0, 1], 1)", "'[0, 1]' is not a number"),
        ("Normal(*[0, 1])", "is not a number"),
        ("Normal(**{'loc': 0})", "is not a number"),
        ("Normal(0, -1)", "NumPyro refuses...scale"),
        ("Normal(0, 1, 2, 3)", "NumPyro refuses"),
        ("Normal(mean=0, scale=1)", "NumPyro refuses...mean"),
    ],
)
def test_anything_else_is_refused(text, message):
    with pytest.raises(
        ValueError, match=r"^prior\.alpha: expected a number or a scalar NumPyro distribution"
    ) as caught:
        distribution_from_text(text, "prior.alpha")
    assert all(part in str(caught.value) for part in message.split("..."))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('pathlib').Path({path!r}).touch()",
        "Normal(open({path!r}, 'w'), 1)",
        "Normal(0, (lambda: open({path!r}, 'w'))())",
        "Normal(0, 1) if open({path!r}, 'w') else 0",
        "[open({path!r}, 'w') for _ in (1,)]",
        "exec('open({path!r}, \"w\")')",
    ],
)
def test_text_is_never_run(text, tmp_path):
    trap = tmp_path / "trap"
    with pytest.raises(ValueError, match="expected a number"):
        distribution_from_text(text.format(path=str(trap)))
    assert not trap.exists()


@pytest.mark.parametrize("num_arguments", range(5))
def test_every_name_of_numpyro_gives_a_distribution_or_a_value_error(num_arguments):
    for name in _distributions():
        text = f"{name}({', '.join('1234'[:num_arguments])})"
        try:
            prior = distribution_from_text(text)
        except ValueError as error:
            assert text in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert isinstance(prior, dist.Distribution)


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(np.zeros(2), 1.0),
        dist.Normal(0, 1).expand([3]),
        dist.Normal(0, 1).mask(False),
        dist.TruncatedCauchy(0.0, 1.0, low=0.0),
        dist.TransformedDistribution(dist.Normal(0, 1), dist.transforms.ExpTransform()),
        dist.ImproperUniform(dist.constraints.real, (), ()),
        dist.MixtureGeneral(dist.Categorical(np.ones(2) / 2), [dist.Normal(0, 1), dist.Normal(2, 1)]),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_what_text_cannot_say_is_refused(prior):
    with pytest.raises(ValueError, match=f"cannot be written as text.*found {type(prior).__name__}"):
        distribution_to_text(prior)
