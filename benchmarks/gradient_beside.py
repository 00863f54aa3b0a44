"""Value and gradient of what `hbm_jax.sample` evaluates, beside another checkout, in one process.

Both checkouts are imported one after the other, and their compiled programs then run in turns: calls of value and
gradient, and a compiled loop of them as in chains, with the data padded and as arguments where a checkout does so.
Prints CPU seconds to trace and compile, microseconds of CPU time, the lowest and the median of the turns, their ratios
to those of the other checkout, and differences of the log density and the gradient at one point.

    git worktree add ../before COMMIT
    python benchmarks/gradient_beside.py ../before [--turns 15] [--cases jla relation]
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parents[1]
CASES = ("jla", "relation", "relation, 40 points", "golenetskii")
SECONDS = {"call": 0.02, "loop": 0.04}  # of a turn


def problem(hbm, name):
    """Return the model and the data of a case."""
    if name == "jla":
        return hbm.models.Supernova(cosmology="wcdm"), hbm.data.load_jla()
    if name == "golenetskii":
        return hbm.models.Golenetskii(), hbm.data.BurstPopulation(num_intervals=15).draw(30, seed=1).data
    if name == "relation":
        import relation

        return relation.ours(relation.problem(), "marginal")
    rng = np.random.default_rng(1)
    x = rng.normal(size=40)
    columns = {
        "x": x, "y": x + 0.3 * rng.normal(size=40), "sigma_x": np.full(40, 0.2), "sigma_y": np.full(40, 0.1),
        "group": [f"group {i % 5}" for i in range(40)],
    }  # fmt: skip
    return hbm.models.Relation(), hbm.data.PointsInGroups.from_columns(columns)


def programs(checkout: Path, name: str) -> dict:
    """Import a checkout, and return its compiled programs, the names of its parameters and a start."""
    for module in [key for key in sys.modules if key.split(".")[0] in ("hbm_jax", "relation")]:
        del sys.modules[module]
    sys.path[:2] = [str(checkout), str(HERE / "benchmarks" / "suite" / "systems")]
    import jax
    import jax.numpy as jnp

    import hbm_jax as hbm
    from hbm_jax.inference.compilation.constants_as_arguments import compiled
    from hbm_jax.inference.sampler import target as targets

    model, data = problem(hbm, name)
    args, padding = (data,), ()
    if hasattr(model, "padded"):
        args = (model.bind(data),)
        bound, sizes = model.padded(args[0])
        padding = (targets.Padded((bound,), sizes),)
    target = targets.build_target(model, args, jax.random.key(1), *padding)
    arrays = {"arrays": target.arrays()} if hasattr(target, "arrays") else {}
    evaluate, start = jax.value_and_grad(target.potential), jnp.asarray(target.start)

    def loop(x, num):
        def body(_, state):
            value, gradient = evaluate(state[0])
            return state[0] + 1e-14 * jnp.tanh(gradient), state[1] + value

        return jax.lax.fori_loop(0, num, body, (x, 0.0))

    began = time.process_time()
    call = compiled(evaluate, start, **arrays)
    seconds = time.process_time() - began
    loop = compiled(loop, start, jnp.asarray(1), **arrays)
    return {"call": call, "loop": loop, "labels": target.labels, "start": np.asarray(start), "seconds": seconds}


def turn(program: dict, x, kind: str, num: int) -> float:
    """Return the CPU time of one evaluation among ``num``, in microseconds."""
    import jax
    import jax.numpy as jnp

    began = time.process_time()
    if kind == "loop":
        jax.block_until_ready(program["loop"](x, jnp.asarray(num)))
    else:
        for _ in range(num):
            jax.block_until_ready(program["call"](x))
    return 1e6 * (time.process_time() - began) / num


def compare(name: str, before: Path, turns: int) -> None:
    """Measure one case, and print its rows."""
    import jax.numpy as jnp

    versions = [programs(before.resolve(), name), programs(HERE, name)]
    offsets = 0.1 * np.random.default_rng(3).normal(size=len(versions[0]["start"]))
    point = dict(zip(versions[0]["labels"], versions[0]["start"] + offsets, strict=True))
    points = [jnp.asarray([point.get(label, 0.0) for label in version["labels"]]) for version in versions]
    (value, gradient), (new_value, new_gradient) = (v["call"](x) for v, x in zip(versions, points, strict=True))
    shared = [versions[1]["labels"].index(label) for label in versions[0]["labels"]]
    padding = len(points[1]) - len(points[0])  # latents of padding are at zero of a standard normal distribution
    difference = float(abs(new_value - value - padding * 0.5 * np.log(2.0 * np.pi)) / abs(value))
    of_gradient = np.max(np.abs(np.asarray(new_gradient)[shared] - gradient)) / np.max(np.abs(gradient))
    seconds = [version["seconds"] for version in versions]
    print(f"{name}: trace and compile {seconds[0]:.2f}, {seconds[1]:.2f} s, ratio {seconds[1] / seconds[0]:.2f}; "
          f"relative difference of log density {difference:.0e}, of gradient {of_gradient:.0e}")  # fmt: skip
    for kind, budget in SECONDS.items():
        num = max(5, int(1e6 * budget / turn(versions[0], points[0], kind, 200)))
        rows = []
        for index in range(turns):
            order = (0, 1) if index % 2 else (1, 0)
            times = {i: turn(versions[i], points[i], kind, num) for i in order}
            rows.append([times[0], times[1]])
        lowest, median = np.min(rows, axis=0), np.median(rows, axis=0)
        ratio = np.median([new / old for old, new in rows])
        print(f"  {kind}: before {lowest[0]:.2f} (median {median[0]:.2f}), now {lowest[1]:.2f} ({median[1]:.2f}) us; "
              f"ratio of lowest {lowest[1] / lowest[0]:.3f}, median of ratios {ratio:.3f}", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout to compare with")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    arguments = parser.parse_args()
    import jax

    with jax.enable_x64(True):
        for name in arguments.cases:
            compare(name, arguments.before, arguments.turns)


if __name__ == "__main__":
    main()
