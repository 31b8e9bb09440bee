"""A committee of potentials, which gives their mean and the disagreement of their forces."""

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
from daskpipe.potentials.traits import Traits

if TYPE_CHECKING:
    from ase import Atoms

    from daskpipe.core.torch_sim import ModelInterface

TRAITS = Traits(members="members", measures_disagreement=True)


@with_config(ConfigDict(extra="forbid"))
class Member(TypedDict):
    """Name and parameters of a member."""

    name: str
    params: NotRequired[dict[str, Any]]


def _fill_in_defaults(member: Member) -> Member:
    """Check the parameters of a member and fill in their defaults."""
    from daskpipe.potentials.catalogue import check_params

    return {"name": member["name"], "params": check_params(member["name"], member.get("params", {}))}


def committee(
    *,
    device: str,
    dtype: str,
    members: Annotated[list[Annotated[Member, AfterValidator(_fill_in_defaults)]], Field(min_length=2)],
) -> Potential:
    """Mean of several potentials, such as MACE models that were trained alike from other seeds.

    Batched model, results and calculator also give ``force_disagreement`` in eV/Å, one number a structure: the largest
    value over its atoms of the square root of the mean over the members of |F_member - F_mean|^2. A structure fails if
    a member fails on it.

    Parameters
    ----------
    device, dtype
        Device and precision of all members.
    members
        At least two, each with ``name``, one of ``POTENTIALS.known_names()``, and ``params``.
    """
    from daskpipe.potentials.catalogue import build_checked

    parts = [build_checked(member["name"], member["params"], device, dtype) for member in members]

    def make_model(stress: bool) -> ModelInterface:
        import torch

        from daskpipe.potentials.committee_model import CommitteeModel

        return CommitteeModel([batched_model(part, stress=stress) for part in parts], torch.device(device))

    def label_structures(structures: Sequence[Atoms]) -> list[Evaluation]:
        return [
            average_results(answers) for answers in zip(*(evaluate(part, structures) for part in parts), strict=True)
        ]

    cutoffs = [part.cutoff for part in parts if part.cutoff is not None]
    return Potential(
        calculator=calculator_of(label_structures),
        model=make_model,
        label=label_structures,
        elements=_common_elements(part.elements for part in parts),
        cutoff=max(cutoffs) if len(cutoffs) == len(parts) else None,
        knows_charge=all(part.knows_charge for part in parts),
    )


def identify(members: list[Member]) -> Identity:
    """Identify a committee by its members, in order."""
    from daskpipe.potentials.catalogue import identify_checked

    parts = [identify_checked(member["name"], member["params"]) for member in members]
    return Identity(
        name=f"committee of {', '.join(part.name for part in parts)}",
        hash=hashlib.sha256("\n".join(["committee", *(part.hash for part in parts)]).encode()).hexdigest(),
        elements=_common_elements(part.elements for part in parts),
        packages={name: version for part in parts for name, version in part.packages.items()},
    )


def average_results(answers: Sequence[Evaluation]) -> Evaluation:
    """Average the results of the members for one structure; return the first failure if there is one."""
    results: list[Results] = []
    for answer in answers:
        if isinstance(answer, Failure):
            return answer
        results.append(answer)
    forces = np.array([item.forces for item in results])
    return Results(
        energy=float(np.mean([item.energy for item in results])),
        forces=forces.mean(axis=0),
        stress=np.mean([item.stress for item in results], axis=0),
        force_disagreement=float(np.sqrt(forces.var(axis=0).sum(axis=1)).max()),
    )


def _common_elements(elements: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    known = [item for item in elements if item is not None]
    return frozenset.intersection(*known) if known else None
