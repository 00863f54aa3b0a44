"""Checks of the options of the supernova model."""

from hbm_jax.models import expansion
from hbm_jax.models.efficiency import Injections, refuse_narrow
from hbm_jax.models.supernovae.laws import DetectedBy, MeasuredLimit, WithColourCut
from hbm_jax.validation import OptionError, Remedy


def mixture_options(model) -> list[str]:
    """Return the options in use of a `hbm_jax.models.Supernova` that need the mixture of `populations`, as text."""
    laws = {"mass_error": model.laws.host}
    laws |= {option: getattr(model.laws, option) for option in ("outliers", "stretch", "colour", "selection")}
    needed = [option for option, law in laws.items() if law is not None and not law.gaussian]
    needed += ["velocity"] if model.velocity == "redshift" else []
    return [f"{option}={getattr(model, option)!r}" for option in needed]


def check(model) -> None:
    """Raise OptionError for option values out of range and for incompatible options."""
    for name in ("step_width", "lensing", "sigma_v"):
        value = getattr(model, name)
        if value is not None and not value >= 0.0:
            raise OptionError(f"Supernova: {name}: expected 0 or more; found {value!r}.")
    host = {name: getattr(model, name) for name in ("mass_error", "host_beta", "host_populations", "step_evolution")}
    host["step_width"] = model.step_width > 0.0
    if not model.mass_step and any(host.values()):
        option = next(name for name, on in host.items() if on)
        message = f"Supernova: {option} expects mass_step=True (a prior may fix delta_M at 0); found False."
        raise OptionError(message, [Remedy("mass_step", True)])
    if model.population_shapes and not (model.drift or model.host_populations):
        message = "Supernova: population_shapes expects drift=True or host_populations=True; found neither."
        raise OptionError(message, [Remedy("drift", True), Remedy("host_populations", True)])
    if model.velocity == "redshift" and model.sigma_v is None:
        message = "Supernova: velocity='redshift' expects a dispersion [km/s], such as sigma_v=250; found none."
        raise OptionError(message, [Remedy("velocity", "redshift"), Remedy("sigma_v", 250)])
    if model.calibrated and "M0" in (fixed := expansion.named(model.cosmology).fixed):
        message = f"Supernova: calibrated=True expects a free M0; found {fixed['M0']} of cosmology={model.cosmology!r}."
        raise OptionError(message, [Remedy("calibrated", False)])
    if isinstance(model.laws.selection, DetectedBy | WithColourCut):
        expected = {"stretch": ("normal", "two"), "colour": ("normal",)}
        for name, allowed in expected.items():
            if (found := getattr(model.laws, name).name) not in allowed:
                message = (
                    f"Supernova: selection {model.laws.selection} expects {name}={' or '.join(map(repr, allowed))}"
                )
                raise OptionError(f"{message}; found {found!r}.", [Remedy(name, "normal")])
        if isinstance(getattr(model.laws.selection, "choice", None), Injections):
            names = ("sigma_int", "x1_std", "c_std")
            refuse_narrow(f"Supernova: selection {model.laws.selection}", model.all_priors, names)
        if model.observations == "joint":
            message = f"Supernova: selection {model.laws.selection} expects observations='separate'; found 'joint'."
            raise OptionError(message, [Remedy("observations", "separate")])
    if isinstance(model.laws.selection, MeasuredLimit):
        limit = model.laws.selection.limit.with_priors(model.all_priors)  # raises for priors that do not fit it
        if model.observations == "joint" and limit.is_step:
            message = f"Supernova: selection {limit} beside observations='joint' expects a width; found none."
            raise OptionError(message, [Remedy("observations", "separate")])
    if model.laws.redshifts.is_population:
        for name, needed in {"selection": "none", "observations": "separate"}.items():
            if (found := getattr(model, name)) != needed:
                raise OptionError(
                    f"Supernova: redshift_prior={model.redshift_prior!r} expects {name}={needed!r}; found {found!r}.",
                    [Remedy(name, needed), Remedy("redshift_prior", "flat")],
                )
    mixture = mixture_options(model)
    if model.offsets == "marginal" and (model.latents != "marginal" or mixture):
        used_options = ", ".join(mixture) or f"latents={model.latents!r}"
        raise OptionError(
            "Supernova: offsets='marginal' expects latents='marginal' and normal populations that are all observed; "
            f"found {used_options}, with which the offsets must be sampled.",
            [Remedy("offsets", "sampled")],
        )
    if model.latents != "marginal" and model.scatter != "magnitude":
        raise OptionError(
            f"Supernova: latents={model.latents!r} expects scatter='magnitude'; found {model.scatter!r}, which needs "
            "latents='marginal'.",
            [Remedy("latents", model.latents), Remedy("latents", "marginal")],
        )
    if model.latents != "marginal" and mixture:
        raise OptionError(
            f"Supernova: latents={model.latents!r} expects normal populations that are all observed; found "
            f"{', '.join(mixture)}, which need latents='marginal'.",
            [Remedy("latents", model.latents), Remedy("latents", "marginal")],
        )
