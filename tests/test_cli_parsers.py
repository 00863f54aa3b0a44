"""The parsers of the command line: one for each model, whose help, examples and options are its own."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import nbformat
import pytest
from commands import refused, run

from hbm_jax import cli
from hbm_jax.cli import commands, inputs
from hbm_jax.cli.arguments import REPLACED, configuration, model_parser
from hbm_jax.cli.exit_status import in_flags
from hbm_jax.configuration import ConfigError, sample_options
from hbm_jax.registry import MODELS, Entry
from hbm_jax.registry.entry import HELP

ROOT = Path(__file__).resolve().parents[1]
MODEL_COMMANDS = ("fit", "simulate", "calibrate")


def parsed(*words):
    return commands.parsed([str(word) for word in words])[1]


def configured(*words):
    return inputs.configuration_of(parsed(*words))


def built(*words):
    config = configured(*words)
    options = {name: value for name, value in config["model"].items() if name != "name"}
    return MODELS[config["model"]["name"]].build(options, config["prior"])


def page(capsys, *words):
    """The help that a command prints."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def flags_of(text):
    return set(re.findall(r"--[a-zA-Z][\w-]*", text.partition("examples:")[0]))


# Help


def test_the_first_page_says_what_to_type_first(capsys):
    text = page(capsys)
    assert "Begin with\n  hbm-jax fit normal --data eight-schools" in text
    assert all(f"\n  {name} " in text for name in commands.COMMANDS)
    assert "  relation  " in page(capsys, "fit")
    assert page(capsys, "fit", "--overwrite", "relation").startswith("usage: hbm-jax fit relation")


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_without_a_model_the_help_lists_the_models(command, capsys):
    text = page(capsys, command)
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    for name, entry in MODELS.items():
        assert f"  {name:<20}  {entry.summary}" in lines
        assert 20 < len(entry.summary) < 100
    assert f"'hbm-jax {command} MODEL --help' shows the options of a model" in text


BEST_FIT = ("--best-fit", "--level", "--band", "--redshift", "--profile", "--contour")


@pytest.mark.parametrize("name", list(MODELS))
def test_the_help_of_a_model_shows_its_options_and_no_others(name, capsys):
    entry, text = MODELS[name], page(capsys, "fit", name)
    own = {f"--{option.replace('_', '-')}" for option in (*entry.options, *entry.reader_options)}
    assert own <= flags_of(text)
    common = {f"--{option.replace('_', '-')}" for option in sample_options() if option != REPLACED}
    assert common <= flags_of(text)
    common |= {"--help", "--data", "--catalog", "--column", "--prior", "--set", "--config"}
    common |= {"--out", "--overwrite", "--quiet", "--no-report"}
    common |= set(BEST_FIT) if entry.best_fit is not None else set()
    negated = {flag for flag in flags_of(text) if flag.startswith("--no-") and f"--{flag[5:]}" in own | common}
    assert flags_of(text) <= own | common | negated
    for title in ("model:", "data:", "priors:", "sampling:", "output:", "examples:"):
        assert f"\n{title}\n" in text
    assert "Parameters" in text
    undescribed = [line for line in text.splitlines() if re.match(r"  --\S+( [A-Z_]+)?$", line)]
    following = {line: text.splitlines()[i + 1] for i, line in enumerate(text.splitlines()[:-1])}
    assert [line for line in undescribed if not following[line].startswith(" " * 20)] == []


@pytest.mark.parametrize("name", list(MODELS))
def test_every_option_has_a_help_text(name):
    entry = MODELS[name]
    metadata = {item.name: item.metadata for item in fields(entry.model)}
    assert [option for option in entry.options if not (metadata[option].get("help") or HELP.get(option))] == []


def test_the_help_lists_the_parameters_of_the_options_given(capsys):
    assert "  Om0 " in page(capsys, "fit", "supernova")
    assert "  w0 " not in page(capsys, "fit", "supernova")
    text = page(capsys, "fit", "supernova", "--cosmology", "wcdm", "--prior", "w0=Normal(-1, 0.25)")
    assert "  w0         Normal(loc=-1.0, scale=0.25)\n" in text
    assert "incomplete: model.spectrum: expected a value" in " ".join(page(capsys, "fit", "spectrum").split())


def test_calibrations_have_defaults_of_their_own(capsys):
    text = " ".join(page(capsys, "calibrate", "normal").split())
    assert "largest number of draws per chain (default: 1000)" in text
    assert "largest number of draws per chain (default: 20000)" in " ".join(page(capsys, "fit", "normal").split())
    assert "--max-tree-depth" not in text


def test_pages_without_a_model_import_neither_jax_nor_numpy():
    text = "import sys\nfrom hbm_jax import cli\ntry:\n    cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
    text += "print(sorted({'jax', 'numpy', 'numpyro', 'matplotlib'} & set(sys.modules)))"
    for words in (["--help"], ["fit", "--help"], ["report", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", text, *words], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]", words


# Examples, and the command lines of the documentation


def examples(command):
    for name, entry in MODELS.items():
        text = model_parser(command, name, entry).epilog
        yield from (line.strip() for line in text.splitlines()[1:])


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_examples_are_valid(command):
    shown = list(examples(command))
    assert len(shown) >= len(MODELS)
    for line in shown:
        words = shlex.split(line)
        assert words[0] == "hbm-jax"
        model = built(*words[1:])
        assert configured(*words[1:])["model"]["name"] == words[2], line
        assert model.description
    assert {line.split()[2] for line in shown if line.split()[1] == command} == set(MODELS)


@pytest.mark.long
def test_the_first_example_is_fitted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commands.FIRST in set(examples("fit"))
    short = ["--num-samples", "20", "--num-warmup", "20", "--num-chains", "2", "--quiet", "--no-report"]
    status, out, err = run(capsys, *shlex.split(commands.FIRST)[1:], *short)
    assert status in (cli.USABLE, cli.MISFIT, cli.NOT_USABLE), err
    assert "8 values in 8 groups" in out
    assert (tmp_path / "runs" / "schools" / "posterior.nc").exists()


def documented():
    """Every command line of README, pages and notebooks, but those of the package that is not installed here."""
    pages = [path for path in (ROOT / "docs").glob("*.md") if path.name != "another_package.md"]
    texts = [path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *pages]]
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in path.parts:
            texts += [cell.source for cell in nbformat.read(path, as_version=4).cells]
    for text in texts:
        for line in re.findall(r"^(?:\$ |%|!)?(hbm-jax \w.*)$", re.sub(r"\\\n\s*", "", text), re.MULTILINE):
            words = shlex.split(line.partition("   #")[0], comments=True)
            if "..." not in words and "|" not in words and "\n" not in line:
                yield words[1:]


def test_command_lines_of_the_documentation_are_valid():
    lines = list(documented())
    assert len(lines) > 30
    assert {line[0] for line in lines} >= {"fit", "resume", "simulate", "calibrate", "report", "absorption", "doctor"}
    for words in lines:
        if "--help" in words:
            with pytest.raises(SystemExit):
                commands.parsed([word.replace("MODEL", "normal") for word in words])
        elif words[0] not in MODEL_COMMANDS:
            commands.parsed(words)
        elif "--config" not in words:
            built(*words)


# Options


def test_advice_of_a_verdict_is_in_flags_that_exist():
    text = in_flags(
        "Take smaller steps (sampler=hbm_jax.NUTS(target_accept_prob=0.95)), or "
        "sampler=hbm_jax.NUTS(max_tree_depth=12). "
        'Sample in double precision (dtype="float64") with steps that vary (sampler=hbm_jax.WALNUTS()).'
    )
    assert text == (
        "Take smaller steps (--target-accept-prob 0.95), or --max-tree-depth 12. Sample in double precision "
        "(--dtype float64) with steps that vary (--sampler walnuts)."
    )
    flags = re.findall(r"--[a-z-]+ [\w.]*\w", text)
    arguments = parsed("fit", "relation", *" ".join(flags).split())
    sample = [
        getattr(arguments, f"sample.{name}") for name in ("target_accept_prob", "max_tree_depth", "dtype", "sampler")
    ]
    assert sample == ["0.95", "12", "float64", "walnuts"]


def test_options_of_one_name_have_the_type_of_their_model():
    assert built("fit", "relation", "--no-scatter").scatter is False
    assert built("fit", "golenetskii-counts", "--no-scatter").scatter is False
    assert built("fit", "supernova-correlated", "--scatter", "survey").scatter == "survey"
    assert built("fit", "spectrum", "--spectrum", "powerlaw", "--no-calibration").calibration is False
    assert built("fit", "golenetskii-counts", "--spectrum", "cutoff").spectrum == "cutoff"
    assert built("fit", "golenetskii", "--band", "[10, 1000]").band == (10.0, 1000.0)
    common = ["--common", "photon_index", "--common", "mw_nh", "--spectrum", "powerlaw * tbabs(mw)"]
    assert built("fit", "afterglow", *common).common == ("photon_index", "mw_nh")


@pytest.mark.parametrize("name", [name for name in MODELS if "leave_out" in MODELS[name].reader_options])
def test_every_name_that_is_left_out_counts(name):
    options = ["--leave-out", "A", "--leave-out", "B"]
    assert configured("fit", name, "--data", "x", *options)["data"]["leave_out"] == ["A", "B"]
    assert configured("fit", name, "--data", "x", "--leave-out", "bad")["data"]["leave_out"] == "bad"
    assert configured("fit", name, "--missing", "-9", "--missing=-999")["data"]["missing"] == ["-9", "-999"]


def test_a_list_of_one():
    given = ["fit", "normal-vectors", "--data", "stars.csv", "--components"]
    assert configured(*given, "ra")["data"]["components"] == ["ra"]
    assert configured(*given, "ra", "--components", "dec")["data"]["components"] == ["ra", "dec"]
    assert configured(*given, '["ra", "dec"]')["data"]["components"] == '["ra", "dec"]'


def test_tables_are_set_entry_by_entry():
    words = [
        "--column",
        "x=log_M",
        "--column",
        "y=L",
        "--prior",
        "alpha_mean=Normal(1, 0.1)",
        "--set",
        "columns.y=log_L",
    ]
    config = configured("fit", "relation", "--data", "a.csv", *words)
    assert config["columns"] == {"x": "log_M", "y": "log_L"}
    assert config["prior"] == {"alpha_mean": "Normal(1, 0.1)"}
    config = configured(
        "simulate", "afterglow", "--truth", "log10_n0=-7", "--population", "exposure=4000", "--num", "3"
    )
    assert config["truth"] == {"log10_n0": "-7"}
    assert config["population"] == {"exposure": "4000"}
    with pytest.raises(ConfigError, match=r"--prior w0: expected KEY=VALUE, found no '='"):
        configured("fit", "supernova", "--prior", "w0")


SIMULATED = {
    "afterglow": {"--num", "--rmf", "--arf"},
    "spectra": {"--num", "--rmf", "--arf"},
    "spectrum": {"--rmf", "--arf"},
    "golenetskii": {"--num"},
    "golenetskii-counts": {"--num"},
}


@pytest.mark.parametrize("name", list(MODELS))
def test_simulators_are_offered_what_they_take(name, capsys):
    text = page(capsys, "simulate", name)
    offered = flags_of(text) & {"--num", "--rmf", "--arf"}
    made_up = {"--num"} if MODELS[name].design is not None else set()  # a design of so many objects
    assert offered == SIMULATED.get(name, made_up)
    assert ("--population" in flags_of(text)) == (name in SIMULATED)
    assert ("--design" in flags_of(text)) == MODELS[name].takes_design
    for flag in {"--num", "--rmf", "--arf"} - offered:
        assert f"simulate {name}: unknown option {flag}" in refused(capsys, "simulate", name, flag, "3", "--out", "x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["fit", "supernova", "--cosmolgy", "wcdm"],
            r"unknown option --cosmolgy .did you mean --cosmology",
        ),
        (["fit", "supernova", "--pooling=partial"], r"unknown option --pooling.* See hbm-jax fit supernova --help"),
        (["fit", "supernova", "jla"], "fit supernova: expected options only, found 'jla'"),
        (
            ["fit", "spectrum", "--data", "a.pha", "b.pha"],
            r"found 'b.pha'; a list is written '\[0.5, 7\]'. Name further",
        ),
        (
            ["fit", "supernova", "--num", "3"],
            r"fit supernova: unknown option --num .did you mean --num-chains or --num-warmup",
        ),
        (["fit", "supernova", "--out"], "fit supernova: argument --out: expected one argument"),
        (["fit", "relation", "--num-chains", "two"], r"sample\.num_chains: expected a whole number, found 'two'"),
        (["calibrate", "normal", "--subset", "few"], "argument --subset: invalid int value: 'few'"),
        (["resume"], "resume: the following arguments are required: DIR"),
        (["resume", "runs/a", "--seed", "3"], "resume: unknown option --seed"),
        (["fti", "supernova"], r"Unknown command 'fti' .did you mean 'fit'\?.: expected one of 'fit', 'resume'"),
        (["--overwrite"], r"unknown option --overwrite.* See hbm-jax --help"),
        ([], "expected a command, one of fit, resume, .*, found none. See hbm-jax --help"),
        (["fit"], "No model named: expected one of supernova"),
        (["fit", "--cosmology", "wcdm"], "No model named: expected one of supernova"),
    ],
)
def test_what_cannot_be_parsed_is_one_line(words, message, capsys):
    assert re.search(message, refused(capsys, *words))


def test_the_model_is_named_first_or_last_or_in_the_configuration(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[model]\nname = "relation"\npooling = "none"\n')
    assert configured("fit", "--config", path)["model"] == {"name": "relation", "pooling": "none"}
    assert configured("fit", "--config", path, "--no-scatter")["model"]["scatter"] is False
    assert configured("fit", "normal", "--config", path)["model"]["name"] == "normal"
    assert configured("fit", "--set", "model.name=normal", "--sigma", "inferred")["model"]["name"] == "normal"
    assert configured("fit", "--data", "normal", "relation", "--overwrite")["model"]["name"] == "relation"
    assert configured("fit", "--data", "a.csv", "--overwrite", "relation")["model"]["name"] == "relation"


# Models of other shapes


@dataclass(frozen=True)
class Toy:
    shape: Literal["round", "flat"] | None = "round"
    colour: Literal["red"] | float = "red"
    seed: int = 3
    scale: float = field(default=1.0, metadata={"help": "in % of the size"})
    priors: dict = field(default_factory=dict)

    all_priors = {}  # noqa: RUF012


def read_toy(path, *, cut: Annotated[float, "largest x"] = 0.0, tags: Sequence[str] = (), flagged: bool = False) -> Any:
    return path


def test_a_parser_follows_types_and_annotations(capsys, monkeypatch):
    monkeypatch.setitem(MODELS, "toy", Entry(Toy, dict, read_toy))
    text = " ".join(page(capsys, "fit", "toy").split())
    assert "--shape {round,flat} (default: round)" in text
    assert "--colour {red}|NUMBER (default: red)" in text
    assert "--scale NUMBER in % of the size (default: 1.0)" in text
    assert "--cut NUMBER largest x (default: 0.0)" in text
    assert "--tags NAME" in text
    assert "--flagged, --no-flagged" in text
    assert "hbm-jax fit toy --data my.csv --out runs/toy" in text
    # A name that the command has itself is the command's; the option is set by its key.
    config = configured("fit", "toy", "--seed", "5", "--set", "model.seed=7", "--tags", "a")
    assert (config["sample"]["seed"], config["model"]["seed"], config["data"]["tags"]) == (5, "7", ["a"])
    with pytest.raises(ConfigError, match=r"model\.shape: expected one of 'round', 'flat'"):
        built("fit", "toy", "--shape", "square")
    assert configuration(model_parser("calibrate", "toy", MODELS["toy"]).parse([]))["model"] == {}
