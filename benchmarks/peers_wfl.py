"""Do the job of ``peers.py`` with wfl: molecular dynamics, SOAP, farthest points, labels.

It runs in an environment of its own: ``python -m venv wfl && wfl/bin/pip install 'wfl==0.3.5' 'numpy<2' 'ase<3.26'
quippy-ase``. Run: ``WFL_NUM_PYTHON_SUBPROCESSES=2 wfl/bin/python peers_wfl.py FOLDER N_ALLOYS N_STEPS N_PICKS``.
"""

import sys
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from wfl.autoparallelize import AutoparaInfo
from wfl.calculators import generic
from wfl.configset import ConfigSet, OutputSpec
from wfl.descriptors.quippy import calculate as describe
from wfl.generate import md
from wfl.select.by_descriptor import greedy_fps_conf_global

SOAP = (
    "soap n_max=8 l_max=6 cutoff=5.0 atom_gaussian_width=0.5 cutoff_transition_width=0.5 average=T "
    "n_species=3 species_Z={29 47 79} n_Z=3 Z={29 47 79}"
)


def main() -> None:
    folder, (n_alloys, n_steps, n_picks) = Path(sys.argv[1]), map(int, sys.argv[2:5])
    rng = np.random.default_rng(0)
    seeds = []
    for _ in range(n_alloys):
        atoms = bulk("Cu", "fcc", a=4.0, cubic=True).repeat(2)
        atoms.symbols[:] = rng.choice(["Cu", "Ag", "Au"], len(atoms))
        atoms.rattle(0.05, rng=rng)
        seeds.append(atoms)
    write(folder / "seeds.extxyz", seeds)

    def output(name: str) -> OutputSpec:
        return OutputSpec(f"{name}.extxyz", file_root=folder)

    emt = (EMT, [], {})
    chunks = AutoparaInfo(num_inputs_per_python_subprocess=max(1, n_alloys // 8))
    frames = md.md(
        ConfigSet("seeds.extxyz", file_root=folder), output("frames"), calculator=emt, steps=n_steps, dt=4.0,
        integrator="Langevin", temperature=900.0, temperature_tau=100.0, traj_step_interval=10, rng=rng,
        autopara_info=chunks,
    )  # fmt: skip
    described = describe(frames, output("described"), descs=SOAP, key="soap", per_atom=False)
    picks = greedy_fps_conf_global(
        described, output("picks"), num=n_picks, at_descs_info_key="soap", keep_descriptor_info=False, rng=rng
    )
    labelled = generic.calculate(picks, output("labelled"), calculator=emt, output_prefix="label_")
    print(len(list(frames)), len(list(labelled)))


if __name__ == "__main__":
    main()
