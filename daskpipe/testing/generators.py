"""Check what a generator promises."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.errors import Rejection
from daskpipe.core.registry import signature_model
from daskpipe.core.structures import structure_id
from daskpipe.stages.generate import GENERATORS, Generator, call_generator
from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.reading.electrons import ElectronError, electrons_of

if TYPE_CHECKING:
    from ase import Atoms


def check_generator(
    generator: Generator,
    params: Mapping[str, Any] | None = None,
    *,
    n: int = 4,
    is_random: bool = True,
    limits: Limits | None = None,
    seed: int = 0,
) -> None:
    """Check that a generator keeps what daskpipe promises about generators.

    Keyword parameters only, with types by which a config is checked, and values that JSON can hold. An iterator that
    draws nothing before its first structure. Structures that pass the checks of seeds, with whole numbers for charge
    and spin multiplicity where ``info`` has them. The same structures for the same random stream, whatever the global
    random generators hold, which are left alone, and whatever becomes of the structures that came before; other
    structures for another stream.

    Parameters
    ----------
    generator
        Function ``(*, rng, **params) -> Iterator[Atoms]``, which may name ``index`` as well.
    params
        Its parameters, as in a config.
    n
        Structures to draw; fewer if it ends before.
    is_random
        Whether structures differ from one random stream to another. If not, they must be the same, as those of files.
    limits
        Limits that structures must satisfy; those of a config by default.
    seed
        Seed of the random streams.

    Raises
    ------
    AssertionError
        Naming the promise that was not kept.

    Examples
    --------
    >>> from daskpipe.stages.generate.molecules import molecules
    >>> check_generator(molecules, {"names": ["H2O", "CH4"]})
    """
    checked = _check_parameters(generator, params or {})
    limits = limits or Limits()
    numpy_state, global_state = np.random.get_state(), (random.getstate(), _global_state())  # noqa: NPY002
    first = _draw_structures(generator, checked, n, seed)
    assert (random.getstate(), _global_state()) == global_state, "it draws from a global random generator"
    for index, atoms in enumerate(first):
        _check_structure(atoms, limits, f"structure {index}")
    expected = _list_ids(first)
    for atoms in first:  # a generator that hands out objects of its own would hand out the changed ones
        atoms.positions += 1.0
        atoms.info.clear()
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (what a plugin may use by mistake)
        again = _list_ids(_draw_structures(generator, checked, n, seed))
    finally:
        random.setstate(global_state[0])
        np.random.set_state(numpy_state)  # noqa: NPY002
    assert again == expected, "the same random stream gives other structures when it is used again"
    other = _list_ids(_draw_structures(generator, checked, n, seed + 1))
    if is_random:
        assert other != expected, "another random stream gives the same structures; if that is meant, is_random=False"
    else:
        assert other == expected, "another random stream gives other structures; if that is meant, is_random=True"


def _check_parameters(generator: Generator, params: Mapping[str, Any]) -> dict[str, Any]:
    """Check the signature and return the parameters with defaults filled in."""
    parameters = inspect.signature(generator).parameters
    assert "rng" in parameters, "it has no parameter rng, the random stream"
    for name, parameter in parameters.items():
        assert parameter.kind is parameter.KEYWORD_ONLY, f"the parameter {name} is not keyword-only"
        assert parameter.annotation is not parameter.empty, f"the parameter {name} has no type, so nothing checks it"
    checked = signature_model(generator, GENERATORS.given)(**params).model_dump(mode="json")
    assert json.loads(json.dumps(checked)) == checked, f"JSON cannot hold its parameters: {checked}"
    return checked


def _draw_structures(generator: Generator, params: Mapping[str, Any], n: int, seed: int) -> list[Atoms]:
    """Draw up to `n` structures from a new random stream, without rejections."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    before = str(rng.bit_generator.state)
    structures = call_generator(generator, params, rng=rng, index=0)
    assert isinstance(structures, Iterator), f"it returns a {type(structures).__name__}, not an iterator"
    assert str(rng.bit_generator.state) == before, "it draws random numbers before the first structure is asked for"
    drawn = [item for item in islice(structures, n) if not isinstance(item, Rejection)]
    assert drawn, "it gives no structure"
    return drawn


def _check_structure(atoms: Atoms, limits: Limits, name: str) -> None:
    """Check a structure as the stage ``generate`` does, and its charge and spin."""
    for key, least in (("charge", None), ("spin_multiplicity", 1)):
        value = atoms.info.get(key)
        assert value is None or (isinstance(value, int) and (least is None or value >= least)), (
            f"{name}: info[{key!r}] is {value!r}, not a whole number{'' if least is None else f' from {least} on'}"
        )
    try:
        electrons_of(atoms)
    except ElectronError as error:
        raise AssertionError(f"{name}: {error}") from error
    fault = find_fault(atoms, limits)
    assert fault is None, f"{name} fails the check of seeds: {fault.reason}: {fault.evidence}" if fault else ""


def _list_ids(structures: list[Atoms]) -> list[bytes]:
    return [structure_id(atoms) for atoms in structures]


def _global_state() -> str:
    """Return the state of NumPy's global random generator as JSON."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return json.dumps([name, np.asarray(keys).tolist(), *rest])
