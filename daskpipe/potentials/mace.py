"""MACE with the bundled Cu-Ag-Au model, a model file of your own, or a foundation model by name."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from daskpipe.core.errors import ConfigError, InputError, describe_unknown
from daskpipe.core.notices import send_notice
from daskpipe.core.registry import FileName
from daskpipe.core.third_party import import_mace
from daskpipe.potentials.identity import Identity, file_hash
from daskpipe.potentials.mace_electrons import check_features, specs_of, with_electrons
from daskpipe.potentials.mace_evaluators import SYMMETRIX, choose_evaluator, find_misfit
from daskpipe.potentials.mace_pickles import read_class_and_heads
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.results import Evaluation, Failure, checked_results
from daskpipe.potentials.traits import Traits

if TYPE_CHECKING:
    from ase import Atoms

    from daskpipe.core.torch_sim import ModelInterface

TRAITS = Traits(packages=("mace-torch",), trial="Cu")

BUNDLED = Path(__file__).parent / "bundled" / "cu-ag-au.safetensors"

BATCH = 16
"""Structures that are labelled at once."""

FEATURE_ATOMS = 1024
"""Atoms of a batch for node features, which takes less memory than a batch with forces."""

LONG_RANGED = ("MACELES", "PolarMACE")
"""Classes of models with a long range, which daskpipe refuses."""


def mace(
    *,
    device: str,
    dtype: str,
    model: FileName = "bundled",
    head: str | None = None,
    acceleration: Literal["auto", "none", "symmetrix", "cueq", "compile"] = "auto",
) -> Potential:
    """MACE, batched. Source: arXiv:2206.07697.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``.
    dtype
        ``float32`` or ``float64``.
    model
        ``bundled`` (Cu-Ag-Au); a ``.safetensors`` file with its ``.json`` beside it, as `mace_files.save_model`
        writes them; any other file, which is loaded with ``torch.load``; or the name of a foundation model: those of
        ``mace_mp`` as MACE calls them (``small``, ``medium-mpa-0`` ...) and those of ``mace_off`` as ``off:small`` ...
        **A model file that is not safetensors is a program, which runs when it is loaded. Know where it is from.**
    head
        Head to use of a model with several heads; by default the one called ``default``. Required if there is none of
        that name.
    acceleration
        ``symmetrix`` evaluates the model natively on a CPU, for dynamics and labels, where it takes the model
        (`daskpipe.potentials.mace_native`), and is compared with torch before it is used; else torch does it. ``auto``
        takes it where it is installed. ``none`` takes torch. ``cueq`` and ``compile`` are for dynamics only: ``cueq``
        needs NVIDIA's cuEquivariance; ``compile`` needs a C++ compiler (on CUDA: Triton) and takes minutes for the
        first step.

    Raises
    ------
    ConfigError
        If the model has no such head, or has several and none is named, or the acceleration is not available here.
    InputError
        If the file is missing or holds no MACE model, if the model has a long range or needs more of a structure than
        charge and spin, or if a foundation model cannot be fetched.
    """
    import torch

    import_mace()

    from daskpipe.potentials.mace_calculator import Calculator
    from daskpipe.potentials.mace_model import MixedMace, check_acceleration
    from daskpipe.potentials.mace_native import find_misfit_of_module, prepare_or_tell
    from daskpipe.potentials.mace_native_model import NativeMace

    check_acceleration(acceleration, device)
    path = _find_model_file(model)
    module = _load_module(path, device, dtype)
    head = choose_head(list(getattr(module, "heads", ["Default"])), head, path)
    calculator = Calculator(models=module, device=device, default_dtype=dtype, head=head)
    cutoff = float(module.r_max)

    def make_torch_model(stress: bool, acceleration: str = "none") -> ModelInterface:
        model = MixedMace(
            module, torch.device(device), getattr(torch, dtype), compute_stress=stress, head=head,
            acceleration=acceleration,
        )  # fmt: skip
        model.evaluated_by = f"{evaluator} ({why})"
        return model

    def make_native_model(stress: bool) -> ModelInterface:
        return NativeMace(
            prepare, partial(make_torch_model, stress), cutoff=cutoff, dtype=getattr(torch, dtype),
            compute_stress=stress,
        )  # fmt: skip

    evaluator, why = choose_evaluator(acceleration, device, find_misfit_of_module(module))
    if evaluator == SYMMETRIX:
        prepare = cache(partial(prepare_or_tell, module, identify(model, head).hash, head, dtype))
        dynamics = labelling = make_native_model
    elif acceleration in ("cueq", "compile"):
        dynamics, labelling = partial(make_torch_model, acceleration=acceleration), make_torch_model
    else:
        dynamics = labelling = make_torch_model
        if acceleration == SYMMETRIX:
            send_notice(f"MACE is evaluated by torch: {why}")
    return Potential(
        calculator=calculator,
        model=dynamics,
        label=_make_labeller(labelling(True)),
        elements=_element_symbols(module.atomic_numbers.tolist()),
        cutoff=cutoff,
        # A model without an embedding of the charge describes neutral matter.
        knows_charge="total_charge" in specs_of(module),
    )


def node_features(
    potential: Potential, structures: Sequence[Atoms], *, invariants_only: bool = True, num_layers: int = -1
) -> np.ndarray:
    """Compute the node features of a MACE model, which stand before its readouts, in batches.

    Parameters
    ----------
    potential
        A MACE, from `daskpipe.potentials.build_potential`.
    structures
        Structures of any periodicity, made of elements that the model knows.
    invariants_only, num_layers
        As in `node_feature_columns`.

    Returns
    -------
    numpy.ndarray
        Shape (atom, feature) over all structures, dtype of the model. The rows are those of
        ``MACECalculator.get_descriptors`` for one structure after another; their last bits may depend on the batch.
    """
    import torch
    from mace.data import AtomicData, KeySpecification, config_from_atoms
    from mace.tools.torch_geometric import Batch
    from mace.tools.torch_tools import default_dtype

    from daskpipe.potentials.mace_model import as_written

    calculator: Any = potential.calculator
    module = calculator.models[0]
    columns = torch.from_numpy(node_feature_columns(potential, invariants_only, num_layers)).to(calculator.device)
    keys = KeySpecification(info_keys=calculator.info_keys, arrays_keys=calculator.arrays_keys)
    blocks = []
    with potential.lock, default_dtype(calculator.default_dtype), torch.no_grad(), as_written():
        for batch in _batches_of_atoms(structures):
            graphs = [
                AtomicData.from_config(
                    config_from_atoms(with_electrons(atoms), key_specification=keys, head_name=calculator.head),
                    z_table=calculator.z_table,
                    cutoff=calculator.r_max,
                    heads=calculator.available_heads,
                )
                for atoms in batch
            ]
            data = Batch.from_data_list(graphs).to(calculator.device)
            blocks.append(module(data.to_dict(), compute_force=False)["node_feats"][:, columns].cpu().numpy())
    if not blocks:
        return np.zeros((0, len(columns)), dtype=calculator.default_dtype)
    return np.concatenate(blocks)


def node_feature_columns(potential: Potential, invariants_only: bool = True, num_layers: int = -1) -> np.ndarray:
    """Select columns of the node features of a MACE model.

    Parameters
    ----------
    potential
        A MACE, from `daskpipe.potentials.build_potential`.
    invariants_only
        Whether to leave out vectors and higher tensors.
    num_layers
        Number of layers, from the first one on; -1 for all.

    Returns
    -------
    numpy.ndarray
        Columns of the features of all layers, int64.

    Raises
    ------
    ConfigError
        If the model has fewer layers.
    """
    from e3nn import o3

    module: Any = potential.calculator.models[0]
    layers = [o3.Irreps(str(product.linear.irreps_out)) for product in module.products]
    if num_layers == 0 or not -1 <= num_layers <= len(layers):
        raise ConfigError(f"num_layers={num_layers}: the model has {len(layers)} layers; give 1 to {len(layers)} or -1")
    columns: list[int] = []
    start = 0
    for irreps in layers[: None if num_layers == -1 else num_layers]:
        for part, (_, irrep) in zip(irreps.slices(), irreps, strict=True):
            if irrep.l == 0 or not invariants_only:
                columns.extend(range(start + part.start, start + part.stop))
        start += irreps.dim
    return np.array(columns, dtype=np.int64)


def _batches_of_atoms(structures: Sequence[Atoms]) -> Iterator[list[Atoms]]:
    """Yield consecutive structures that hold at most `FEATURE_ATOMS` atoms together; at least one at a time."""
    batch: list[Atoms] = []
    n_atoms = 0
    for atoms in structures:
        if batch and n_atoms + len(atoms) > FEATURE_ATOMS:
            yield batch
            batch, n_atoms = [], 0
        batch.append(atoms)
        n_atoms += len(atoms)
    if batch:
        yield batch


def identify(model: str, head: str | None, acceleration: str = "auto") -> Identity:
    """Identify a MACE model by the bytes of its files, and by the head if one is named.

    The acceleration does not count, since it changes rounding of dynamics and no label. Class and heads of the model
    are checked here, before anything runs, without loading it.
    """
    path = _find_model_file(model)
    files, elements = [path], None
    if path.suffix == ".safetensors":
        from daskpipe.potentials.mace_files import hyper_file, read_hypers

        files.append(hyper_file(path))
        hypers = read_hypers(path)
        elements = _element_symbols(hypers["atomic_numbers"])
        choose_head(hypers["heads"] or ["Default"], head, path)
    elif (pickled := read_class_and_heads(path)) is not None:
        name_of_class, heads = pickled
        _refuse_long_range(name_of_class, path)
        choose_head(heads, head, path)
    parts = [file_hash(file) for file in files] + ([head] if head else [])
    digest = parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()
    name = {"bundled": "MACE Cu-Ag-Au"}.get(model, f"MACE {model if model in _foundation_names(model) else path.name}")
    return Identity(name=name, hash=digest, elements=elements)


def explain_evaluator(device: str, model: str, head: str | None, acceleration: str = "auto") -> str:
    """Return in words what evaluates a model, and why; the worker that does it has the last word.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``.
    model, head, acceleration
        As in `mace`.
    """
    path = _find_model_file(model)
    known = path.suffix == ".safetensors"
    misfit = None
    if known:
        from daskpipe.potentials.mace_files import read_hypers

        misfit = find_misfit(read_hypers(path))
    name, why = choose_evaluator(acceleration, device, misfit)
    return f"{name}{', if it takes the model' if name == SYMMETRIX and not known else ''} ({why})"


def choose_head(heads: Sequence[str], head: str | None, path: Path) -> str:
    """Return the head of a model to use.

    Raises
    ------
    ConfigError
        If the model has no such head, or if none is named, there are several, and none is called ``default``.
    """
    if head is not None:
        if head not in heads:
            raise ConfigError(describe_unknown("head", head, list(heads)))
        return head
    default = heads if len(heads) == 1 else [name for name in heads if name.lower() == "default"]
    if not default:
        raise ConfigError(
            f"potential 'mace': the model {path.name} has the heads {', '.join(heads)}, and none is called default; "
            f"give one of them as params.head, e.g. label.potential.params.head={heads[0]}"
        )
    return default[0]


def _refuse_long_range(name_of_class: str, path: Path) -> None:
    if name_of_class in LONG_RANGED:
        raise InputError(
            f"model file {str(path)!r} holds a {name_of_class}, whose long range is not made of edges and "
            "needs one periodicity for all systems of a batch; give a MACE without a long range"
        )


def _find_model_file(model: str) -> Path:
    """Return the file of a model, and fetch it first if it is a foundation model that is not cached."""
    if model == "bundled":
        return BUNDLED
    path = Path(model).expanduser()
    if path.is_file():
        return path.resolve()
    names = _foundation_names(model)
    if model in names:
        return _foundation_file(model)
    hint = f" Foundation models: {', '.join(names)}." if names else ""
    raise InputError(
        f"model file {model!r} does not exist; give the path of a MACE model file or model=bundled (Cu-Ag-Au).{hint}"
    )


def _foundation_names(model: str) -> list[str]:
    """Return the names of foundation models if `model` looks like a name; else none, for MACE is slow to import."""
    if model == "bundled" or "/" in model or os.sep in model or Path(model).suffix:
        return []
    import_mace()
    from mace.calculators.foundations_models import mace_mp_urls, mace_off_urls

    return [*mace_mp_urls, *(f"off:{name}" for name in mace_off_urls)]


def _foundation_file(model: str) -> Path:
    from mace.calculators import foundations_models

    kind, _, size = model.rpartition(":")
    try:
        with _printing_to_stderr():
            if kind != "off":
                return Path(foundations_models.download_mace_mp_checkpoint(model))
            # mace_off has no function that only fetches.
            url = foundations_models.mace_off_urls[size]
            path = Path(foundations_models.get_cache_dir()) / url.rpartition("/")[2]
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                foundations_models._urlretrieve_with_timeout(url, str(path))
            return path
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"foundation model {model!r} is not cached in {foundations_models.get_cache_dir()} and cannot be fetched "
            f"({error}); fetch it where there is a network and give its path: "
            "explore.potential.params.model=/path/to/file.model"
        ) from error


@contextmanager
def _printing_to_stderr() -> Iterator[None]:
    with redirect_stdout(sys.stderr):
        yield


def _load_module(path: Path, device: str, dtype: str) -> Any:
    import torch

    if path.suffix == ".safetensors":
        from daskpipe.potentials.mace_files import load_model

        module = load_model(path, dtype)
    else:
        try:
            module = torch.load(path, map_location=device, weights_only=False)
        except Exception as error:  # a pickle may raise anything
            raise InputError(
                f"model file {str(path)!r} cannot be loaded ({type(error).__name__}: {error}); give a file written by "
                "mace_run_train (NAME.model, not a checkpoint or a compiled model)"
            ) from error
        missing = [name for name in ("r_max", "atomic_numbers", "interactions") if not hasattr(module, name)]
        if not isinstance(module, torch.nn.Module) or missing:
            raise InputError(
                f"model file {str(path)!r} holds a {type(module).__name__}, not a MACE model; give a file written by "
                "mace_run_train (NAME.model, not a checkpoint or a compiled model)"
            )
        _refuse_long_range(type(module).__name__, path)
        check_features(module, path)
    module = module.to(device=device, dtype=getattr(torch, dtype)).eval()
    for parameter in module.parameters():
        parameter.requires_grad = False
    return module


def _make_labeller(model: Any) -> Any:
    import torch
    from ase.stress import full_3x3_to_voigt_6_stress

    from daskpipe.potentials.batches import make_state

    def label_structures(structures: Sequence[Atoms]) -> list[Evaluation]:
        return [
            result
            for start in range(0, len(structures), BATCH)
            for result in label_batch(structures[start : start + BATCH])
        ]

    def label_batch(structures: Sequence[Atoms]) -> Iterator[Evaluation]:
        outputs = {
            name: value.cpu() for name, value in model(make_state(structures, model.device, torch.float64)).items()
        }
        forces = outputs["forces"].split([len(atoms) for atoms in structures])
        failures: dict[int, str] = model.failures
        for index, atoms in enumerate(structures):
            if index in failures:
                yield Failure(reason="charge", evidence=failures[index])
                continue
            stress = full_3x3_to_voigt_6_stress(outputs["stress"][index].numpy()) if atoms.pbc.all() else None
            yield checked_results(energy=float(outputs["energy"][index]), forces=forces[index].numpy(), stress=stress)

    return label_structures


def _element_symbols(numbers: Sequence[int]) -> frozenset[str]:
    from ase.data import chemical_symbols

    return frozenset(chemical_symbols[number] for number in numbers)
