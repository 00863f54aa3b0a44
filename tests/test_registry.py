"""A second domain, of straight lines, in the same house: everything the surfaces do with it comes from its entry."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
import numpyro
import pytest
from jax.tree_util import register_dataclass
from numpyro import distributions as dist
from scipy import stats

import hbm_jax as hbm
from hbm_jax import cli
from hbm_jax.cli import commands, inputs
from hbm_jax.configuration import ConfigError
from hbm_jax.data import read_table
from hbm_jax.data.protocol import Container
from hbm_jax.models.base import PopulationModel
from hbm_jax.models.priors import sample_prior
from hbm_jax.registry import MODELS, Entry
from hbm_jax.validation import float_vector


@register_dataclass
@dataclass(frozen=True, eq=False)
class Points:
    name: tuple[str, ...] = field(metadata={"static": True})
    x: Any
    y: Any

    def __len__(self):
        return len(self.name)

    def describe(self):
        return f"{len(self)} points."

    def subset(self, rows):
        return Points(tuple(np.array(self.name)[rows]), self.x[rows], self.y[rows])

    def replace_observations(self, y):
        return dataclasses.replace(self, y=np.asarray(y))

    def to_dict(self):
        return {"name": np.array(self.name), "x": self.x, "y": self.y}

    @classmethod
    def from_dict(cls, stored):
        return cls(tuple(str(n) for n in stored["name"]), np.array(stored["x"]), np.array(stored["y"]))

    def to_table(self):
        from astropy.table import Table

        return Table({"name": list(self.name), "x": self.x, "y": self.y})


@dataclass(frozen=True)
class Cut:
    low: float = -np.inf
    high: float = np.inf


def read_points(source, *, columns=None, scale: float = 1.0, cut: Cut | None = None) -> Points:
    table = read_table(source)
    x, y = (float_vector(table.values((columns or {}).get(name, name), ""), name) for name in ("x", "y"))
    kept = slice(None) if cut is None else (x > cut.low) & (x < cut.high)
    return Points(tuple(f"p{i}" for i in range(len(x[kept]))), x[kept], scale * y[kept])


@register_dataclass
@dataclass(frozen=True, eq=False)
class BoundPoints:
    powers: Any
    y: Any


@dataclass(frozen=True, kw_only=True)
class Line(PopulationModel):
    Bound = BoundPoints
    dims = {"y": ["point"]}  # noqa: RUF012
    units = {"slope": "keV"}  # noqa: RUF012
    description = "Lines"

    degree: int = field(default=1, metadata={"help": "of the polynomial"})
    centre: float = 0.0
    knots: tuple[float, ...] = field(default_factory=tuple)
    noise: Literal["normal", "cauchy"] = "normal"
    through_origin: bool = False

    @property
    def default_priors(self):
        offset = {} if self.through_origin else {"offset": dist.Normal(0.0, 5.0)}
        return {"slope": dist.Normal(0.0, 5.0)} | offset | {"sigma": dist.HalfNormal(1.0)}

    def bind(self, data):
        return BoundPoints((np.asarray(data.x) - self.centre) ** self.degree, np.asarray(data.y))

    def program(self, bound, observed, recover):
        p = {name: sample_prior(name, prior) for name, prior in self.all_priors.items()}
        mean = p["slope"] * bound.powers + p.get("offset", 0.0)
        with numpyro.plate("point", len(bound.y)):
            numpyro.sample("y", dist.Normal(mean, p["sigma"]), obs=bound.y if observed else None)

    def coords(self, data):
        return {"point": list(data.name)}


def line_figure(fit):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot(fit.data.x, fit.data.y, ".")
    return figure


@pytest.fixture
def points_csv(tmp_path):
    rng = np.random.default_rng(0)
    x = np.linspace(-1.0, 1.0, 20)
    path = tmp_path / "points.csv"
    Points(tuple("p" * 20), x, 2.0 * x + 1.0 + 0.1 * rng.normal(size=20)).to_table().write(path)
    return path


@pytest.fixture(autouse=True)
def lines(monkeypatch):
    entry = Entry(Line, Points, read_points, figures=lambda fit: {"line": ("The points & the line.", line_figure)})
    monkeypatch.setitem(MODELS, "line", entry)
    return entry


def test_the_toy_keeps_the_protocol_of_containers():
    assert isinstance(Points(("a",), np.ones(1), np.ones(1)), Container)


def test_options_are_checked_against_their_literals():
    with pytest.raises(ValueError, match=r"Unknown noise of Line 'caushy' \(did you mean 'cauchy'\?\)"):
        Line(noise="caushy")

    @dataclass(frozen=True, kw_only=True)
    class Wider(Line):
        noise: Literal["normal", "cauchy"] | dist.Distribution = "normal"
        band: Literal["g", "r"] | None = None

    assert Wider(noise=dist.Cauchy()).band is None
    for option in ({"noise": "caushy"}, {"band": "gr"}):
        with pytest.raises(ValueError, match="expected one of"):
            Wider(**option)


def test_priors_are_completed_once_in_double_precision_also_within_a_trace():
    def built(_):
        model = Line(priors={"slope": "TruncatedNormal(0.1, 0.3, low=-0.7)"})
        made.append(model)
        return model.all_priors["slope"].log_prob(0.2)

    made = []
    jax.jit(built)(0.0)
    (model,) = made
    prior = model.all_priors["slope"]
    assert prior is model.all_priors["slope"]
    with jax.enable_x64(True):
        expected = stats.truncnorm(-0.8 / 0.3, np.inf, 0.1, 0.3).logpdf(0.2)
        assert float(prior.log_prob(0.2)) == pytest.approx(expected, rel=1e-12)


def test_options_are_the_fields_with_their_types(lines):
    assert list(lines.options) == ["degree", "centre", "knots", "noise", "through_origin"]
    options = {"degree": "2", "centre": 1, "knots": "[1, 2]", "noise": "cauchy", "through_origin": "true"}
    model = lines.build(options, {"slope": "Normal(0, 1)"})
    assert (model.degree, model.centre, model.knots, model.noise, model.through_origin) == (
        2,
        1.0,
        (1.0, 2.0),
        "cauchy",
        True,
    )
    assert lines.build({}, {}).knots == ()
    for name, value, expected in [("degree", "1.5", "a whole number"), ("noise", "flat", "one of 'normal', 'cauchy'")]:
        with pytest.raises(ConfigError, match=f"model.{name}: expected {expected}, found '{value}'"):
            lines.build({name: value}, {})
    with pytest.raises(ValueError, match=r"Unknown option of the model Line 'degre' .did you mean 'degree'\?"):
        lines.build({"degre": 1}, {})


def test_readers_take_their_own_options(lines, points_csv):
    assert list(lines.reader_options) == ["scale", "cut"]
    section = {"source": str(points_csv), "scale": "10", "cut": {"low": "0"}}
    data = lines.load(section, {})
    assert len(data) == 10
    np.testing.assert_allclose(data.y, 10 * lines.load({"source": str(points_csv)}, {}).y[10:])
    with pytest.raises(ValueError, match=r"Unknown option of \[data\] 'scal' .did you mean 'scale'\?"):
        lines.load(section | {"scal": 3}, {})
    with pytest.raises(ConfigError, match=r"data\.scale: expected a number, found 'big'"):
        lines.load(section | {"scale": "big"}, {})
    with pytest.raises(ConfigError, match=r"data: expected a file, as in --data FILE, found none"):
        lines.load({}, {})
    with pytest.raises(ConfigError, match=r"data: expected a file, found 'jla', which does not exist"):
        lines.load({"source": "jla"}, {})


def run(capsys, *arguments):
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    return status, *capsys.readouterr()


@pytest.mark.long
def test_from_the_command_line(points_csv, tmp_path, capsys):
    folder = tmp_path / "run"
    status, out, err = run(
        capsys, "fit", "line", "--data", points_csv, "--num-samples", "30", "--num-warmup", "50", "--num-chains", "2",
        "--no-through-origin", "--degree", "1", "--set", "data.cut.low=-0.5", "--set", "prior.sigma=HalfNormal(2)",
        "--quiet", "--out", folder,
    )  # fmt: skip
    assert status in (cli.USABLE, cli.MISFIT, cli.NOT_USABLE), err
    assert out.startswith("Lines\n15 points.\n")
    assert {path.name for path in (folder / "figures").iterdir()} == {"line.png", "corner.png", "trace.png"}
    assert "The points &amp; the line." in (folder / "report.html").read_text()
    fit = hbm.load(folder)
    assert isinstance(fit.program, Line)
    assert fit.units == {"slope": "keV"}
    assert fit.program.to_config()["priors"]["sigma"] == "HalfNormal(scale=2.0)"
    # A class of a module outside of hbm_jax is stored under its full name, by which the registry knows it.
    assert fit.run["config"]["class"] == "test_registry.Line"
    # And again, from the file it wrote, and from where it stands.
    config = inputs.configuration_of(commands.parsed(["fit", "--config", str(folder / "config.toml")])[1])
    model, data = inputs.model_and_data(config)
    assert model.to_config() == fit.program.to_config()
    np.testing.assert_array_equal(data.x, fit.data.x)
    status, out, err = run(capsys, "resume", folder, "--num-samples", "40", "--quiet", "--no-report")
    assert hbm.load(folder).posterior.sizes["draw"] == 40, err


def test_simulated(points_csv, tmp_path, capsys):
    out = tmp_path / "simulated.ecsv"
    status, text, err = run(
        capsys, "simulate", "line", "--design", points_csv, "--set", "truth.slope=3", "--set", "truth.sigma=0.001",
        "--set", "truth.offset=0", "--out", out,
    )  # fmt: skip
    assert status == 0, err
    assert "slope = 3" in text
    back = read_points(out)
    np.testing.assert_allclose(back.y, 3 * back.x, atol=0.01)


def test_simulated_says_what_is_true():
    design = Points(("a", "b"), np.array([0.0, 1.0]), np.zeros(2))
    data, truth = Line(priors={"sigma": 0.5}).simulate(jax.random.key(0), design, {"slope": 2.0})
    assert {name: float(value) for name, value in truth.items() if name != "offset"} == {"slope": 2.0, "sigma": 0.5}
    assert data.y.shape == (2,)
    assert json.dumps(Line().to_config())
    with pytest.raises(ValueError, match="no parameter 'slop'"):
        Line().simulate(jax.random.key(0), design, {"slop": 2.0})
