"""List the checks of the quality gate: each is one function and one entry of `CHECKS`.

The gate, the settings (``quality.NAME`` of a config) and the profiles derive from the table. To add a check:

1. Write a function that takes measured columns and ``limit`` as keyword arguments and returns a
   `daskpipe.store.quality.check.Check`. `daskpipe.store.quality.gate.COLUMNS` lists the columns.
2. Add an entry here. The order of the entries is the order of the verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pydantic import Field, PositiveFloat
from pydantic.fields import FieldInfo

from daskpipe.store.quality.check import Check
from daskpipe.store.quality.limits import (
    CellLimits,
    DuplicateLimits,
    EnergyLimits,
    Factor,
    Share,
    Shares,
    SizeLimits,
)

Profile = Literal["auto", "run", "import", "molecules", "reference"]

CONTENT: tuple[Profile, ...] = ("import", "reference")
"""Profiles in which checks of what a dataset contains warn only: a set that others have made is what it is."""

REFERENCE: tuple[Profile, ...] = ("reference",)


@dataclass(frozen=True, kw_only=True)
class CheckEntry:
    """One entry of the table of checks.

    Parameters
    ----------
    function
        ``"module:function"``, the module within `daskpipe.store.quality`. It receives `reads`, `optional` and
        ``limit`` as keyword arguments.
    limit_type, setting
        Type, default and description of the limit: the key ``quality.NAME`` of a config. ``None`` turns the check off.
    reads
        Columns that the function needs, see `daskpipe.store.quality.gate.COLUMNS`.
    optional
        Columns that it receives where the dataset has them.
    needs
        Words for `reads` in the message of a check that is skipped because the dataset lacks them.
    required
        Whether the check fails, instead of being skipped, where the dataset lacks `reads`.
    warns_in
        Profiles in which the check warns where it would fail.
    """

    function: str
    limit_type: Any
    setting: FieldInfo
    reads: tuple[str, ...]
    optional: tuple[str, ...] = ()
    needs: str = ""
    required: bool = False
    warns_in: tuple[Profile, ...] = ()

    def load_function(self) -> Callable[..., Check]:
        """Import the function of the check."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Check] = getattr(import_module(f"daskpipe.store.quality.{module}"), name)
        return function


def _make_setting(default: Any, description: str, **rest: Any) -> Any:
    """Return a pydantic field; a default that is a class is made anew for each config."""
    how = {"default_factory": default} if isinstance(default, type) else {"default": default}
    return Field(description=description, **how, **rest)


CHECKS = {
    "overlap": CheckEntry(
        function="structure_checks:check_overlap",
        limit_type=PositiveFloat | None,
        setting=_make_setting(0.5, "Smallest distance between two atoms, in sums of their covalent radii", le=1),
        reads=("ids", "closest"),
        warns_in=REFERENCE,
    ),
    "isolated_atoms": CheckEntry(
        function="structure_checks:check_isolated_atoms",
        limit_type=Factor | None,
        setting=_make_setting(
            2.5, "Largest distance of an atom from the nearest one of its structure, in sums of covalent radii", le=5
        ),
        reads=("ids", "n_atoms", "loneliest"),
        warns_in=CONTENT,
    ),
    "cell": CheckEntry(
        function="structure_checks:check_cell",
        limit_type=CellLimits | None,
        setting=_make_setting(CellLimits, "Limits of the volume and shape of cells"),
        reads=("ids", "n_atoms", "finite", "fullness", "left_handed", "volume"),
    ),
    "energy": CheckEntry(
        function="structure_checks:check_energy",
        limit_type=EnergyLimits | None,
        setting=_make_setting(EnergyLimits, "Outliers of the energy"),
        reads=("ids", "energy", "counts", "composition", "type_number", "exempt"),
        required=True,
        warns_in=REFERENCE,
    ),
    "units": CheckEntry(
        function="structure_checks:check_units",
        limit_type=Factor | None,
        setting=_make_setting(
            5.0,
            "Factor by which energies and forces of neighbouring frames may disagree; 1.3 where the frames are near "
            "and many enough to measure it precisely",
        ),
        reads=("pair_ids", "pair_energy", "pair_work"),
        needs="energies and forces",
    ),
    "forces": CheckEntry(
        function="structure_checks:check_forces",
        limit_type=PositiveFloat | None,
        setting=_make_setting(10.0, "Largest 99th percentile of the forces, eV/Å"),
        reads=("ids", "forces_finite", "largest_force", "force_p99"),
        required=True,
        warns_in=REFERENCE,
    ),
    "largest_force": CheckEntry(
        function="structure_checks:check_largest_force",
        limit_type=PositiveFloat | None,
        setting=_make_setting(50.0, "Largest force on an atom, eV/Å"),
        reads=("ids", "largest_force"),
        needs="forces",
        warns_in=REFERENCE,
    ),
    "net_force": CheckEntry(
        function="structure_checks:check_net_force",
        limit_type=PositiveFloat | None,
        setting=_make_setting(0.005, "Largest sum of the forces of a structure, eV/Å per atom"),
        reads=("ids", "net_force"),
        needs="forces",
    ),
    "zero_forces": CheckEntry(
        function="structure_checks:check_zero_forces",
        limit_type=Share | None,
        setting=_make_setting(
            0.0, "Largest share of structures whose forces are all 0 although no symmetry requires it"
        ),
        reads=("ids", "n_atoms", "zero_forces"),
        needs="forces",
    ),
    "stress": CheckEntry(
        function="structure_checks:check_stress",
        limit_type=PositiveFloat | None,
        setting=_make_setting(100.0, "Largest component of a stress, GPa"),
        reads=("ids", "largest_stress", "periodic"),
        needs="stress",
        warns_in=REFERENCE,
    ),
    "duplicates": CheckEntry(
        function="dataset_checks:check_duplicates",
        limit_type=DuplicateLimits | None,
        setting=_make_setting(DuplicateLimits, "Repeated structures"),
        reads=("ids", "composition", "state", "fingerprint"),
        warns_in=REFERENCE,
    ),
    "label_success": CheckEntry(
        function="dataset_checks:check_label_success",
        limit_type=Share | None,
        setting=_make_setting(0.95, "Smallest share of the structures given to the teacher that it labelled"),
        reads=("n_structures", "failures"),
        needs="on how many structures the teacher failed",
    ),
    "label_checks": CheckEntry(
        function="dataset_checks:check_label_status",
        limit_type=Share | None,
        setting=_make_setting(0.99, "Smallest share of structures with label_status ok"),
        reads=("ids", "labels_ok"),
        needs="label_status",
    ),
    "finite_differences": CheckEntry(
        function="dataset_checks:check_finite_differences",
        limit_type=Share | None,
        setting=_make_setting(
            0.0, "Largest share of the checked structures whose forces or stress disagree with their energies"
        ),
        reads=("ids", "differences"),
        needs="finite_difference_check",
    ),
    "elements": CheckEntry(
        function="dataset_checks:check_elements",
        limit_type=Share | None,
        setting=_make_setting(0.01, "Smallest share of structures that contain the rarest of the elements"),
        reads=("structures_of_element", "n_structures", "requested_elements"),
        warns_in=CONTENT,
    ),
    "composition_entropy": CheckEntry(
        function="dataset_checks:check_composition_entropy",
        limit_type=Share | None,
        setting=_make_setting(0.5, "Smallest entropy of the compositions, over that of as many equally frequent ones"),
        reads=("composition",),
        warns_in=CONTENT,
    ),
    "sizes": CheckEntry(
        function="dataset_checks:check_sizes",
        limit_type=SizeLimits | None,
        setting=_make_setting(SizeLimits, "Numbers of atoms"),
        reads=("ids", "n_atoms"),
        warns_in=CONTENT,
    ),
    "type_balance": CheckEntry(
        function="dataset_checks:check_type_balance",
        limit_type=Share | None,
        setting=_make_setting(0.2, "Smallest share of the rarest system type, over that of equally frequent ones"),
        reads=("structures_of_type", "requested_types"),
        needs="system_type",
        warns_in=CONTENT,
    ),
    "periodic_share": CheckEntry(
        function="dataset_checks:check_periodic_share",
        limit_type=Shares | None,
        setting=_make_setting(None, "Share of structures that are periodic along all axes"),
        reads=("periodic",),
    ),
    "diversity": CheckEntry(
        function="dataset_checks:check_diversity",
        limit_type=PositiveFloat | None,
        setting=_make_setting(3.0, "Smallest effective number of different structures (Vendi score)"),
        reads=("feature_ids", "features"),
        needs="features",
        warns_in=CONTENT,
    ),
    "splits": CheckEntry(
        function="split_checks:check_splits",
        limit_type=Share | None,
        setting=_make_setting(
            0.05, "Largest difference of a split from its share, beyond the smallest one that whole groups allow"
        ),
        reads=("ids", "split", "group", "shares", "reference"),
        optional=("system_type",),
        needs="split",
        warns_in=REFERENCE,
    ),
    "leakage": CheckEntry(
        function="split_checks:check_leakage",
        limit_type=Share | None,
        setting=_make_setting(
            0.2, "Largest share of val or test with a training structure of the same trajectory close by"
        ),
        reads=("ids", "split", "looked", "leaks"),
        needs="features and splits",
        warns_in=REFERENCE,
    ),
}
"""Checks by name, in the order of the verdict."""
