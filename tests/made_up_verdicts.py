"""Fits with made-up verdicts, for tests of the report and of its display in a browser."""

import dataclasses

from stored_fits import load


def with_verdict(fit, **changes):
    return dataclasses.replace(fit, verdict=dataclasses.replace(fit.verdict, **changes))


def unusable():
    reasons = ("R-hat is 1.2 for a", "3 divergent")
    return with_verdict(load("own"), usable=False, reasons=reasons, advice=("Draw more.",), num_divergences=3)


def unwieldy():
    """Return a fit that is not usable, with words that are wider than the screen of a phone."""
    word, fit = "word_without_an_end_" * 15, unusable()
    names = [word + str(name) for name in fit.verdict.table.index]
    broad = with_verdict(
        fit, reasons=(word,), advice=(word,), notes=(word,), table=fit.verdict.table.set_axis(names, axis=0)
    )
    config = {"latents": word, "priors": {word: f"Normal({word})"}}
    return dataclasses.replace(
        broad, run=fit.run | {"description": word, "data": word, "stopped": word, "config": config}
    )
