"""UMA and other models of fairchem; their weights are fetched with an account at their host, or read from a file."""

REQUIREMENTS = ["fairchem-core==2.24.0", "ase>=3.26"]


def make_calculator(device, model="uma-s-1p1", task="omat"):
    """Return fairchem's ASE calculator."""
    import os

    from fairchem.core import FAIRChemCalculator, pretrained_mlip

    load = pretrained_mlip.load_predict_unit if os.path.isfile(model) else pretrained_mlip.get_predict_unit
    return FAIRChemCalculator(load(model, device=device), task_name=task)
