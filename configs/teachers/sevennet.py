"""SevenNet; the weights of 7net-0 and 7net-l3i5 come in its package."""

REQUIREMENTS = ["sevenn==0.13.0", "ase>=3.26"]


def make_calculator(device, model="7net-0"):
    """Return SevenNet's ASE calculator."""
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator(model=model, device=device)
