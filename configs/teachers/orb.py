"""Orb; its weights are fetched from its model hub, or read from a file."""

REQUIREMENTS = ["orb-models==0.7.0", "ase>=3.26"]


def make_calculator(device, model="orb_v3_conservative_inf_omat", weights=None):
    """Return Orb's ASE calculator."""
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.calculator import ORBCalculator

    given = {} if weights is None else {"weights_path": weights}
    loaded = getattr(pretrained, model)(device=device, precision="float32-high", **given)
    # Since 0.6 a pair: the model, and what turns atoms into its input.
    if isinstance(loaded, tuple):
        return ORBCalculator(*loaded, device=device)
    return ORBCalculator(loaded, device=device)
