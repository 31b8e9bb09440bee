"""A committee of potentials: their mean, and by how much their forces disagree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, with_config

from daskpipe.potentials.evaluate import batched_model, calculator_of, evaluate
from daskpipe.potentials.identity import Identity
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.results import Evaluation, Failure, Results

if TYPE_CHECKING:
    from ase import Atoms
    from torch_sim.models.interface import ModelInterface


@with_config(ConfigDict(extra="forbid"))
class Member(TypedDict):
    """A registered potential and its parameters."""

    name: str
    params: NotRequired[dict[str, Any]]


def _filled(member: Member) -> Member:
    """Check a member's parameters as a potential's own, and fill in their defaults."""
    from daskpipe.potentials.catalogue import check_params

    return {"name": member["name"], "params": check_params(member["name"], member.get("params", {}))}


def committee(
    *,
    device: str,
    dtype: str,
    members: Annotated[list[Annotated[Member, AfterValidator(_filled)]], Field(min_length=2)],
) -> Potential:
    """Mean of several potentials, such as MACE models that were trained alike from other seeds.

    Its batched model, its results and its calculator also give ``force_disagreement`` in eV/Å, one number a
    structure: the largest over its atoms of the square root of the mean over the members of |F_member - F_mean|^2.
    A structure with which one member fails is a failure.

    Parameters
    ----------
    device, dtype
        Of all members.
    members
        At least two, each with ``name``, one of ``POTENTIALS.known_names()``, and ``params``, its parameters.
    """
    from daskpipe.potentials.catalogue import build_potential

    parts = [build_potential(member["name"], member.get("params", {}), device, dtype) for member in members]

    def model(stress: bool) -> ModelInterface:
        import torch

        from daskpipe.potentials.committee_model import CommitteeModel

        return CommitteeModel([batched_model(part, stress=stress) for part in parts], torch.device(device))

    def label(structures: Sequence[Atoms]) -> list[Evaluation]:
        return [
            average_results(answers) for answers in zip(*(evaluate(part, structures) for part in parts), strict=True)
        ]

    cutoffs = [part.cutoff for part in parts if part.cutoff is not None]
    return Potential(
        calculator=calculator_of(label),
        model=model,
        label=label,
        elements=_common_elements(part.elements for part in parts),
        cutoff=max(cutoffs) if len(cutoffs) == len(parts) else None,
        knows_charge=all(part.knows_charge for part in parts),
    )


def identify(members: list[Member]) -> Identity:
    """Identity of a committee: those of its members, in order."""
    from daskpipe.potentials.catalogue import identify_potential

    parts = [identify_potential(member["name"], member.get("params", {})) for member in members]
    return Identity(
        name=f"committee of {', '.join(part.name for part in parts)}",
        hash=hashlib.sha256("\n".join(["committee", *(part.hash for part in parts)]).encode()).hexdigest(),
        elements=_common_elements(part.elements for part in parts),
        packages={name: version for part in parts for name, version in part.packages.items()},
    )


def average_results(answers: Sequence[Evaluation]) -> Evaluation:
    """Mean of what the members say about one structure; the first failure if one of them fails."""
    found: list[Results] = []
    for answer in answers:
        if isinstance(answer, Failure):
            return answer
        found.append(answer)
    forces = np.array([item.forces for item in found])
    return Results(
        energy=float(np.mean([item.energy for item in found])),
        forces=forces.mean(axis=0),
        stress=np.mean([item.stress for item in found], axis=0),
        force_disagreement=float(np.sqrt(forces.var(axis=0).sum(axis=1)).max()),
    )


def _common_elements(elements: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    known = [item for item in elements if item is not None]
    return frozenset.intersection(*known) if known else None
