"""Options of XLA, the compiler of JAX."""

from importlib.metadata import version
from typing import Any

# The loops that XLA's newer emitters of CPU kernels write take LLVM half of the compile time, more than they save in a
# run (benchmarks/results/compile_options.txt). They are faster where an array is written in the place of an operand,
# which the older ones do not vectorise. Later versions of jaxlib have no such option.
OLDER_EMITTERS: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False} if version("jaxlib").startswith("0.10.") else {}

# Of programs that run a few times only, so that compilation takes most of the time: XLA optimises nothing.
QUICK: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    **OLDER_EMITTERS,
}

# Of programs that run a few times, but for longer than they compile.
QUICK_LOOPS: dict[str, Any] = QUICK | {"xla_backend_optimization_level": 1}


def sampling_options(platform: str) -> dict[str, Any]:
    """Return the options of programs that search or draw: optimised code, compiled sooner; on a CPU only.

    Parameters
    ----------
    platform : str
        Platform of the device: ``"cpu"``, ``"gpu"`` or ``"tpu"``.

    Notes
    -----
    Programs of chains compile in 0.52 to 0.74 of the time with XLA's defaults, and a leapfrog step takes 0.89 to 1.07
    times as long, median 0.95, on a busy machine (``benchmarks/results/compile_options.txt``); later, a gradient of JLA
    1.25 times (``gradient_beside.txt``). Level 1 compiles hardly
    sooner, and its step took 1.07 times as long for afterglows; only level 0 compiles in half that time, with steps 1.7
    to 2.9 times as long.
    """
    return dict(OLDER_EMITTERS) if platform == "cpu" else {}
