"""Commands of the command line, run in the process of the tests."""

from hbm_jax import cli


def run(capsys, *arguments):
    """Run a command; return its exit status, standard output and standard error."""
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    return status, *capsys.readouterr()


def refused(capsys, *arguments, one_line=True):
    """Run a command with bad input; return its error message."""
    status, _, err = run(capsys, *arguments)
    assert status == cli.BAD_INPUT
    assert err.startswith("hbm-jax: ")
    assert not one_line or err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


class NotSampled(ValueError):
    """Raised in place of sampling."""


def handed_to_the_sampler(capsys, monkeypatch, *arguments):
    """Run a `fit` command up to the sampler; return the program, the data and the options of `sample`."""
    seen = []

    def sample(program, *args, **options):
        seen.append((program, args[0], options))
        raise NotSampled("not sampled")

    monkeypatch.setattr("hbm_jax.inference.sample", sample)
    assert refused(capsys, *arguments, one_line=False).endswith("hbm-jax: not sampled\n")
    return seen[0]
