import pytest
from ase.build import bulk, molecule
from ase.io import write

from daskpipe.config.proposal.systems import bonding_of, read_system
from daskpipe.core.errors import ConfigError, InputError


@pytest.mark.parametrize(
    ("text", "form", "symbols", "bonding"),
    [
        ("MgO", "formula", ("Mg", "O"), "ionic"),
        ("CuZn", "formula", ("Cu", "Zn"), "metallic"),
        ("Si", "formula", ("Si",), "covalent"),
        ("Ca(OH)2", "formula", ("Ca", "O", "H"), "ionic"),
        ("CCO", "smiles", ("C", "O", "H"), "molecular"),
        ("c1ccccc1", "smiles", ("C", "H"), "molecular"),
        ("[Na+]", "smiles", ("Na",), "molecular"),
        ("H2O", "molecule", ("O", "H"), "molecular"),
        ("CO", "molecule", ("O", "C"), "molecular"),  # carbon monoxide, not the SMILES of methanol
    ],
)
def test_a_text_is_taken_for_what_it_is(text, form, symbols, bonding):
    system = read_system(text)
    assert (system.form, system.symbols, system.bonding) == (form, symbols, bonding)
    assert system.open == (bonding == "molecular")
    assert system.describe().startswith(f"{text} is ")


def test_one_letter_is_asked_about():
    with pytest.raises(ConfigError, match="C can be the element and the SMILES of its hydride; type --kinds bulk"):
        read_system("C")
    assert read_system("C", "formula").bonding == "covalent"
    assert read_system("C", "smiles").symbols == ("C", "H")


def test_a_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("NaCl.cif", bulk("NaCl", "rocksalt", a=5.64, cubic=True))
    write("water.xyz", [molecule("H2O"), molecule("CH4")])
    crystal, open_file = read_system("NaCl.cif"), read_system("water.xyz")
    assert (crystal.form, set(crystal.symbols), crystal.open, crystal.n_atoms) == ("file", {"Na", "Cl"}, False, 8)
    assert (open_file.bonding, open_file.open, open_file.n_atoms) == ("molecular", True, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("XyZ", "'XyZ' is neither a file, nor a chemical formula such as MgO, nor a SMILES such as CCO"),
        ("C1CC", "'C1CC' is neither a file"),
        ("C2H6O", "C2H6O is a formula of nonmetals, which has many molecules, .* give a SMILES"),
        ("nothere.cif", "nothere.cif does not exist; give the path"),
        ("folder/nothere.vasp", "folder/nothere.vasp does not exist"),
    ],
)
def test_what_is_nothing_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        read_system(text)


def test_a_file_without_structures_is_refused(tmp_path):
    file = tmp_path / "no.cif"
    file.write_text("nothing\n")
    with pytest.raises(InputError, match="no.cif: files has no structure that can be used"):
        read_system(str(file))


def test_bonds_follow_from_the_elements():
    assert bonding_of(["Ga", "As"]) == bonding_of(["B", "N"]) == bonding_of(["Si", "C"]) == "covalent"
    assert bonding_of(["Si", "O"]) == bonding_of(["Ga", "N"]) == bonding_of(["Pb", "Te", "O"]) == "ionic"
    assert bonding_of(["N", "H"]) == "molecular"
