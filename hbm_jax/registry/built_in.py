"""Entries of the models of hbm_jax."""

from hbm_jax.registry.entry import Entry, imported

REGRESSION_HELP = {
    "formula": "formula, such as 'y ~ x + (1 | group)'",
    "trials": "column of the numbers of trials (binomial)",
    "exposure": "column of the exposures (poisson)",
    "offset": "column that is added to the linear predictor",
    "error": "column of the known errors of the response",
    "name": "column of the names of the points",
}
COMPONENTS_HELP = {"components": "names of the components, one option for each"}
BUILT_IN = {
    "supernova": Entry(
        "hbm_jax.models:Supernova",
        "hbm_jax.data:Supernovae",
        "hbm_jax.data:read_supernovae",
        {"jla": "hbm_jax.data:load_jla"},
        default_source="jla",
        figures="hbm_jax.plotting.supernovae.figures:figures",
        design="hbm_jax.simulation.designs:supernova",
        summary="cosmology and standardisation from light curves of type Ia supernovae",
        examples=(
            "hbm-jax fit supernova --data jla --cosmology wcdm --out runs/jla",
            "hbm-jax fit supernova --data mine.csv --column m_b=mB --prior 'Om0=Normal(0.3, 0.05)' --out runs/mine",
            "hbm-jax simulate supernova --num 200 --out simulated.ecsv",
            "hbm-jax simulate supernova --design jla --truth Om0=0.3 --out simulated.ecsv",
            "hbm-jax calibrate supernova --design jla --subset 60 --out runs/calibration",
        ),
        help={
            "sigma_m_b_includes": "contributions in the errors of m_b, such as '{sigma_v_km_s = 150}'",
            "combine": "whether rows of the same name are observations of one supernova",
            "limits": "table of the detection limits of surveys in observed bands, for --selection band",
            "sensitivity": ".npz file of sensitivities to calibration offsets and other linear nuisances",
        },
    ),
    "supernova-correlated": Entry(
        "hbm_jax.models:CorrelatedSupernova",
        "hbm_jax.data:CorrelatedSupernovae",
        "hbm_jax.data:read_correlated_supernovae",
        design="hbm_jax.simulation.designs:supernova_correlated",
        summary="cosmology from light curves of type Ia supernovae with a published joint covariance",
        examples=(
            "hbm-jax fit supernova-correlated --data jla_lcparams.txt --covariance C_eta.fits --out runs/jla",
            "hbm-jax simulate supernova-correlated --num 100 --out simulated.ecsv",
            "hbm-jax simulate supernova-correlated --design jla_lcparams.txt --covariance C_eta.fits --out new.fits",
        ),
        help={"covariance": "blocks of a covariance in alpha and beta: .npz, .fits, or a folder"},
    ),
    "hubble-diagram": Entry(
        "hbm_jax.models:HubbleDiagram",
        "hbm_jax.data:DistanceModuli",
        "hbm_jax.data:read_distance_moduli",
        figures="hbm_jax.plotting.supernovae.distance_moduli:figures",
        design="hbm_jax.simulation.designs:hubble_diagram",
        summary="cosmology from published distance moduli with their covariance",
        examples=(
            "hbm-jax fit hubble-diagram --data Pantheon+SH0ES.dat --format pantheon+ --covariance "
            "Pantheon+SH0ES_STAT+SYS.cov --cosmology wcdm --out runs/pantheon",
            "hbm-jax simulate hubble-diagram --num 200 --out simulated.ecsv",
            "hbm-jax simulate hubble-diagram --design mine.csv --covariance mine.npy --truth Om0=0.3 --out new.ecsv",
        ),
        help={
            "format": "release of the files: table, pantheon+, des-sn5yr, des-dovekie, union3, jla-binned, "
            "pantheon2018, union2.1, snana",
            "covariance": "covariance: text, .npz or .npy; 'diagonal' uses the errors of the table alone",
            "covariance_is": "content of that file: total, systematic or inverse; default: that of the format",
            "z_min": "smallest redshift to use; default: that of the format",
            "calibrators": "whether to use the independent distances of calibrators",
        },
    ),
    "afterglow": Entry(
        "hbm_jax.models:Afterglow",
        "hbm_jax.data:Afterglows",
        "hbm_jax.data:read_afterglows",
        figures="hbm_jax.plotting.xray.figures:figures",
        simulate="hbm_jax.simulation.afterglows:simulate",
        population="hbm_jax.data:AfterglowPopulation",
        population_options=("whim", "abundances"),
        takes_design=False,
        summary="X-ray spectra of a population of afterglows: slopes, fluxes, absorption by host and WHIM",
        examples=(
            "hbm-jax simulate afterglow --num 20 --whim --out sample",
            "hbm-jax fit afterglow --catalog sample/catalog.ecsv --spectra sample/spectra --whim --out runs/afterglows",
        ),
    ),
    "spectra": Entry(
        "hbm_jax.models:SpectralPopulation",
        "hbm_jax.data:SourceSpectra",
        "hbm_jax.data:read_source_spectra",
        figures="hbm_jax.plotting.xray.figures:figures",
        simulate="hbm_jax.simulation.source_spectra:simulate",
        population_options=("spectrum", "common", "known", "band"),
        takes_design=False,
        summary="X-ray spectra of a population of sources, of any model expression, one or several each",
        examples=(
            "hbm-jax simulate spectra --spectrum 'tbabs * powerlaw' --num 20 --truth photon_index_mean=2 --out drawn",
            "hbm-jax fit spectra --catalog clusters.csv --spectrum 'tbabs(mw) * bremss(gas)' --known mw_nh "
            "--out runs/clusters",
            "hbm-jax fit spectra --catalog epochs.csv --spectrum 'tbabs * powerlaw' --own log10_flux --out runs/epochs",
        ),
    ),
    "spectrum": Entry(
        "hbm_jax.models:SpectralFit",
        "hbm_jax.spectra.stack:SpectrumStack",
        "hbm_jax.data:read_grouped_spectra",
        figures="hbm_jax.plotting.xray.figures:figures",
        simulate="hbm_jax.simulation.spectra:simulate",
        best_fit="hbm_jax.best_fits:best_fit",
        population_options=("spectrum",),
        takes_design=False,
        summary="one X-ray spectrum, or several jointly, of any model expression",
        examples=(
            "hbm-jax simulate spectrum --spectrum 'powerlaw * tbabs(mw)' --truth photon_index=2 "
            "--truth log10_amplitude=-3 --truth mw_nh=0.1 --out drawn",
            "hbm-jax fit spectrum --data drawn/source.pha --spectrum 'powerlaw * tbabs(mw)' --energies '[0.5, 8]' "
            "--out runs/spectrum",
            "hbm-jax fit spectrum --data drawn/source.pha --spectrum 'powerlaw * tbabs(mw)' --best-fit --level 0.9 "
            "--out best",
        ),
        help={
            "also": "another spectrum to fit jointly with that of --data, or a table of the file and its own options, "
            "such as '{file = \"nustar.pha\", energies = [3, 79]}'; may be repeated",
            "background_response": "make the background regions spectra of their own, for a model of the background, "
            "with the response rmf (of the source, without its area), source, own (of the background), or sky (its "
            "own, and in the source region that of the source)",
            "background_rmf": "file of the own response of the backgrounds (default: that named in their headers)",
            "background_arf": "file of their effective area",
        },
    ),
    "golenetskii": Entry(
        "hbm_jax.models:Golenetskii",
        "hbm_jax.data:Bursts",
        "hbm_jax.data:read_bursts",
        {
            "konus-amati": "hbm_jax.data:load_konus",
            "konus-yonetoku": lambda: imported("hbm_jax.data:load_konus")("yonetoku"),
        },
        figures="hbm_jax.plotting.bursts.figures:figures",
        simulate="hbm_jax.simulation.bursts:simulate",
        population="hbm_jax.data:BurstPopulation",
        summary="luminosity against peak energy within gamma-ray bursts, from catalogue values",
        examples=(
            "hbm-jax fit golenetskii --data konus-yonetoku --pooling complete --out runs/konus",
            "hbm-jax simulate golenetskii --num 30 --out bursts.ecsv",
        ),
        help={"quantity": "what the table's flux column is: flux [erg/cm^2/s] or fluence [erg/cm^2]"},
    ),
    "golenetskii-counts": Entry(
        "hbm_jax.models:GolenetskiiCounts",
        "hbm_jax.data:BurstSpectra",
        "hbm_jax.data:read_burst_spectra",
        figures="hbm_jax.plotting.bursts.figures:figures",
        simulate="hbm_jax.simulation.bursts:simulate_spectra",
        population="hbm_jax.data:BurstSpectraPopulation",
        population_options=("spectrum",),
        takes_design=False,
        summary="luminosity against peak energy within gamma-ray bursts, from the counts of each interval",
        examples=(
            "hbm-jax simulate golenetskii-counts --num 4 --population num_intervals=4 --out bursts",
            "hbm-jax fit golenetskii-counts --catalog bursts/bursts.ecsv --out runs/counts",
        ),
        help={"energies": "energy ranges to use by detector [keV], such as '{n0 = [8, 900], b0 = [300, 30000]}'"},
    ),
    "relation": Entry(
        "hbm_jax.models:Relation",
        "hbm_jax.data:PointsInGroups",
        "hbm_jax.data:read_relation",
        figures="hbm_jax.plotting.linear.relation:figures",
        design="hbm_jax.simulation.designs:relation",
        summary="straight line through points with errors in both variables, with or without groups",
        examples=(
            "hbm-jax fit relation --data galaxies.csv --column x=log_M --column y=log_L --column sigma_x=e_M "
            "--column sigma_y=e_L --pooling complete --out runs/galaxies",
            "hbm-jax simulate relation --num 100 --out simulated.ecsv",
            "hbm-jax simulate relation --design galaxies.csv --pooling complete --truth alpha=2 --out new.csv",
        ),
        help={
            "predictors": "name of a predictor of points; may be repeated",
            "group_predictors": "name of a predictor of groups; may be repeated",
            "injections": "table of simulated points, found or not, for selection='injections'",
            "log10": "coordinate with linear columns whose decimal logarithm is related; may be repeated",
        },
    ),
    "normal": Entry(
        "hbm_jax.models:Normal",
        "hbm_jax.data:ValuesInGroups",
        "hbm_jax.data:read_values",
        {"eight-schools": "hbm_jax.data:load_eight_schools"},
        figures="hbm_jax.plotting.linear.normal:figures",
        design="hbm_jax.simulation.designs:normal",
        summary="values in groups whose means come from a normal population",
        examples=(
            "hbm-jax fit normal --data eight-schools --out runs/schools",
            "hbm-jax fit normal --data stars.csv --column y=velocity --column group=cluster --sigma inferred "
            "--out runs/stars",
            "hbm-jax simulate normal --num 50 --out simulated.ecsv",
            "hbm-jax simulate normal --design eight-schools --truth tau=5 --out simulated.csv",
        ),
        help=COMPONENTS_HELP,
    ),
    "normal-vectors": Entry(
        "hbm_jax.models:NormalVectors",
        "hbm_jax.data:ValuesInGroups",
        "hbm_jax.data:read_values",
        figures="hbm_jax.plotting.linear.normal:figures",
        design="hbm_jax.simulation.designs:normal_vectors",
        summary="vectors in groups whose means come from a correlated normal population",
        examples=(
            "hbm-jax fit normal-vectors --data stars.csv --components ra --components dec --out runs/stars",
            "hbm-jax simulate normal-vectors --num 50 --out simulated.ecsv",
            "hbm-jax simulate normal-vectors --design stars.csv --components ra --components dec --out simulated.ecsv",
        ),
        help=COMPONENTS_HELP,
    ),
    "regression": Entry(
        "hbm_jax.models:Regression",
        "hbm_jax.data:RegressionData",
        "hbm_jax.data:read_regression",
        figures="hbm_jax.plotting.regression.figures:figures",
        design="hbm_jax.simulation.designs:regression",
        summary="generalised linear regression with group effects, from a formula",
        examples=(
            "hbm-jax fit regression --data table.csv --formula 'y ~ x + (1 | g)' --family poisson --exposure time "
            "--out runs/counts",
            "hbm-jax simulate regression --num 200 --out simulated.ecsv",
            "hbm-jax simulate regression --design table.csv --formula 'y ~ x' --truth sigma=0.1 --out simulated.csv",
        ),
        help=REGRESSION_HELP,
    ),
    "rates": Entry(
        "hbm_jax.models:Rates",
        "hbm_jax.data:RegressionData",
        "hbm_jax.data:read_regression",
        figures="hbm_jax.plotting.regression.figures:figures",
        design="hbm_jax.simulation.designs:rates",
        summary="rates of groups (binomial or Poisson), integrated out",
        examples=(
            "hbm-jax fit rates --data hits.csv --formula 'hits ~ 1' --trials at_bats --out runs/rates",
            "hbm-jax simulate rates --num 50 --out simulated.ecsv",
            "hbm-jax simulate rates --design hits.csv --formula 'hits ~ 1' --trials at_bats --out simulated.csv",
        ),
        help=REGRESSION_HELP,
    ),
}
