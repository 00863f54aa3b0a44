"""Check of the model on published data: p-values, times of the check and of the fit, and unusual statistics.

    python benchmarks/model_verdict_data.py [--data ../shared/data] [--only NAME ...] [--out FILE]

Data sets that are not bundled (Union3.1, DES-Dovekie, some of the gallery) are read from ``--data`` and left out where
they are absent. Each row is written as soon as it is computed, and replaces the former row of that name.
"""

import argparse
import dataclasses
import functools
import textwrap
import time
import warnings
from pathlib import Path

import gallery
import numpy as np
from supernova_union import NONE, read_union

import hbm_jax as hbm

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "data"
KONUS_LIMITS = {"yonetoku": ("flux", -6.0), "amati": ("fluence", -5.4)}  # log10, below which few bursts were measured


def cut_relation():
    """300 points of slope 2, scatter 0.3 and errors 0.7 in an exponential x, of which only measured x > 1 are kept."""
    rng, num = np.random.default_rng(3), 300
    x = rng.exponential(1.0, 20 * num)
    measured_x = x + 0.7 * rng.normal(size=x.size)
    measured_y = 2.0 * x + 0.3 * rng.normal(size=x.size) + 0.2 * rng.normal(size=x.size)
    kept = np.flatnonzero(measured_x > 1.0)[:num]
    columns = {"x": measured_x[kept], "y": measured_y[kept], "sigma_x": np.full(num, 0.7), "sigma_y": np.full(num, 0.2)}
    return hbm.models.Relation(pooling="complete"), hbm.data.PointsInGroups.from_columns(columns)


def dovekie(folder: Path):
    """Return flat wCDM and the light curves of DES-Dovekie, or None; covariances of mB are those of x0."""
    path = folder / "supernovae" / "des_dovekie_salt3.csv.gz"
    if not path.exists():
        return None
    table = hbm.data.read_table(path)
    names = {
        "z_hel": "zHEL", "z_cmb": "zHD", "m_b": "mB", "sigma_m_b": "mBERR", "x1": "x1", "sigma_x1": "x1ERR", "c": "c",
        "sigma_c": "cERR", "log10_mass": "HOST_LOGMASS", "sigma_log10_mass": "HOST_LOGMASS_ERR", "cov_x1_c": "COV_x1_c",
    }  # fmt: skip
    columns = {ours: np.asarray(table.values(theirs), float) for ours, theirs in names.items()}
    x0 = np.asarray(table.values("x0"), float)
    columns |= {
        f"cov_m_{other}": -1.0857 / x0 * np.asarray(table.values(f"COV_{other}_x0"), float) for other in ("x1", "c")
    }
    columns |= {"name": table.values("CID", text=True), "survey": table.values("IDSURVEY", text=True)}
    data = hbm.data.read_supernovae(columns, missing=[-9.0, -999.0], leave_out="bad")
    return hbm.models.Supernova(cosmology="wcdm"), data


def union(folder: Path):
    """Return flat LCDM and the supernovae of Union3.1 without calibration offsets and bulk flows, or None."""
    folder = folder / "supernovae" / "union31"
    return (hbm.models.Supernova(), read_union(folder, NONE)) if folder.exists() else None


def konus(relation: str, with_limit: bool):
    """Return the relation of Konus-Wind, whose fainter bursts are left out if the limit is part of the model."""
    data, limit = hbm.data.load_konus(relation), KONUS_LIMITS[relation][1]
    if not with_limit:
        return hbm.models.Golenetskii(), data
    data = data.subset(np.flatnonzero((np.asarray(data.log10_flux) >= limit).all(axis=-1)))
    return hbm.models.Golenetskii(truncated=True), dataclasses.replace(data, log10_flux_limit=np.full(len(data), limit))


def cases(folder: Path) -> dict:
    """Return functions that give model and data by name."""
    gallery.SHARED = folder / "hierarchical" / "posteriordb"
    return {
        "relation, x cut": cut_relation,
        "JLA": lambda: (hbm.models.Supernova(cosmology="wcdm"), hbm.data.load_jla()),
        **{
            f"Konus {quantity}{', limit' * limited}": functools.partial(konus, relation, limited)
            for relation, (quantity, _) in KONUS_LIMITS.items()
            for limited in (False, True)
        },
        **gallery.GALLERY,
        "Union3.1": lambda: union(folder),
        "DES-Dovekie": lambda: dovekie(folder),
    }


def row_of(name: str, case) -> str:
    """Fit, check, and return the lines of a case."""
    began = time.process_time()
    fit = hbm.sample(*case, seed=1, progress=False)
    fitted = time.process_time()
    check = hbm.check_model(fit)
    checked = time.process_time()
    usable = "usable" if fit.verdict.usable else "not usable"
    word = {True: "passes", False: "fails", None: "unchecked"}[check.passed]
    head = f"{name:<26} {usable:<10} {fitted - began:7.1f} {checked - fitted:7.1f}  {word:<7} {check.p_value:6.3f}"
    says = textwrap.fill(check.sentence, 110, initial_indent="    ", subsequent_indent="    ")
    return f"{head}\n{says}" if check.passed is not True else head


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "model_verdict_data.txt")
    chosen = parser.parse_args()
    hbm.inference.use_compilation_cache()
    title = f"{'data':<26} {'sampler':<10} {'CPU s':>7} {'check':>7}  model         p   (compilation is counted)"
    every = cases(chosen.data)
    rows: dict[str, str] = {}
    if chosen.out.exists():
        for line in chosen.out.read_text().splitlines()[1:]:
            if line.startswith("    "):
                rows[list(rows)[-1]] += f"\n{line}"
            else:
                rows[line[:26].strip()] = line
    for name in chosen.only or every:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case = every[name]()
            if case is None:
                continue
            rows[name] = row_of(name, case)
        print(rows[name], flush=True)
        chosen.out.write_text("\n".join([title, *(rows[key] for key in every if key in rows)]) + "\n")


if __name__ == "__main__":
    main()
