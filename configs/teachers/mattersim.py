"""MatterSim; its weights are fetched, or read from a file."""

REQUIREMENTS = ["mattersim==1.2.5", "ase>=3.26"]


def make_calculator(device, model="MatterSim-v1.0.0-1M.pth"):
    """Return MatterSim's ASE calculator."""
    from mattersim.forcefield import MatterSimCalculator

    return MatterSimCalculator(load_path=model, device=device)
