"""One posterior computed by several processes, with the objects split over them (`jax.distributed`).

The program needs no changes. Its potential is traced once; the constants of the trace that have an axis of objects (the
data, and everything precomputed from them) become arguments of the compiled program, sharded over the devices of all
processes. XLA's partitioner then splits the computation and adds the sums over all processes, so the result is that of
one process for any program. Parameters and the state of the sampler are replicated, and every process runs every chain.

Every process calls the same functions with the same arguments, as in ::

    from hbm_jax.inference.distributed import start_processes

    start_processes("node0:12345", num_processes=4, process_id=int(sys.argv[1]))
    fit = hbm_jax.sample(model, data, split="supernova")

Every gradient needs one or a few sums over processes. A sum takes 1.6 ms between two processes on one busy machine
(gloo), so splitting pays if a gradient takes several times that. Every process reads all of the data.

Process 0 takes all decisions that depend on a clock, a disk, a key press or rounding in NumPy (`Processes.lead`).
"""

import contextlib
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.extend.core import ClosedJaxpr, Literal
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro import handlers

from hbm_jax.inference.compilation.separation import evaluated
from hbm_jax.inference.messages import pack, unpack
from hbm_jax.inference.sampler.chains import is_key, plain_leaf
from hbm_jax.inference.sampler.target import OneProcess, Target
from hbm_jax.xla_options import sampling_options

FRAME = 1024  # smallest message between processes, bytes; longer ones are powers of two, each compiled once
HEADER = 8  # bytes of the message that hold its length


class ProcessesError(RuntimeError):
    """Error if processes have different results that should be equal."""


def start_processes(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> int:
    """Join the processes of this run; call it in each process, before any other use of JAX.

    Parameters
    ----------
    coordinator_address : str, optional
        ``"host:port"`` of process 0. JAX detects all three arguments under Slurm, Open MPI and on Cloud TPU.
    num_processes, process_id : int, optional
        Number of processes, and index of this one, from 0.

    Returns
    -------
    int
        Index of this process.

    Raises
    ------
    RuntimeError
        If JAX has already computed something, or if the other processes do not join within JAX's time limit (five
        minutes).

    Notes
    -----
    All processes must run on machines of one kind, so that replicated values are bitwise equal; `sample` compares them
    and raises `ProcessesError` if they differ.
    """
    # Gloo is the only CPU communication of XLA that needs no installation; GPUs and TPUs have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator_address, num_processes, process_id)
    return jax.process_index()


def split_over_processes(target: Target, num_objects: int, processes: "Processes | None" = None) -> Target:
    """Split the density of a target along its objects over the devices of all processes.

    Parameters
    ----------
    target : Target
        The posterior, the same in every process.
    num_objects : int
        Length of the axis to split. Every constant of the density with an axis of this length is split along the first
        such axis. If the number of devices does not divide the length, constants are padded, and sliced inside the
        program.
    processes : Processes, optional
        Processes of this run.

    Returns
    -------
    Target
        The same posterior. Programs compiled by ``target.processes.compile`` run split; elsewhere the potential is
        computed by one process.

    Raises
    ------
    ValueError
        If no array in the density has an axis of that length.

    Notes
    -----
    The order of the sum over objects differs from that of one process, so values agree to rounding: 1e-11 relative for
    the 740 supernovae of JLA (``test_jla_split_over_two_processes_is_jla``).

    Examples
    --------
    >>> split = split_over_processes(target, len(data))  # doctest: +SKIP
    >>> value_and_grad = split.processes.compile(jax.value_and_grad(split.potential), split.start)  # doctest: +SKIP
    """
    processes = processes or Processes()
    closed = jax.make_jaxpr(target.potential)(target.start)
    processes.shard_constants(closed, num_objects)

    def potential(flat):
        if processes.replacements is None:
            return target.potential(flat)
        return _evaluate(closed, processes.replacements, [flat])[0]

    return replace(target, potential=potential, processes=processes)


def number_of_objects(program: Callable, args: tuple, split: str | int) -> int:
    """Return the size of the plate to split; an integer is returned unchanged.

    Raises
    ------
    ValueError
        If the program has no such plate.
    """
    if not isinstance(split, str):
        return int(split)
    sizes: dict[str, int] = {}

    def record_plates(key):
        for site in handlers.trace(handlers.seed(program, key)).get_trace(*args).values():
            sizes.update({frame.name: frame.size for frame in site.get("cond_indep_stack", ())})

    jax.eval_shape(record_plates, jax.random.key(0))
    if split not in sizes:
        names = ", ".join(sizes) or "none"
        raise ValueError(
            f"sample: expected split to name a plate of the program; found {split!r}. Its plates: {names}."
        )
    return sizes[split]


def processes_for(split: str | int | None) -> OneProcess:
    """Return the processes that evaluate a density; only this one if ``split`` is None."""
    return OneProcess() if split is None else Processes()


class Processes(OneProcess):
    """All processes of this run, with their devices on one mesh axis, ``object``."""

    def __init__(self):
        self.mesh = Mesh(np.asarray(jax.devices()), ("object",))
        self.leads = jax.process_index() == 0
        self.num_devices = self.mesh.size
        # Arrays that replace constants, by id, while a split program is traced.
        self.replacements: dict[int, Any] | None = None
        self._sharded: dict[int, tuple[jax.Array, int, int]] = {}

    # Compilation.

    def shard_constants(self, closed: ClosedJaxpr, num_objects: int):
        """Shard the constants of a trace that have an axis of objects; raise ValueError for a trace without any."""
        for constant in _constants(closed):
            if num_objects in np.shape(constant) and id(constant) not in self._sharded:
                axis = np.shape(constant).index(num_objects)
                self._sharded[id(constant)] = (self._shard(np.asarray(constant), axis), axis, num_objects)
        self.compare([np.asarray(c) for c in _constants(closed)])
        if not self._sharded:
            shapes = sorted({str(np.shape(c)) for c in _constants(closed) if np.ndim(c)}) or ["none"]
            raise ValueError(
                f"split: expected arrays in the density with an axis of {num_objects} objects; found arrays of shape "
                f"{', '.join(shapes)}."
            )

    def _shard(self, array: np.ndarray, axis: int) -> jax.Array:
        """Shard an array along an axis over the devices, padded to equal parts."""
        num_padding = -array.shape[axis] % self.num_devices
        # Padding repeats the last object, so that all values computed before the slice are valid.
        padded = np.pad(array, [(0, num_padding if i == axis else 0) for i in range(array.ndim)], mode="edge")
        spec = PartitionSpec(*[None] * axis, "object")
        return jax.make_array_from_callback(padded.shape, NamedSharding(self.mesh, spec), lambda index: padded[index])

    def compile(
        self,
        fn: Callable,
        *args: Any,
        compared: bool = True,
        options: Any = None,
        arrays: Sequence[Any] = (),
        identity: Any = None,
    ) -> "SplitProgram":
        """Compile a function of a split potential for arguments of these shapes; `SplitProgram` has the parameters.

        ``arrays`` has no effect, because the arrays that are split are arguments, and neither has ``identity``.
        """
        return SplitProgram(self, fn, args, compared, options)

    def everywhere(self, value) -> jax.Array:
        """Replicate a value, equal in every process, on all devices."""
        array = np.asarray(value)
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    @contextlib.contextmanager
    def tracing(self, parts) -> Iterator[None]:
        """Context in which ``parts``, one for each array of `sharded`, replace the constants of a split potential."""
        entries = zip(self._sharded.items(), parts, strict=True)
        self.replacements = {
            number: jax.lax.slice_in_dim(part, 0, length, axis=axis) for (number, (_, axis, length)), part in entries
        }
        try:
            yield
        finally:
            self.replacements = None

    @property
    def sharded(self) -> list[jax.Array]:
        """Constants that are sharded over the devices."""
        return [array for array, _, _ in self._sharded.values()]

    def compare(self, arrays: list[np.ndarray]):
        """Check that every process has the same arrays.

        Raises
        ------
        ProcessesError
            If they differ.
        """
        checksum = 0
        for array in arrays:
            checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
        checksums = multihost_utils.process_allgather(np.asarray(checksum, np.uint32)).ravel()
        if (checksums != checksums[0]).any():
            raise ProcessesError(
                "The processes differ: expected the same data and sampler state in all of them; found that "
                f"process {int(np.argmax(checksums != checksums[0]))} differs from process 0. They must run on "
                "machines of one kind, with the same program, data, arguments and versions."
            )

    # Decisions.

    def lead(self, work: Callable[[], Any] = lambda: None) -> Any:
        """Run ``work`` in process 0 only; return its result, or raise its exception, in every process.

        A pending Ctrl-C of process 0 is raised here, so that all processes stop at the same point.
        """
        outcome: tuple[bool, Any] = (True, None)
        if self.leads:
            try:
                self._raise_if_interrupted()
                outcome = (True, work())
            except BaseException as error:
                outcome = (False, error)
        succeeded, value = self._from_process_0(outcome)
        if not succeeded:
            raise value
        return value

    def _from_process_0(self, outcome):
        """Broadcast an outcome of process 0 as a message of `hbm_jax.inference.messages`."""
        if jax.process_count() == 1:
            return outcome
        message = b""
        if self.leads:
            try:
                message = pack(outcome)
            except TypeError as error:  # the other processes wait for a message
                outcome = False, error
                message = pack(outcome)
        frame = np.zeros(FRAME, np.uint8)
        frame[:HEADER] = np.frombuffer(len(message).to_bytes(HEADER, "little"), np.uint8)
        head = np.frombuffer(message[: FRAME - HEADER], np.uint8)
        frame[HEADER : HEADER + len(head)] = head
        frame = np.asarray(multihost_utils.broadcast_one_to_all(frame))
        length = int.from_bytes(frame[:HEADER].tobytes(), "little")
        received = frame[HEADER:].tobytes()
        if length > len(received):
            remainder = np.zeros(1 << (length - len(received) - 1).bit_length(), np.uint8)
            tail = np.frombuffer(message[FRAME - HEADER :], np.uint8)
            remainder[: len(tail)] = tail
            received += np.asarray(multihost_utils.broadcast_one_to_all(remainder)).tobytes()
        return outcome if self.leads else unpack(received[:length])

    def open(self, kind: Callable, folder) -> Any:
        """Open a checkpoint in process 0; see `SharedCheckpoint`."""
        return SharedCheckpoint(self, kind, folder)

    def choose_start(self, choose: Callable, target: Target, num_chains: int, key: jax.Array) -> Any:
        """Choose starting points in process 0; all processes evaluate the density.

        The path of a search depends on rounding in NumPy, which may differ between processes.
        """

        def evaluate_in_all(point):
            return target.value_and_grad(self.lead(lambda: np.asarray(point)))

        if not self.leads:
            while (point := self.lead()) is not None:
                target.value_and_grad(point)
            return self.lead()
        start, error = None, None
        try:
            start = choose(target, num_chains, key, evaluate_in_all)
        except Exception as exception:
            error = exception  # raised below, where the other processes wait for the result

        def result():
            if error is not None:
                raise error
            return start

        self.lead()  # None instead of a point: the search has ended
        return self.lead(result)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Context of a run: a Ctrl-C in process 0 is raised by `lead` in every process; in the others it is ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        previous = signal.signal(signal.SIGINT, self._record_signal if self.leads else signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Context of sampling; signals are handled by `listening`."""
        yield


class SplitProgram:
    """Compiled function of a split potential; arguments and results are arrays of this process.

    Parameters
    ----------
    processes : Processes
        Processes that run it.
    fn : callable
        Function of `args`, pytrees of arrays.
    args : tuple
        Example arguments, which determine the shapes.
    compared : bool
        Whether results are compared between processes.
    options : dict, optional
        Options of XLA; default as in `hbm_jax.inference.compilation.constants_as_arguments.compiled`.
    """

    def __init__(self, processes: Processes, fn: Callable, args: tuple, compared: bool, options: Any):
        self.processes, self.compared = processes, compared
        leaves, structure = jax.tree.flatten(args)
        impls = [jax.random.key_impl(leaf) if is_key(leaf) else None for leaf in leaves]
        kinds: dict[str, Any] = {}

        def program(parts, leaves):
            leaves = [_as_key(x, impl) for x, impl in zip(leaves, impls, strict=True)]
            with processes.tracing(parts):
                out, kinds["structure"] = jax.tree.flatten(fn(*jax.tree.unflatten(structure, leaves)))
            kinds["impls"] = [jax.random.key_impl(x) if is_key(x) else None for x in out]
            return [jax.random.key_data(x) if is_key(x) else x for x in out]

        everywhere = NamedSharding(processes.mesh, PartitionSpec())
        replicated = [processes.everywhere(plain_leaf(leaf)) for leaf in leaves]
        lowered = jax.jit(program, out_shardings=everywhere).lower(processes.sharded, replicated)
        self._compiled = lowered.compile(sampling_options(jax.default_backend()) if options is None else options)
        self._kinds = kinds

    def __call__(self, *args):
        """Run the program; call it in all processes."""
        leaves = [self.processes.everywhere(plain_leaf(leaf)) for leaf in jax.tree.leaves(args)]
        # Programs that communicate must not overlap, so block until each is done.
        out = jax.block_until_ready(self._compiled(self.processes.sharded, leaves))
        out = [x.addressable_data(0) for x in out]
        if self.compared:
            self.processes.compare([np.asarray(x) for x in out])
        out = [_as_key(x, impl) for x, impl in zip(out, self._kinds["impls"], strict=True)]
        return jax.tree.unflatten(self._kinds["structure"], out)

    def as_text(self) -> str:
        """Return the compiled program of one device as XLA text."""
        return self._compiled.as_text() or ""


class SharedCheckpoint:
    """Checkpoint that process 0 alone reads and writes; its methods have the same results in every process.

    Parameters
    ----------
    processes : Processes
        The processes; all of them call every method.
    kind : callable
        ``kind(folder)`` opens the checkpoint.
    folder : path
        Its folder.
    """

    def __init__(self, processes: Processes, kind: Callable, folder):
        self._lead, self.folder = processes.lead, Path(folder)
        self._store: Any = None

        def create():
            self._store = kind(folder)

        self._lead(create)

    def close(self):
        """Close the checkpoint, without communication, because other processes may have ended."""
        if self._store is not None:
            self._store.close()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the checkpoint, or a method that process 0 runs for all."""
        if name in ("run", "run_id"):
            return self._lead(lambda: getattr(self._store, name))
        if name not in ("begin", "update", "read_start", "write_start", "write_block", "blocks"):
            raise AttributeError(name)

        def run_in_process_0(*args, **kwargs):
            result = getattr(self._store, name)(*args, **kwargs)
            return list(result) if isinstance(result, Iterator) else result  # iterators cannot be sent

        return lambda *args, **kwargs: self._lead(lambda: run_in_process_0(*args, **kwargs))


def _as_key(data, impl):
    """Return key data as a random key of an implementation; unchanged if ``impl`` is None."""
    return data if impl is None else jax.random.wrap_key_data(data, impl=impl)


def _constants(closed: ClosedJaxpr) -> Iterator[Any]:
    """Yield the constants of a trace and of the jitted functions in it."""
    yield from closed.consts
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name == "jit":
            yield from _constants(equation.params["jaxpr"])


def _evaluate(closed: ClosedJaxpr, replacements: dict[int, Any], args: list) -> list:
    """Evaluate a trace with some of its constants, by id, replaced."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, [replacements.get(id(c), c) for c in closed.consts], strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if equation.primitive.name == "jit":
            outputs = _evaluate(equation.params["jaxpr"], replacements, inputs)
        else:
            outputs = list(evaluated(equation, inputs))
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
