"""Compute with an ASE calculator for another process, which asks through a pipe.

This file runs alone in the environment of a teacher: it imports ASE and NumPy, and nothing of daskpipe. A message is a
header, JSON, after its length (4 bytes, little-endian), and the bytes of the arrays that the header names. The first
message names the calculator; each later one holds structures, and each structure is answered as soon as it is computed:
what was answered is kept if a later structure kills this process.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import struct
import time
import traceback
from contextlib import suppress
from typing import Any

import numpy as np

MOST_TEXT = 2000
"""Characters of an error that are sent, from the end."""

PROPERTIES = ("energy", "forces", "stress", "magmoms")


def write_message(header: Any, arrays: Any) -> bytes:
    """Return the bytes of a message: the length of its header, the header, and the arrays."""
    arrays = {name: np.asarray(values) for name, values in arrays.items()}
    text = json.dumps({**header, "arrays": [[name, a.dtype.str, a.shape] for name, a in arrays.items()]}).encode()
    return b"".join([struct.pack("<I", len(text)), text, *(values.tobytes() for values in arrays.values())])


def read_message(read: Any) -> Any:
    """Return header and arrays of a message; `read` returns as many bytes as it is asked for."""
    (size,) = struct.unpack("<I", read(4))
    header = json.loads(read(size))
    arrays = {}
    for name, dtype, shape in header["arrays"]:
        n_bytes = int(np.dtype(dtype).itemsize * np.prod(shape, dtype=int))
        arrays[name] = np.frombuffer(read(n_bytes), dtype=dtype).reshape(shape)
    return header, arrays


class Pipe:
    """Messages over two file descriptors."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming, self.outgoing = os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb")
        self.owner = os.getpid()

    def receive(self) -> Any:
        """Return header and arrays of the next message; raise EOFError at the end."""
        return read_message(self.read)

    def read(self, size: int) -> bytes:
        """Return so many bytes; raise EOFError if the pipe ends before."""
        data = self.incoming.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def send(self, header: Any, arrays: Any = None) -> None:
        """Send a message; a process that a calculator forked must not."""
        if os.getpid() != self.owner:
            os._exit(0)
        self.outgoing.write(write_message(header, arrays or {}))
        self.outgoing.flush()


def load_function(place: str) -> Any:
    """Import ``module:function``, or ``/path/to/file.py:function``."""
    module, _, name = place.rpartition(":")
    if module.endswith(".py"):
        spec = importlib.util.spec_from_file_location("teacher", module)
        loaded: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(loaded)  # type: ignore[union-attr]
    else:
        loaded = importlib.import_module(module)
    for part in name.split("."):
        loaded = getattr(loaded, part)
    return loaded


def list_structures(arrays: Any) -> Any:
    """Return the structures of a message."""
    from ase import Atoms

    structures, start = [], 0
    for row, n_atoms in enumerate(arrays["n_atoms"].tolist()):
        rows = slice(start, start := start + n_atoms)
        atoms = Atoms(
            arrays["numbers"][rows], arrays["positions"][rows], cell=arrays["cell"][row], pbc=arrays["pbc"][row]
        )
        charge, multiplicity = int(arrays["charge"][row]), int(arrays["multiplicity"][row])
        # Models trained on OMol25 read the multiplicity from "spin".
        atoms.info = {"charge": charge, "spin_multiplicity": multiplicity, "spin": multiplicity}
        if "magmoms" in arrays:
            atoms.set_initial_magnetic_moments(arrays["magmoms"][rows])
        structures.append(atoms)
    return structures


def compute(calculator: Any, atoms: Any, facts: Any) -> Any:
    """Return the properties of a structure that the calculator has, or the reason why there are none."""
    from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError, all_changes

    if hasattr(calculator, "reset"):
        calculator.reset()
    for name, fact in facts.items():
        calculator.parameters[name] = atoms.info[fact]
    known = getattr(calculator, "implemented_properties", PROPERTIES)
    wanted = [name for name in PROPERTIES if name in known and (name != "stress" or atoms.pbc.all())]
    try:
        if hasattr(calculator, "calculate"):
            # All at once: a program that is started for each property would compute three times.
            calculator.calculate(atoms, [name for name in wanted if name != "magmoms"], list(all_changes))
            results = calculator.results
        else:
            results = {}
            for name in wanted:
                try:
                    results[name] = calculator.get_property(name, atoms)
                except PropertyNotImplementedError:
                    continue
    except CalculationFailed as error:
        unconverged = "not converge" in str(error)
        return None, {"reason": "unconverged" if unconverged else "failed", "evidence": str(error)[-MOST_TEXT:]}
    except Exception as error:
        if "CUDA" in str(error) or isinstance(error, MemoryError):
            traceback.print_exc()
            os._exit(1)  # the device or the memory of this process is gone; a new process tries again
        return None, {"reason": "failed", "evidence": f"{type(error).__name__}: {error}"[-MOST_TEXT:]}
    return {name: results[name] for name in wanted if results.get(name) is not None}, None


def serve(pipe: Pipe) -> None:
    """Answer messages until the pipe ends, which raises EOFError."""
    header, _ = pipe.receive()
    try:
        calculators = {
            variant: load_function(header["calculator"])(**arguments)
            for variant, arguments in header["variants"].items()
        }
    except Exception as error:
        traceback.print_exc()
        pipe.send({"error": f"{type(error).__name__}: {error}"[-MOST_TEXT:]})
        return
    facts = header["facts"]
    first = next(iter(calculators.values()))
    known = getattr(first, "implemented_properties", PROPERTIES)
    pipe.send({"properties": [name for name in PROPERTIES if name in known]})
    while True:
        header, arrays = pipe.receive()
        for atoms in list_structures(arrays):
            started = time.perf_counter()
            results, failure = compute(calculators[header["variant"]], atoms, facts)
            seconds = time.perf_counter() - started
            pipe.send(
                {"failure": failure, "seconds": seconds},
                {name: np.asarray(value, dtype=float) for name, value in (results or {}).items()},
            )


def main() -> None:
    """Serve on the standard input and output, which what computes cannot disturb: it gets others."""
    incoming, outgoing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    with suppress(EOFError):
        serve(Pipe(incoming, outgoing))


if __name__ == "__main__":
    main()
