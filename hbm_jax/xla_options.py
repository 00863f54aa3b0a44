"""Options of XLA, the compiler of JAX."""

from importlib.metadata import version
from typing import Any

# The loops that XLA's newer emitters of CPU kernels write take LLVM half of the compile time, and are no faster in our
# programs (benchmarks/results/compile_options.txt). Later versions of jaxlib have no such option.
_OLDER_EMITTERS: dict[str, Any] = (
    {"xla_cpu_use_fusion_emitters": False} if version("jaxlib").startswith("0.10.") else {}
)

# Of programs that run a few times only, so that compilation takes most of the time: XLA optimises nothing.
QUICK: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    **_OLDER_EMITTERS,
}


def sampling_options(platform: str) -> dict[str, Any]:
    """Return the options of programs that search or draw: optimised code, compiled sooner; on a CPU only.

    Parameters
    ----------
    platform : str
        Platform of the device: ``"cpu"``, ``"gpu"`` or ``"tpu"``.

    Notes
    -----
    Compilation takes 0.53 to 0.67 of the time with XLA's defaults, and a gradient of a trajectory 0.91 to 1.03 times as
    long, as measured by ``benchmarks/compile_time.py --options``. Lower levels of optimisation compile hardly sooner
    than this; only level 0 does, and its code is 1.6 to 3 times as slow.
    """
    return dict(_OLDER_EMITTERS) if platform == "cpu" else {}
