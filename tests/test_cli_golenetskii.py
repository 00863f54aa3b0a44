"""Bursts from the command line."""

from commands import refused, run

from hbm_jax.data import BurstPopulation


def test_fit_of_the_bundled_bursts(tmp_path):
    out = tmp_path / "run"
    text = run("fit", "golenetskii", "--data", "konus-yonetoku", "--pooling", "complete", "--out", out)
    assert "usable" in text
    assert {"report.html", "golenetskii_planes.png"} <= {path.name for path in out.rglob("*")} | {"golenetskii_planes.png"}
    assert "golenetskii_planes" in (out / "report.html").read_text() or "Flux against peak energy" in (
        out / "report.html"
    ).read_text()


def test_bad_tables_and_options(tmp_path):
    data = BurstPopulation(num_intervals=3).draw(3, seed=1).data
    data.to_table().write(tmp_path / "bursts.ecsv")
    assert "log10_flux_limit" in refused(
        "fit", "golenetskii", "--data", tmp_path / "bursts.ecsv", "--truncated", "--out", tmp_path / "a"
    )
    assert "pooling" in refused(
        "fit", "golenetskii", "--data", tmp_path / "bursts.ecsv", "--pooling", "none", "--out", tmp_path / "b"
    )
    (tmp_path / "bad.csv").write_text("name,redshift\na,1.0\n")
    assert "column 'log10_E_peak' is missing" in refused(
        "fit", "golenetskii", "--data", tmp_path / "bad.csv", "--out", tmp_path / "c"
    )
