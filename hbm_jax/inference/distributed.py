"""One posterior computed by several processes, each with a share of the objects (`jax.distributed`).

Nothing is asked of the program. Its potential is traced once; the constants in that trace which run along the objects
(the data, and all that was precomputed from them) become arguments of the compiled program, spread over the devices of
all processes. XLA's partitioner then splits the work that follows from them and adds the sums over all processes, so
the result is that of one process whatever the program does. Parameters and the state of the sampler are the same
everywhere, and every process runs every chain.

Every process calls the same functions with the same arguments, as in ::

    from hbm_jax.inference.distributed import start_processes

    start_processes("node0:12345", num_processes=4, process_id=int(sys.argv[1]))
    fit = hbm_jax.sample(model, data, split="supernova")

A sum over processes has a price, paid once or a few times a gradient: 1.6 ms between two processes on one busy
machine (gloo). Splitting pays where a gradient takes several times that; every process reads all of the data.

What depends on a clock, a disk, a key press or on rounding in NumPy is decided by process 0 (`Processes.lead`).
"""

import contextlib
import pickle
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.extend.core import ClosedJaxpr, Literal
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro import handlers

from hbm_jax.inference.sampler.target import OneProcess, Target

FRAME = 1024  # bytes of the smallest message between processes; longer ones are powers of two, each compiled once
HEADER = 8  # of them for the length


class ProcessesError(RuntimeError):
    """Processes that should have computed the same did not."""


def start_processes(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> int:
    """Join the processes of this run; to be called in each, before any other use of JAX.

    Parameters
    ----------
    coordinator_address : str, optional
        ``"host:port"`` of process 0, which listens there. All three are found out by JAX under Slurm, Open MPI and on
        Cloud TPU.
    num_processes, process_id : int, optional
        How many there are, and which this one is, from 0.

    Returns
    -------
    int
        Which process this one is.

    Raises
    ------
    RuntimeError
        If JAX has computed something already, or the others do not come within JAX's time limit (five minutes).

    Notes
    -----
    The processes must run on machines of one kind, so that what each of them computes for itself is the same bit for
    bit; `sample` compares, and raises `ProcessesError` where it is not.
    """
    # XLA's only means of communication between CPUs that needs nothing installed; GPUs and TPUs have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator_address, num_processes, process_id)
    return jax.process_index()


def split_over_processes(target: Target, num_objects: int, processes: "Processes | None" = None) -> Target:
    """Split the density of a target over the devices of all processes, along its objects.

    Parameters
    ----------
    target : Target
        The density, the same in every process.
    num_objects : int
        Length of the axis to split: every constant of the density that has such an axis is split along the first.
        A length that the devices do not divide is padded and cut inside the program, where XLA masks what is beyond.
    processes : Processes, optional
        Those of this run.

    Returns
    -------
    Target
        The same density; ``target.processes.compile`` makes programs of it that run split. Outside of those, its
        potential is computed by one process.

    Raises
    ------
    ValueError
        If nothing in the density has an axis of that length.

    Notes
    -----
    The sum over objects is taken in another order than by one process: values agree to rounding, 1e-11 relative for
    the 740 supernovae of JLA (``test_jla_split_over_two_processes_is_jla``).

    Examples
    --------
    >>> split = split_over_processes(target, len(data))  # doctest: +SKIP
    >>> value_and_grad = split.processes.compile(jax.value_and_grad(split.potential), split.start)  # doctest: +SKIP
    """
    processes = processes or Processes()
    closed = jax.make_jaxpr(target.potential)(target.start)
    processes.take(closed, num_objects)

    def potential(flat):
        if processes.shares is None:
            return target.potential(flat)
        return _evaluate(closed, processes.shares, [flat])[0]

    return replace(target, potential=potential, processes=processes)


def number_of_objects(program: Callable, args: tuple, split: str | int) -> int:
    """Size of the plate to split; a number stands for itself.

    Raises
    ------
    ValueError
        If the program has no such plate.
    """
    if not isinstance(split, str):
        return int(split)
    sizes: dict[str, int] = {}

    def look(key):
        for site in handlers.trace(handlers.seed(program, key)).get_trace(*args).values():
            sizes.update({frame.name: frame.size for frame in site.get("cond_indep_stack", ())})

    jax.eval_shape(look, jax.random.key(0))
    if split not in sizes:
        found = ", ".join(sizes) or "none"
        raise ValueError(
            f"sample: expected split to name a plate of the program; found {split!r}, the plates: {found}."
        )
    return sizes[split]


def processes_for(split: str | int | None) -> OneProcess:
    """Those that compute a density: this one alone where nothing is to be split."""
    return OneProcess() if split is None else Processes()


class Processes(OneProcess):
    """All processes of this run, their devices on one axis called ``object``."""

    def __init__(self):
        self.mesh = Mesh(np.asarray(jax.devices()), ("object",))
        self.leads = jax.process_index() == 0
        self.num_devices = self.mesh.size
        self.shares: dict[int, Any] | None = None  # while a split program is being traced: what stands for constants
        self._placed: dict[int, tuple[jax.Array, int, int]] = {}

    # Programs.

    def take(self, closed: ClosedJaxpr, num_objects: int):
        """Spread the constants of a trace that run along the objects over the devices."""
        for constant in _constants(closed):
            if num_objects in np.shape(constant) and id(constant) not in self._placed:
                axis = np.shape(constant).index(num_objects)
                self._placed[id(constant)] = (self._spread(np.asarray(constant), axis), axis, num_objects)
        self.compare([np.asarray(c) for c in _constants(closed)])
        if not self._placed:
            shapes = sorted({str(np.shape(c)) for c in _constants(closed) if np.ndim(c)}) or ["none"]
            raise ValueError(
                f"split: expected arrays in the density with an axis of {num_objects} objects; found arrays of shape "
                f"{', '.join(shapes)}."
            )

    def _spread(self, array: np.ndarray, axis: int) -> jax.Array:
        missing = -array.shape[axis] % self.num_devices
        # Copies of the last object, which are harmless whatever is computed before they are cut off.
        padded = np.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)], mode="edge")
        spec = PartitionSpec(*[None] * axis, "object")
        return jax.make_array_from_callback(padded.shape, NamedSharding(self.mesh, spec), lambda index: padded[index])

    def compile(self, fn: Callable, *args: Any, compared: bool = True) -> "SplitProgram":
        """Compile a function of a split potential for arguments of these shapes, which every process gives alike."""
        return SplitProgram(self, fn, args, compared)

    def everywhere(self, value) -> jax.Array:
        """Place a value that every process has on all devices."""
        array = np.asarray(value)
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    @contextlib.contextmanager
    def tracing(self, parts) -> Iterator[None]:
        """Let a split potential use ``parts``, in the order of `placed`, for its constants."""
        cut = zip(self._placed.items(), parts, strict=True)
        self.shares = {
            name: jax.lax.slice_in_dim(part, 0, length, axis=axis) for (name, (_, axis, length)), part in cut
        }
        try:
            yield
        finally:
            self.shares = None

    @property
    def placed(self) -> list[jax.Array]:
        """The constants that are spread over the devices."""
        return [array for array, _, _ in self._placed.values()]

    def compare(self, arrays: list[np.ndarray]):
        """See that every process has the same arrays.

        Raises
        ------
        ProcessesError
            If not.
        """
        checksum = 0
        for array in arrays:
            checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
        found = multihost_utils.process_allgather(np.asarray(checksum, np.uint32)).ravel()
        if (found != found[0]).any():
            raise ProcessesError(
                "The processes have come apart: expected the same data and the same sampler state in all of them; "
                f"found others in process {int(np.argmax(found != found[0]))} than in process 0. They must run on "
                "machines of one kind, with the same program, data, arguments and versions."
            )

    # Decisions.

    def lead(self, work: Callable[[], Any] = lambda: None) -> Any:
        """Do some work in process 0 alone, and return in every process what it returned, or raise what it raised.

        An interruption of process 0 is raised here, so that all processes leave at the same place.
        """
        outcome: tuple[bool, Any] = (True, None)
        if self.leads:
            try:
                self._stop_if_asked()
                outcome = (True, work())
            except BaseException as error:
                outcome = (False, error)
        good, value = self._from_process_0(outcome)
        if not good:
            raise value
        return value

    def _from_process_0(self, outcome):
        """Broadcast by pickling: JAX's own channel between the processes of one run, nothing that is kept."""
        if jax.process_count() == 1:
            return outcome
        message = _pickled(outcome) if self.leads else b""
        frame = np.zeros(FRAME, np.uint8)
        frame[:HEADER] = np.frombuffer(len(message).to_bytes(HEADER, "little"), np.uint8)
        first = np.frombuffer(message[: FRAME - HEADER], np.uint8)
        frame[HEADER : HEADER + len(first)] = first
        frame = np.asarray(multihost_utils.broadcast_one_to_all(frame))
        length = int.from_bytes(frame[:HEADER].tobytes(), "little")
        received = frame[HEADER:].tobytes()
        if length > len(received):
            rest = np.zeros(1 << (length - len(received) - 1).bit_length(), np.uint8)
            tail = np.frombuffer(message[FRAME - HEADER :], np.uint8)
            rest[: len(tail)] = tail
            received += np.asarray(multihost_utils.broadcast_one_to_all(rest)).tobytes()
        return outcome if self.leads else pickle.loads(received[:length])

    def open(self, kind: Callable, folder) -> Any:
        """Open a checkpoint in process 0; the others see through it what process 0 does."""
        return _Led(self, kind, folder)

    def choose_start(self, choose: Callable, target: Target, num_chains: int, key: jax.Array) -> Any:
        """Search in process 0, each evaluation of the density by all: NumPy's rounding decides where a search goes."""

        def announced(point):
            return target.value_and_grad(self.lead(lambda: np.asarray(point)))

        if not self.leads:
            while (point := self.lead()) is not None:
                target.value_and_grad(point)
            return self.lead()
        try:
            start = choose(target, num_chains, key, announced)
        except Exception as failed:
            error = failed  # told to the others below, where they wait for the outcome
        else:
            self.lead()
            return self.lead(lambda: start)
        self.lead()
        return self.lead(lambda: _throw(error))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take note of Ctrl-C in process 0, for `lead` to act upon; the others leave it to that one."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        before = signal.signal(signal.SIGINT, self._note if self.leads else signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Go on as all the time."""
        yield


class SplitProgram:
    """A compiled function of a split potential; arguments and results are arrays of this process.

    Parameters
    ----------
    processes : Processes
        Those that run it.
    fn : callable
        Function of `args`, pytrees of arrays.
    args : tuple
        Arguments of the right shapes.
    compared : bool
        Whether results are compared between processes.
    """

    def __init__(self, processes: Processes, fn: Callable, args: tuple, compared: bool = True):
        self.processes, self.compared = processes, compared
        leaves, structure = jax.tree.flatten(args)
        impls = [jax.random.key_impl(leaf) if _is_key(leaf) else None for leaf in leaves]
        kinds: dict[str, Any] = {}

        def program(parts, leaves):
            leaves = [_wrapped(x, impl) for x, impl in zip(leaves, impls, strict=True)]
            with processes.tracing(parts):
                out, kinds["structure"] = jax.tree.flatten(fn(*jax.tree.unflatten(structure, leaves)))
            kinds["impls"] = [jax.random.key_impl(x) if _is_key(x) else None for x in out]
            return [jax.random.key_data(x) if _is_key(x) else x for x in out]

        everywhere = NamedSharding(processes.mesh, PartitionSpec())
        placed = [processes.everywhere(_plain(leaf)) for leaf in leaves]
        self._compiled = jax.jit(program, out_shardings=everywhere).lower(processes.placed, placed).compile()
        self._kinds = kinds

    def __call__(self, *args):
        """Run it, in all processes."""
        leaves = [self.processes.everywhere(_plain(leaf)) for leaf in jax.tree.leaves(args)]
        # Two programs that communicate must not run at the same time, so each is waited for.
        out = jax.block_until_ready(self._compiled(self.processes.placed, leaves))
        out = [x.addressable_data(0) for x in out]
        if self.compared:
            self.processes.compare([np.asarray(x) for x in out])
        out = [_wrapped(x, impl) for x, impl in zip(out, self._kinds["impls"], strict=True)]
        return jax.tree.unflatten(self._kinds["structure"], out)

    def as_text(self) -> str:
        """Return what a single device runs, as XLA's text."""
        return self._compiled.as_text() or ""


class _Led:
    """Something that only process 0 has; its methods and attributes, for every process."""

    def __init__(self, processes: Processes, kind: Callable, *args):
        self._processes, self._thing = processes, None

        def make():
            self._thing = kind(*args)

        processes.lead(make)

    def close(self):
        """Let go of it; alone, because the others may be gone."""
        if self._thing is not None:
            self._thing.close()

    def __getattr__(self, name):
        def call(*args, **kwargs):
            def work():
                out = getattr(self._thing, name)(*args, **kwargs)
                return list(out) if isinstance(out, Iterator) else out

            return self._processes.lead(work)

        def look():
            found = getattr(self._thing, name)
            return (True, None) if callable(found) else (False, found)

        is_method, value = self._processes.lead(look)
        return call if is_method else value


def _throw(error):
    raise error


def _pickled(outcome) -> bytes:
    try:
        return pickle.dumps(outcome)
    except Exception as error:  # the others wait for a message, whatever it is
        _, value = outcome
        return pickle.dumps((False, RuntimeError(f"process 0: {value!r:.1000} (cannot be sent: {error})")))


def _is_key(leaf) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _wrapped(data, impl):
    return data if impl is None else jax.random.wrap_key_data(data, impl=impl)


def _plain(leaf):
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _constants(closed: ClosedJaxpr) -> Iterator[Any]:
    """Constants of a trace and of the functions compiled within it, which keep their own."""
    yield from closed.consts
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name == "jit":
            yield from _constants(equation.params["jaxpr"])


def _evaluate(closed: ClosedJaxpr, shares: dict[int, Any], args: list) -> list:
    """Run a trace with some of its constants (by their id) replaced."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, [shares.get(id(c), c) for c in closed.consts], strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if equation.primitive.name == "jit":
            outputs = _evaluate(equation.params["jaxpr"], shares, inputs)
        else:
            params = equation.primitive.get_bind_params(equation.params)
            functions, params = ((), params) if isinstance(params, dict) else params  # a pair before JAX 0.10
            found = equation.primitive.bind(*functions, *inputs, **params)
            outputs = found if equation.primitive.multiple_results else [found]
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
