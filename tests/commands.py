"""Commands run in this process, for the tests of the command line."""

from hbm_jax import cli


def run(capsys, *arguments):
    """Exit status, standard output and error of a command."""
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    return status, *capsys.readouterr()


def refused(capsys, *arguments, one_line=True):
    """Run what must be refused; returns the paragraph it says."""
    status, _, err = run(capsys, *arguments)
    assert status == cli.BAD_INPUT
    assert err.startswith("hbm-jax: ")
    assert not one_line or err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


class NotSampled(ValueError):
    """Raised in place of sampling."""


def handed_to_the_sampler(capsys, monkeypatch, *arguments):
    """Program, data and options that a `fit` command hands to the sampler, which is not run."""
    seen = []

    def sample(program, *args, **options):
        seen.append((program, args[0], options))
        raise NotSampled("not sampled")

    monkeypatch.setattr("hbm_jax.inference.sample", sample)
    assert refused(capsys, *arguments, one_line=False).endswith("hbm-jax: not sampled\n")
    return seen[0]
