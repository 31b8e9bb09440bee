"""FeNNol; a model is a file *.fnx."""

REQUIREMENTS = ["fennol==2026.6.29", "ase>=3.26"]


def make_calculator(device, model):
    """Return FeNNol's ASE calculator."""
    import os

    os.environ.setdefault("JAX_PLATFORMS", "cuda" if device == "cuda" else "cpu")
    from fennol.ase import FENNIXCalculator

    return FENNIXCalculator(model)
