"""CHGNet, a universal potential for inorganic matter, with the weights that come in its package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from daskpipe.potentials.evaluate import calculator_of
from daskpipe.potentials.identity import Identity, file_hash
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.results import Evaluation, Failure, checked_results
from daskpipe.potentials.traits import Traits

if TYPE_CHECKING:
    from ase import Atoms

TRAITS = Traits(packages=("chgnet",), trial="Cu")

CUTOFF = 6.0
"""Cutoff of CHGNet's atom graph, Å."""

VACUUM = 2 * CUTOFF
"""Vacuum along open axes, Å."""

BATCH = 16
"""Structures that are evaluated at once."""


def chgnet(*, device: str, dtype: str, version: Literal["0.3.0", "0.2.0", "r2scan"] = "0.3.0") -> Potential:
    """CHGNet, in batches of 16 structures. Source: doi.org/10.1038/s42256-023-00716-3.

    CHGNet takes periodic structures only: along open axes a structure gets 12 Å of vacuum, twice CHGNet's cutoff. A
    structure with an atom that has no neighbour within 6 Å fails.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``.
    dtype
        Ignored: CHGNet computes in float32.
    version
        Weights: 0.3.0 and 0.2.0 were trained on PBE(+U), r2scan on r2SCAN.
    """
    label = _make_labeller(device, version)
    return Potential(
        calculator=calculator_of(label), label=label, elements=_known_elements(), cutoff=CUTOFF, knows_charge=False
    )


def identify(version: str) -> Identity:
    """Identify CHGNet by the bytes of its weights."""
    return Identity(name=f"CHGNet {version}", hash=file_hash(_find_weights(version)), elements=_known_elements())


def _find_weights(version: str) -> Path:
    spec = find_spec("chgnet")
    assert spec is not None, "identify_potential checks that the package is installed"
    assert spec.origin is not None
    (path,) = (Path(spec.origin).parent / "pretrained" / version).glob("*.pth.tar")
    return path


def _known_elements() -> frozenset[str]:
    from ase.data import chemical_symbols

    # The 89 elements of its training set MPtrj: up to Pu without Po, At, Rn, Fr and Ra.
    return frozenset(chemical_symbols[1:84] + chemical_symbols[89:95])


def _make_labeller(device: str, version: str) -> Any:
    from ase.stress import full_3x3_to_voigt_6_stress
    from chgnet.model.model import CHGNet
    from pymatgen.core import Lattice, Structure

    from daskpipe.core.constants import GPA
    from daskpipe.potentials.box import make_periodic

    class SilentStructure(Structure):
        def to(self, *_args: Any, **_kwargs: Any) -> str:
            """Write nothing: CHGNet would write a CIF into the current directory when a graph fails."""
            return ""

    model = CHGNet.load(model_name=version, use_device=device, verbose=False)
    model.graph_converter.set_isolated_atom_response("error")

    def build_graph(atoms: Atoms) -> Any:
        inside = make_periodic(atoms, VACUUM)
        inside.wrap()
        lattice = Lattice(inside.cell.array)
        try:
            return model.graph_converter(
                SilentStructure(lattice, inside.numbers.tolist(), inside.positions, coords_are_cartesian=True)
            )
        except ValueError as error:
            if "isolated atom" in str(error):
                return Failure(reason="isolated_atom", evidence=f"an atom has no neighbour within {CUTOFF:g} Å")
            return Failure(reason="failed", evidence=f"CHGNet's graph: {error}")
        except RuntimeError as error:
            return Failure(reason="failed", evidence=f"CHGNet's graph: {error.__cause__ or error}")

    def label_structures(structures: Sequence[Atoms]) -> list[Evaluation]:
        out: list[Evaluation] = []
        for start in range(0, len(structures), BATCH):
            batch = structures[start : start + BATCH]
            graphs = [build_graph(atoms) for atoms in batch]
            good = [item for item in graphs if not isinstance(item, Failure)]
            predicted = model.predict_graph(good, task="efsm", batch_size=BATCH) if good else []
            answers = iter([predicted] if isinstance(predicted, dict) else predicted)
            for atoms, item in zip(batch, graphs, strict=True):
                out.append(item if isinstance(item, Failure) else read_results(atoms, next(answers)))
        return out

    def read_results(atoms: Atoms, predicted: dict[str, Any]) -> Evaluation:
        stress = None
        if atoms.pbc.all():
            # CHGNet divides by the signed volume, which is negative in a left-handed cell.
            sign = 1.0 if atoms.cell.handedness >= 0 else -1.0
            stress = sign * GPA * full_3x3_to_voigt_6_stress(predicted["s"].astype(float))
        return checked_results(
            energy=float(predicted["e"]) * len(atoms),
            forces=predicted["f"].astype(float),
            stress=stress,
            magmoms=predicted["m"].astype(float),
        )

    return label_structures
