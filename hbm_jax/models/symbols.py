"""Mathematical symbols of parameters and measured quantities, for figures and tables."""

SYMBOLS: dict[str, str] = {
    # expansion history
    "H0": r"$H_0$",
    "Om0": r"$\Omega_\mathrm{m}$",
    "Ode0": r"$\Omega_\mathrm{DE}$",
    "Ok0": r"$\Omega_k$",
    "w0": r"$w_0$",
    "wa": r"$w_a$",
    "omega_b": r"$\omega_\mathrm{b}$",
    "r_d": r"$r_\mathrm{d}$",
    **{f"w_{index}": f"$w_{index}$" for index in range(1, 10)},
    "z": r"$z$",
    "mu": r"$\mu$",
    # supernovae
    "M0": r"$M_0$",
    "alpha": r"$\alpha$",
    "beta": r"$\beta$",
    "sigma_int": r"$\sigma_\mathrm{int}$",
    "x1": r"$x_1$",
    "x_mean": r"$\langle x \rangle$",
    "x_std": r"$\sigma_x$",
    "x_break": r"$x_\mathrm{break}$",
    "alpha_above": r"$\alpha_\mathrm{above}$",
    "x_min": r"$x_\mathrm{min}$",
    "x_scale": r"$\lambda_x$",
    "evolution_y": r"$k_y$",
    "evolution_x": r"$k_x$",
    "evolution_alpha": r"$k_\alpha$",
    "evolution_scatter": r"$k_\sigma$",
    "common_offset": r"$\Delta_j$",
    "common_offset_x": r"$\Delta_{x,j}$",
    "curvature": r"$\kappa$",
    "alpha_mean": r"$\langle \alpha \rangle$",
    "alpha_std": r"$\sigma_\alpha$",
    "beta_mean": r"$\langle \beta \rangle$",
    "beta_std": r"$\sigma_\beta$",
    "x_correlation_factor": "$L$",
    "scatter_change": r"$k_{\sigma,x}$",
    "scatter_group": r"$\delta_\sigma$",
    "x1_mean": r"$\langle x_1 \rangle$",
    "x1_std": r"$\sigma_{x_1}$",
    "x1_true": r"true $x_1$",
    "c": r"$c$",
    "c_mean": r"$\langle c \rangle$",
    "c_std": r"$\sigma_c$",
    "c_true": r"true $c$",
    "log10_mass": r"$\log_{10}\,M_\mathrm{host}$",
    "mw_ebv": r"$E(B-V)_\mathrm{MW}$",
    "probability_low_mass": "probability of a low-mass host",
    "m_b": r"$m_B$",
    "m_b_true": r"true $m_B$",
    # X-ray spectra
    "nh": r"$N_\mathrm{H}$",
    "nh_mw": r"$N_\mathrm{H,MW}$",
    "photon_index": r"$\Gamma$",
    "photon_index_mean": r"$\langle \Gamma \rangle$",
    "photon_index_std": r"$\sigma_\Gamma$",
    "log10_flux": r"$\log_{10}\,F$",
    "log10_flux_mean": r"$\langle \log_{10}\,F \rangle$",
    "log10_flux_std": r"$\sigma_{\log F}$",
    "host_nh": r"$N_\mathrm{H,host}$",
    "mw_nh": r"$N_\mathrm{H,MW}$",
    "log10_nh": r"$\log_{10}\,N_\mathrm{H}$",
    "log10_nh_mean": r"$\langle \log_{10}\,N_\mathrm{H} \rangle$",
    "log10_nh_std": r"$\sigma_{\log N_\mathrm{H}}$",
    "log10_nh_shape": r"$\alpha_{\log N_\mathrm{H}}$",
    "log10_n0": r"$\log_{10}\,n_0$",
    "log10_n0_mean": r"$\langle \log_{10}\,n_0 \rangle$",
    "log10_n0_std": r"$\sigma_{\log n_0}$",
    "metallicity": r"$Z$",
    "log10_T": r"$\log_{10}\,T$",
    "log10_xi": r"$\log_{10}\,\xi$",
    # gamma-ray bursts
    "gamma_mean": r"$\langle \gamma \rangle$",
    "gamma_std": r"$\sigma_\gamma$",
    "log10_N": r"$\log_{10}\,N$",
    "log10_N_mean": r"$\langle \log_{10}\,N \rangle$",
    "log10_N_std": r"$\sigma_{\log N}$",
    "log10_E_peak": r"$\log_{10}\,E_\mathrm{peak}$",
    "log10_E_peak_mean": r"$\langle \log_{10}\,E_\mathrm{peak} \rangle$",
    "log10_E_peak_std": r"$\sigma_{\log E}$",
    "log10_E_peak_scatter": r"$\sigma_{\log E,\,\mathrm{in}}$",
    "log10_luminosity": r"$\log_{10}\,L$",
    "intrinsic_scatter": r"$\sigma_\mathrm{int}$",
    "correlation": r"$\rho$",
    # common names in users' models
    "gamma": r"$\gamma$",
    "delta": r"$\delta$",
    "theta": r"$\theta$",
    "mu0": r"$\mu_0$",
    "nu": r"$\nu$",
    "rho": r"$\rho$",
    "sigma": r"$\sigma$",
    "tau": r"$\tau$",
}
"""Symbol by name, in the notation of matplotlib and LaTeX; laws, cosmologies and components add theirs."""

IN_MODELS: dict[str, str] = {
    # regression and rates
    "intercept": r"$b_0$",
    "coef": r"$b$",
    "sd": r"$\sigma_\mathrm{group}$",
    "overdispersion": r"$a$",
    "mean": r"$\langle \theta \rangle$",
    "dispersion": r"$D$",
    "rate": r"$\theta$",
    # components of spectra
    "kT": r"$kT$",
    "energy": r"$E$",
    "energy_break": r"$E_\mathrm{break}$",
    "e_cut": r"$E_\mathrm{cut}$",
    "e_fold": r"$E_\mathrm{fold}$",
    "e_peak": r"$E_\mathrm{peak}$",
    "factor": r"$f$",
    "fraction": r"$f_\mathrm{cov}$",
    "log10_amplitude": r"$\log_{10}\,K$",
    "log10_bolometric_luminosity": r"$\log_{10}\,L_\mathrm{bol}$",
    "max_tau": r"$\tau_\mathrm{max}$",
    "photon_index_high": r"$\Gamma_\mathrm{high}$",
    "strength": r"$d$",
    # instruments
    "calibration": r"$f_\mathrm{cal}$",
    "effective_area": r"$f_\mathrm{area}$",
    **{f"area_{k}": f"$a_{{{k}}}$" for k in range(1, 31)},
}
"""Symbols of names that are too general for programs of users."""

MOMENTS = {"_mean": r"$\langle %s \rangle$", "_std": r"$\sigma(%s)$"}
SCALES = {"log10_": r"$\log_{10}\,%s$", "logit_": r"$\mathrm{logit}\,%s$"}


def symbol_of(name: str) -> str | None:
    r"""Return the symbol of a parameter of a model, or None if its name has none.

    The name may have the label of a component, the moment of a population, and a logarithm, in this order from the
    outside: ``log10_disc_kT_mean``.

    Examples
    --------
    >>> symbol_of("log10_disc_kT_mean")
    '$\\langle \\log_{10}\\,kT \\rangle$ (disc)'
    """
    symbol, labels = _parts(name)
    return f"{symbol} ({' '.join(labels)})" if symbol and labels else symbol


def _parts(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the symbol of a name without its labels, and these."""
    if symbol := SYMBOLS.get(name) or IN_MODELS.get(name):
        return symbol, ()
    for ending, form in MOMENTS.items():
        if name.endswith(ending):
            return _within(form, name.removesuffix(ending))
    for start, form in SCALES.items():
        if name.startswith(start) and (found := _within(form, name.removeprefix(start)))[0]:
            return found
    label, _, rest = name.partition("_")
    if not rest:
        return None, ()
    symbol, labels = _parts(rest)
    return symbol, (label, *labels)


def _within(form: str, name: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the parts of a name with its symbol put into a form."""
    symbol, labels = _parts(name)
    return symbol and form % symbol.strip("$"), labels
