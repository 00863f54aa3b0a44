"""Result of a check of the model, with conversion to and from text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

LEVELS = (2.5, 16.0, 84.0, 97.5)  # percentiles of the bands of replicates


@dataclass(frozen=True)
class ModelCheck:
    """Result of `check_model`.

    Attributes
    ----------
    passed : bool or None
        Whether the data look like draws from the fitted model; None if the model could not be checked.
    p_value : float
        Probability of data at least as unusual under the model, corrected for the number of statistics; NaN if the
        model could not be checked.
    sentence : str
        The result: what is unusual and where, or why the model could not be checked.
    remedies : tuple of str
        Changes of the model that may help if it fails.
    table : pandas.DataFrame
        One row per statistic, the most unusual first: ``site, level, residuals, kind, covariate, family``, and its
        ``score``, about a normal quantile under the model, not corrected for the number of statistics; ``distance``
        from the mean of the replicates in their standard deviations. Both are averaged over draws.
    num_draws, num_replicates : int
        Number of posterior draws, and of replicated data sets at each.
    worst : UnusualResiduals or None
        Residuals of the most unusual statistic, for `hbm_jax.plotting.model_residuals`.
    """

    passed: bool | None
    p_value: float
    sentence: str
    remedies: tuple[str, ...] = ()
    table: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    num_draws: int = 0
    num_replicates: int = 0
    worst: "UnusualResiduals | None" = field(default=None, repr=False)

    def __str__(self):
        return " ".join([f"{self.sentence}.", *([f"To try: {'; '.join(self.remedies)}."] if self.remedies else [])])

    def to_json(self) -> str:
        """Return the result as JSON text."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        worst = {name: _plain(value) for name, value in self.worst._asdict().items()} if self.worst else None
        return json.dumps(values | {"table": self.table.to_dict("list"), "worst": worst})

    @classmethod
    def from_json(cls, text: str) -> "ModelCheck":
        """Return the result stored by `to_json`.

        Raises
        ------
        TypeError, ValueError
            If the text does not represent a `ModelCheck`.
        """
        stored = json.loads(text)
        if not (
            isinstance(stored, dict)
            and isinstance(stored.get("sentence"), str)
            and isinstance(stored.get("p_value"), float)
            and stored.get("passed", 0) in (True, False, None)
            and all(isinstance(remedy, str) for remedy in stored.get("remedies", [0]))
        ):
            raise TypeError("expected a check of the model")
        worst = None
        if fields := stored.get("worst"):
            arrays: dict[str, Any] = {n: np.asarray(v) if isinstance(v, list) else v for n, v in fields.items()}
            worst = UnusualResiduals(**(arrays | {"labels": tuple(fields["labels"])}))
        table, remedies = pd.DataFrame(stored["table"]), tuple(stored["remedies"])
        return cls(**(stored | {"table": table, "remedies": remedies, "worst": worst}))


class UnusualResiduals(NamedTuple):
    """Residuals in which the most unusual statistic was found, at one posterior draw.

    Attributes
    ----------
    label, covariate : str
        Name of the residuals, and the covariate of the statistic or, if it has none, the most unusual covariate.
    residuals : array (element,)
        Residuals of the measured data.
    positions : array (element,)
        Values of the covariate, or codes of groups; empty if there is no covariate.
    labels : tuple of str
        Labels of the groups.
    bins : array (element,)
        Bin of the covariate, or group, of each element; -1 if it has none.
    mean_bands : array (4, bin)
        Percentiles `LEVELS` of the means of replicated residuals in each bin that has elements.
    edges : array (edge,)
        Edges of the bins of size.
    number_bands : array (4, edge - 1)
        Percentiles `LEVELS` of the numbers of replicated residuals in each bin; the outer bins include all beyond.
    """

    label: str
    covariate: str
    residuals: np.ndarray
    positions: np.ndarray
    labels: tuple[str, ...]
    bins: np.ndarray
    mean_bands: np.ndarray
    edges: np.ndarray
    number_bands: np.ndarray


def unusual_residuals(
    label: str,
    covariate: str,
    values: np.ndarray,
    positions: np.ndarray,
    labels: Sequence[str],
    bins: np.ndarray,
) -> UnusualResiduals:
    """Return measured residuals with the bands of their replicates.

    Parameters
    ----------
    label, covariate, positions, labels, bins
        As in `UnusualResiduals`.
    values : array (element, pool)
        Residuals; column 0 is the measured data.
    """
    mean_bands = np.zeros((len(LEVELS), 0))
    if len(bins):
        means = np.stack([values[bins == k, 1:].mean(axis=0) for k in np.unique(bins[bins >= 0])])
        mean_bands = np.percentile(means, LEVELS, axis=1)
    limit = float(np.ceil(max(4.0, min(8.0, np.abs(values[:, 0]).max()))))
    edges = np.linspace(-limit, limit, int(2 * limit) + 1)
    numbers = np.stack([numbers_by_size(column, edges) for column in values[:, 1:].T], axis=1)
    number_bands = np.percentile(numbers, LEVELS, axis=1)
    residuals = np.asarray(values[:, 0], float)
    return UnusualResiduals(
        label, covariate, residuals, positions, tuple(labels), bins, mean_bands, edges, number_bands
    )


def numbers_by_size(residuals: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the number of residuals in each bin between edges; the outer bins include all residuals beyond."""
    return np.histogram(np.clip(residuals, edges[0], edges[-1]), edges)[0]


def _plain(value: Any) -> Any:
    """Return an array or tuple as a list; anything else unchanged."""
    return np.asarray(value).tolist() if isinstance(value, np.ndarray | tuple) else value
