"""Table, figure and numbers of a run of the suite."""

import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path

import result
from result import MAX_R_HAT

FAR = 4.0  # standard errors between posterior means, beyond which they are not the same posterior
OURS = "hbm_jax"


def one_line(row) -> str:
    """Return a line with the result of one contestant."""
    head = f"{row.system:12s} {row.contestant:24s} seed {row.seed}: "
    if row.failure:
        return head + row.failure
    s = row.seconds
    return head + (
        f"compile {s['compile']:.1f} s, warm-up {s['warmup']:.2f} s, sampling {s['sampling']:.2f} s, ESS {row.ess:.0f} "
        f"({row.slowest}), R-hat {row.r_hat:.3f}, {row.rate:.3g} a second"
    )


def apart(row, reference) -> float:
    """Largest distance between posterior means, in combined standard errors."""
    pairs = [(row.means[name], reference.means[name]) for name in reference.means]
    return max(abs(a - b) / math.hypot(da, db) for (a, da), (b, db) in pairs)


class Summary:
    """Medians over the rounds of one contestant of one system."""

    def __init__(self, rows, reference):
        self.rows = [row for row in rows if not row.failure]
        self.name = rows[0].contestant
        self.failure = rows[0].failure if not self.rows else ""
        if self.failure:
            return
        self.converged = all(row.converged for row in self.rows)
        self.apart = max((apart(row, reference) for row in self.rows), default=math.nan) if reference else math.nan
        self.rate, self.spread = self._median("rate"), self._spread("rate")
        self.per_gradient = self._median("per_gradient")
        self.to_verdict = self._median("to_verdict")
        self.memory = max(row.memory for row in self.rows)
        self.r_hat = max(row.r_hat for row in self.rows)
        self.divergences = sum(row.divergences for row in self.rows)
        self.seconds = {k: statistics.median(r.seconds[k] for r in self.rows) for k in self.rows[0].seconds}
        # A program of Stan is compiled in the first round only.
        self.seconds["compile"] = max(row.seconds["compile"] for row in self.rows)
        self.verdict_seconds = self._median("verdict_seconds")

    def _median(self, what):
        known = [value for value in (getattr(row, what) for row in self.rows) if math.isfinite(value)]
        return statistics.median(known) if known else math.nan

    def _spread(self, what):
        values = [getattr(row, what) for row in self.rows]
        return min(values), max(values)

    @property
    def speed(self) -> bool:
        """True if the contestant converged, so that its speed is compared."""
        return not self.failure and self.converged and self.apart < FAR


def summaries(rows, system) -> list[Summary]:
    """One for each contestant of a system, ours first, then engine by engine."""
    mine = [row for row in rows if row.system == system]
    reference = next((row for row in mine if row.contestant == OURS and not row.failure), None)
    order = (OURS, "NumPyro", "BlackJAX", "PyMC", "Stan")
    names = sorted(
        dict.fromkeys(row.contestant for row in mine), key=lambda name: (order.index(name.split(",")[0]), name)
    )
    return [Summary([row for row in mine if row.contestant == name], reference) for name in names]


def best(found, start, *, ours=False):
    """Fastest whose name begins so, of those whose speed counts."""
    counting = [s for s in found if s.speed and s.name.startswith(start) and s.name.startswith(OURS) == ours]
    return max(counting, key=lambda s: s.rate, default=None)


def ratios(found) -> dict:
    """Return the ratio of our effective draws per second to those of the best parametrisation of each other engine."""
    mine = best(found, OURS, ours=True)
    out = {}
    for engine in ("Stan", "PyMC", "NumPyro", "BlackJAX"):
        theirs = best(found, engine)
        out[engine] = (mine.rate / theirs.rate, theirs.to_verdict / mine.to_verdict) if mine and theirs else None
    return out


def text(rows, titles, about, kernels) -> str:
    """Write the whole table; ``about`` says of each system when, where and how it was run."""
    lines = [
        "Effective draws of the slowest parameter of the population (the smaller of bulk and tail), two chains.",
        "ESS/s are medians over rounds, with the smallest and largest. 'to 400': seconds to 400 effective draws,",
        "compiling and warming up counted. 'verdict': of hbm_jax.sample as it ends by itself. 'apart': largest",
        f"distance of posterior means from hbm_jax's, in standard errors; up to {FAR:.0f} is the same posterior.",
        f"A * marks what did not converge (R-hat of {MAX_R_HAT}, or fewer than {result.MIN_ESS} effective draws): its",
        "speed does not count.",
    ]
    for system, title in titles.items():
        own = about[system]
        rounds = len({row.seed for row in rows if row.system == system})
        lines += [
            "",
            title,
            f"{own['date']}; {own['machine']}; {own['device']}; {rounds} round(s)",
            ", ".join(f"{name} {number}" for name, number in own["versions"].items()),
            own["settings"],
            "",
        ]
        head = (
            f"{'':26s}{'ESS/s':>9s}{'(from':>9s}{'to)':>9s}{'ESS/grad':>9s}{'compile':>8s}{'warm-up':>8s}{'to 400':>8s}"
            f"{'verdict':>8s}{'MiB':>6s}{'R-hat':>7s}{'div.':>5s}{'apart':>6s}"
        )
        lines.append(head)
        found = summaries(rows, system)
        for s in found:
            if s.failure:
                lines.append(f"{s.name:26s}  {s.failure[:100]}")
                continue
            verdict = f"{s.verdict_seconds:.1f}" if math.isfinite(s.verdict_seconds) else ""
            lines.append(
                f"{s.name + ('' if s.converged else ' *'):26s}{s.rate:9.3g}{s.spread[0]:9.3g}{s.spread[1]:9.3g}"
                f"{s.per_gradient:9.2g}{s.seconds['compile']:8.1f}{s.seconds['warmup']:8.2f}{s.to_verdict:8.1f}{verdict:>8s}"
                f"{s.memory / 2**20:6.0f}{s.r_hat:7.3f}{s.divergences:5d}{s.apart:6.1f}"
            )
            notes = dict.fromkeys(row.note for row in s.rows if row.note and row.note != "compiled before")
            lines += [f"{'':26s}  {note}" for note in notes]
        parts = [
            f"{engine} {pair[0]:.3g} ({pair[1]:.2g})" if pair else f"{engine}: no speed that counts"
            for engine, pair in ratios(found).items()
        ]
        lines.append(
            f"times the ESS/s of the better form of each (and times as fast to 400, all counted): {', '.join(parts)}"
        )
    return "\n".join(lines + (["", kernels] if kernels else [])) + "\n"


def markdown(rows, titles) -> str:
    """Ratios only, as a table for the README."""
    lines = ["| | Stan | PyMC + nutpie | NumPyro | BlackJAX |", "| --- | --- | --- | --- | --- |"]
    for system, title in titles.items():
        found = summaries(rows, system)
        cells = []
        for engine, pair in ratios(found).items():
            failures = [s.failure for s in found if s.name.startswith(f"{engine},") and s.failure]
            cells.append(f"{pair[0]:.3g}" if pair else failures[0] if failures else "did not converge")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(rows, titles, path: Path) -> None:
    """Effective draws a second of every contestant, a panel for each system."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    from hbm_jax.plotting.style import to_png

    colours = {OURS: "#0072B2", "NumPyro": "#E69F00", "BlackJAX": "#CC79A7", "PyMC": "#009E73", "Stan": "#D55E00"}
    fig, axes = plt.subplots(len(titles), 1, figsize=(8, 2.3 * len(titles)), squeeze=False, layout="constrained")
    for ax, (system, title) in zip(axes[:, 0], titles.items(), strict=True):
        found = summaries(rows, system)[::-1]
        for place, s in enumerate(found):
            if s.failure:
                ax.text(
                    0.01,
                    place,
                    s.failure[:70],
                    transform=ax.get_yaxis_transform(),
                    va="center",
                    fontsize=7,
                    color="0.4",
                )
                continue
            colour = colours[s.name.split(",")[0]]
            ax.plot(s.spread, (place, place), color=colour, lw=2)
            ax.plot(s.rate, place, "o", color=colour, mfc=colour if s.speed else "white", ms=7)
            ax.text(
                s.rate,
                place + 0.22,
                f"{float(f'{s.rate:.2g}'):,g}",
                ha="center",
                va="bottom",
                fontsize=7,
                color="0.25",
            )
        ax.set_yticks(
            range(len(found)),
            [s.name + ("" if s.speed or s.failure else " (not converged)") for s in found],
            fontsize=8,
        )
        ax.set_xscale("log")
        ax.set_ylim(-0.6, len(found) - 0.2)
        ax.set_title(title, loc="left", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="x", color="0.9")
    axes[-1, 0].set_xlabel("effective draws of the slowest parameter, per second of sampling")
    path.write_bytes(to_png(fig, dpi=110))
    plt.close(fig)


def _read(folder: Path) -> dict:
    path = folder / "suite.json"
    if path.exists():
        return json.loads(path.read_text())
    return {"about": {}, "titles": {}, "kernels": "", "rows": []}


def keep(system, title, rows, about, folder: Path) -> None:
    """Put results beside those that a folder holds already, in place of older ones of the same contestants."""
    found = _read(folder)
    again = {(row.system, row.contestant) for row in rows}
    found["rows"] = [row for row in found["rows"] if (row["system"], row["contestant"]) not in again]
    found["rows"] += [asdict(row) for row in rows]
    found["titles"][system] = title
    found["about"][system] = about
    _write(found, folder)


def keep_kernels(kernels, folder: Path) -> None:
    """Put the comparison of kernels into a folder."""
    _write(_read(folder) | {"kernels": kernels}, folder)


def render(path: Path) -> None:
    """Write text, table and figure again from the numbers of a run."""
    _write(_read(path.parent), path.parent)


def _write(found, folder: Path) -> None:
    rows = [result.Row(**row) for row in found["rows"]]
    (folder / "suite.json").write_text(json.dumps(found, indent=1))
    (folder / "suite.txt").write_text(text(rows, found["titles"], found["about"], found["kernels"]))
    (folder / "suite.md").write_text(markdown(rows, found["titles"]))
    if rows:
        figure(rows, found["titles"], folder / "suite.png")
