"""Compute the normalisation of a model: reference energies, scales and counts of a split."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from daskpipe.core.errors import InputError
from daskpipe.core.root_metadata import read_root
from daskpipe.load.batch import Batch
from daskpipe.load.torch_data import TorchDataset

SAME_ENERGY = 1e-3
"""Difference between two energies of one isolated atom, eV, above which their methods differ."""

BLOCK = 512
"""Structures in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Normalisation of a training set; ``json.dumps(dataclasses.asdict(spec))`` serialises it.

    Parameters
    ----------
    n_structures, n_atoms
        Numbers of structures and atoms.
    elements
        Atomic numbers that occur, sorted.
    e0s
        Energy of an atom of each element by symbol, eV: that of the isolated atom where the dataset contains one (see
        `isolated`), else from a least-squares fit of the remaining energies to the compositions. Where the
        compositions do not separate the elements (a fixed stoichiometry), it is the solution of smallest norm: sums
        are right, but single numbers have no meaning.
    isolated
        Symbols of the elements whose `e0s` are energies of isolated atoms.
    mean_energy_per_atom, std_energy_per_atom
        Mean and standard deviation over the structures, eV per atom.
    std_residual_per_atom
        Root of the mean square after the `e0s` are subtracted, eV per atom.
    rms_force
        Root of the mean square of all components of all forces, eV/Å.
    max_force
        Largest norm of a force, eV/Å.
    cutoff, avg_num_neighbors
        Cutoff, Å, and mean number of neighbours of an atom within it; None without a cutoff.
    """

    n_structures: int
    n_atoms: int
    elements: list[int]
    e0s: dict[str, float]
    isolated: list[str]
    mean_energy_per_atom: float
    std_energy_per_atom: float
    std_residual_per_atom: float
    rms_force: float
    max_force: float
    cutoff: float | None
    avg_num_neighbors: float | None


def spec(path: Path | str, split: str | None = "train", cutoff: float | None = None, *, verify: bool = True) -> Spec:
    """Compute the normalisation of a split, in float64 and in blocks of 512 structures.

    Parameters
    ----------
    path, split, verify
        As for `TorchDataset`.
    cutoff
        In Å; if given, neighbours are counted, too, which takes about a millisecond per structure.

    Raises
    ------
    InputError
        If the split has no structure, or isolated atoms of several heads disagree; also as `TorchDataset`.

    Examples
    --------
    >>> scales = spec("runs/q/dataset.zarr", cutoff=5.0)
    >>> scales.rms_force > 0, len(scales.e0s) > 0
    (True, True)
    """
    from ase.data import chemical_symbols

    from daskpipe.load.neighbours import edges_of

    data = TorchDataset(path, split, verify=verify)
    if not len(data):
        raise InputError(f"{path} has no structure of split {split!r}; take another split")
    counts = np.zeros(len(chemical_symbols))
    squares, largest, n_forces, n_edges = 0.0, 0.0, 0, 0
    # The fit needs the rows (composition, energy) only through the triangle of their QR decomposition.
    triangle = np.zeros((0, len(counts) + 1))
    energy_per_atom = np.empty(len(data))
    for rows, batch in _iter_blocks(data):
        composition, energy = _count_elements(batch), batch["energy"].numpy()
        triangle = np.linalg.qr(np.vstack([triangle, np.column_stack([composition, energy])]), mode="r")
        counts += composition.sum(axis=0)
        energy_per_atom[rows] = energy / batch["n_atoms"].numpy()
        forces = (batch["forces"].numpy().astype(np.float64) ** 2).sum(axis=1)
        forces = forces[~np.isnan(forces)]  # some structures have an energy and no forces
        squares, n_forces = squares + forces.sum(), n_forces + len(forces)
        largest = max(largest, forces.max(initial=0.0))
        if cutoff is not None:
            n_edges += edges_of(batch, cutoff, torch.float64)["edge_index"].shape[1]
    present = np.flatnonzero(counts)
    isolated = isolated_atom_energies(path)
    given = np.array([isolated.get(chemical_symbols[z], np.nan) for z in present])
    known = np.isfinite(given)
    remaining = triangle[:, -1] - triangle[:, present[known]] @ given[known]
    e0s = given
    e0s[~known], _, rank, _ = np.linalg.lstsq(triangle[:, present[~known]], remaining, rcond=None)
    if rank < (~known).sum():
        symbols = ", ".join(chemical_symbols[z] for z in present[~known])
        warnings.warn(
            f"the compositions of {path} do not determine the energies of {symbols}: of those that fit as well the "
            "smallest are taken. Label isolated atoms (label.isolated_atoms), or add other compositions",
            stacklevel=2,
        )
    residual = energy_per_atom.copy()
    for rows, batch in _iter_blocks(data):
        residual[rows] -= _count_elements(batch)[:, present] @ e0s / batch["n_atoms"].numpy()
    n_atoms = int(counts.sum())
    return Spec(
        n_structures=len(data),
        n_atoms=n_atoms,
        elements=present.tolist(),
        e0s={chemical_symbols[z]: float(value) for z, value in zip(present, e0s, strict=True)},
        isolated=[chemical_symbols[z] for z in present[known]],
        mean_energy_per_atom=float(energy_per_atom.mean()),
        std_energy_per_atom=float(energy_per_atom.std()),
        std_residual_per_atom=float(np.sqrt((residual**2).mean())),
        rms_force=float(np.sqrt(squares / max(3 * n_forces, 1))),
        max_force=float(np.sqrt(largest)),
        cutoff=cutoff,
        avg_num_neighbors=None if cutoff is None else n_edges / n_atoms,
    )


def isolated_atom_energies(path: Path | str) -> dict[str, float]:
    """Read the energies of the isolated atoms of a dataset by symbol, eV.

    Raises
    ------
    InputError
        If heads of the dataset have different energies of an element, or the attribute is damaged.
    """
    text = read_root(Path(path))["attributes"].get("isolated_atom_energies", "{}")
    by_symbol: dict[str, tuple[str, float]] = {}
    try:
        heads = {str(head): {str(key): float(e) for key, e in of.items()} for head, of in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its attribute isolated_atom_energies is damaged ({error}); make it anew") from error
    for head, energies in heads.items():
        for symbol, energy in energies.items():
            other, before = by_symbol.setdefault(symbol, (head, energy))
            if abs(energy - before) > SAME_ENERGY:
                raise InputError(
                    f"{path}: an isolated {symbol} has {before:.6g} eV in head {other!r} and {energy:.6g} eV in head "
                    f"{head!r}: one model cannot be normalised by both; make a dataset of one head alone"
                )
    return {symbol: energy for symbol, (_, energy) in by_symbol.items()}


def _iter_blocks(data: TorchDataset) -> Iterator[tuple[slice, Batch]]:
    """Yield the structures of a dataset in batches of `BLOCK`, with their positions."""
    for start in range(0, len(data), BLOCK):
        rows = slice(start, min(start + BLOCK, len(data)))
        yield rows, data.table.read_batch(np.arange(rows.start, rows.stop))


def _count_elements(batch: Batch) -> np.ndarray:
    """Count the atoms of each element (by atomic number), shape (structure, 119), float64."""
    from ase.data import chemical_symbols

    n_elements = len(chemical_symbols)
    place = batch["batch"].numpy() * n_elements + batch["numbers"].numpy()
    counts = np.bincount(place, minlength=batch.n_structures * n_elements)
    return counts.reshape(batch.n_structures, n_elements).astype(np.float64)
