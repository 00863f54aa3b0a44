"""Samplers and options that a verdict recommends."""

# Acceptance probabilities to try against divergences; the advice is the smallest above that of the run.
ACCEPT_PROBS = (0.95, 0.99, 0.999)
VARYING_STEPS = "sampler=hbm_jax.WALNUTS()"


def advice_against_divergences(sampler: str, target_accept_prob: float, num_superchains: int) -> str:
    """Return what to try against divergent transitions.

    Parameters
    ----------
    sampler : str
        Name of the sampler of the run.
    target_accept_prob : float
        Its acceptance probability.
    num_superchains : int
        Number of superchains; 0 for independent chains.
    """
    parametrisation = "another parametrisation of the latents, such as that of hbm_jax.centre"
    if sampler == "walnuts":
        return f"Use {parametrisation}, or allow more halvings of the steps (max_halvings)."
    larger = next((prob for prob in ACCEPT_PROBS if prob > target_accept_prob), None)
    name = "ChEES" if num_superchains else "NUTS"
    steps = f"Take smaller steps (sampler=hbm_jax.{name}(target_accept_prob={larger})), or use" if larger else "Use"
    varying = "" if num_superchains else f"; where there is none, steps that vary along a trajectory ({VARYING_STEPS})"
    return f"{steps} {parametrisation}{varying}."
