"""Options of XLA, the compiler of JAX."""

from importlib.metadata import version

# Of programs that run a few times only, so that compilation takes most of the time: XLA optimises nothing.
QUICK: dict[str, int | bool] = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
if version("jaxlib").startswith("0.10."):
    QUICK["xla_cpu_use_fusion_emitters"] = False  # halves the rest; later versions have no such option
