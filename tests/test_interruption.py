"""Ctrl-C on the command line: soon, whatever the main thread is at, and without a traceback."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hbm_jax.cli import INTERRUPTED, interruption
from hbm_jax.inference.sampler.target import OneProcess

# What the main thread does, having said that it is ready.
READY = "print('ready', flush=True)"
BUSY = {
    # Within C, as in the compiler: Python's handlers do not run, other threads do.
    "compiling": "threading.Timer(0.3, lambda: print('ready', flush=True)).start()\n"
    "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**30)",
    "swallowing": f"try:\n    {READY}; time.sleep(60)\nexcept (KeyboardInterrupt, Exception):\n    time.sleep(60)",
    "tidying": f"try:\n    {READY}; time.sleep(60)\nfinally:\n    print('tidied', flush=True)",
    # Extension modules can crash if an exception interrupts their import.
    "importing": "import pathlib, tempfile\nfolder = tempfile.mkdtemp()\nsys.path.insert(0, folder)\n"
    f"pathlib.Path(folder, 'slow_module.py').write_text({READY + '; import time; time.sleep(60)'!r})\n"
    "import slow_module",
    "drawing": f"signal.signal(signal.SIGINT, lambda *_: print('noted', flush=True)); {READY}; time.sleep(60)",
}

PROGRAM = """
import hashlib, signal, sys, threading, time
from hbm_jax import cli
from hbm_jax.cli import interruption

def run(argv):
    with interruption.exit_message(lambda: "continue with this"):
        exec(sys.argv[1])

signal.signal(signal.SIGINT, signal.default_int_handler)
cli._run = run
sys.exit(cli.main())
"""


def interrupt(process, times=1):
    """Status, both outputs, and the seconds that the end took after the first signal."""
    began = time.monotonic()
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, out, err, time.monotonic() - began


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "times", "said", "out"),
    [
        ("compiling", 1, "continue with this", ""),
        ("swallowing", 1, "interrupted; nothing was written.", ""),
        ("tidying", 1, "interrupted; nothing was written.", "tidied\n"),
        ("importing", 1, "continue with this", ""),
        ("drawing", 2, "continue with this", "noted\n"),
    ],
)
def test_the_end_comes_soon_and_is_a_line(what, times, said, out):
    command = [sys.executable, "-c", PROGRAM, BUSY[what]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    status, written, err, seconds = interrupt(process, times)
    assert status == INTERRUPTED
    assert err == f"\nhbm-jax: {said}\n"
    assert written.startswith(out)
    assert seconds < interruption.PATIENCE + 5.0  # and not the minute that they are busy


def test_nothing_slow_is_imported_before_ctrl_c_is_heard():
    text = "import sys, hbm_jax.cli; print(sorted({'jax', 'numpy', 'numpyro', 'argparse'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.long
@pytest.mark.parametrize(("begun", "later"), [(False, 0.5), (True, 0.0), (True, 1.5)])
def test_a_fit_is_interrupted_while_it_starts_and_compiles(begun, later, tmp_path):
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "hbm_jax.cli",
        "fit",
        "supernova",
        "--out",
        str(folder),
        "--num-samples",
        "9999999",
    ]
    environment = os.environ | {"HBM_JAX_CACHE": "off"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while begun and not (folder / "checkpoint" / "run.json").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(later)
    status, _, err, seconds = interrupt(process)
    assert status == INTERRUPTED, err
    assert "Traceback" not in err
    assert "\nhbm-jax: interrupted" in err
    assert seconds < interruption.PATIENCE + 10.0


def test_while_drawing_the_first_is_noted_and_the_second_at_once():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    process = OneProcess()
    with process.drawing():
        assert process.lead(lambda: "drawn") == "drawn"
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            process.lead(lambda: "drawn")
        assert process.lead(lambda: "drawn") == "drawn"
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) == before[1]  # that a program does not catch
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
