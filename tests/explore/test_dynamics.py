import numpy as np
import pytest
import torch
import torch_sim as ts
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT
from ase.data import covalent_radii
from explore_samples import HOT, Wells, cluster, compressed, crystal, dynamics, emt, seed
from reference.baoab import baoab
from scipy.spatial.distance import pdist
from torch_sim.integrators.md import MDState

from daskpipe import seeds
from daskpipe.explore import dynamics as module
from daskpipe.explore.dynamics import Trajectory, langevin_step, run_batch
from daskpipe.explore.guards import temperatures
from daskpipe.explore.settings import Guards
from daskpipe.potentials import Potential, batched
from daskpipe.structures import structure_id

RUN_SEED = 7
SIGMAS = 5
"""A seeded test that fails once in two million other seeds is not luck."""


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames keep all 64 bits, so that a difference in the last one shows."""
    monkeypatch.setattr(module, "round_positions", lambda atoms: atoms)


def run(
    structures: list[Atoms], guards: Guards | None = None, run_seed: int = RUN_SEED, **settings
) -> list[Trajectory]:
    return run_batch(structures, batched(emt()), dynamics(**settings), guards or Guards(), run_seed)


def positions(trajectory: Trajectory) -> np.ndarray:
    return np.array([frame.positions for frame in trajectory.frames])


@pytest.mark.usefixtures("unrounded")
def test_trajectory_is_the_same_bits_alone_in_a_batch_and_in_another_order():
    structures = [seed(crystal("Cu")), seed(crystal("Ag").repeat((1, 1, 2))), seed(crystal("Au"), replica=1)]
    together = run(structures)
    backwards = run(structures[::-1])[::-1]
    for atoms, one, other in zip(structures, together, backwards, strict=True):
        (alone,) = run([atoms])
        assert np.ptp(positions(alone), axis=0).max() > 0.01, "the atoms did not move"
        np.testing.assert_array_equal(positions(one), positions(alone))
        np.testing.assert_array_equal(positions(other), positions(alone))


@pytest.mark.usefixtures("unrounded")
def test_trajectory_is_the_same_bits_when_a_neighbour_fails():
    structures = [seed(cluster("Cu")), seed(compressed()), seed(cluster("Au"))]
    first, broken, last = run(structures)
    assert broken.rejection is not None
    assert 0 < broken.rejection.details["step"] < dynamics().steps, "it must break under way"
    for atoms, beside in ((structures[0], first), (structures[2], last)):
        (alone,) = run([atoms])
        assert beside.rejection is None
        np.testing.assert_array_equal(positions(beside), positions(alone))


@pytest.mark.usefixtures("unrounded")
def test_charge_of_one_seed_does_not_depend_on_what_its_neighbours_say():
    class Charged(EMT):
        """Pushes charged structures along x, so that a charge that is lost on the way shows."""

        def calculate(self, atoms, properties, system_changes):
            super().calculate(atoms, properties, system_changes)
            self.results["forces"] = self.results["forces"] + [float(atoms.info.get("charge", 0)), 0, 0]

    model = batched(Potential(calculator=Charged()))
    ion, silent = seed(cluster()), seed(cluster("Au"))
    ion.info["charge"] = 1
    (alone,) = run_batch([ion], model, dynamics(), Guards(), RUN_SEED)
    beside, _ = run_batch([ion, silent], model, dynamics(), Guards(), RUN_SEED)
    np.testing.assert_array_equal(positions(beside), positions(alone))
    assert beside.frames[0].info["charge"] == 1


@pytest.mark.usefixtures("unrounded")
def test_how_many_steps_of_noise_are_drawn_at_once_does_not_matter(monkeypatch):
    structures = [seed(crystal()), seed(crystal("Ag"))]
    at_once = run(structures)
    monkeypatch.setattr(module, "DRAW", 3)  # does not divide the stride of 5
    for one, other in zip(at_once, run(structures), strict=True):
        np.testing.assert_array_equal(positions(one), positions(other))


@pytest.mark.parametrize(
    "change",
    [{"run_seed": RUN_SEED + 1}, {"replica": 1}, {"temperature": HOT + 1}],
    ids=["run seed", "replica", "temperature"],
)
def test_noise_depends_on(change):
    conditions = {"replica": 0, "temperature": HOT, "run_seed": RUN_SEED}
    found = []
    for chosen in (conditions, conditions | change):
        run_seed = chosen.pop("run_seed")
        found += run([seed(crystal(), **chosen)], run_seed=run_seed)
    one, other = found
    assert np.abs(positions(one)[0] - positions(other)[0]).max() > 1e-3  # Å; thermal motion, not rounding


def test_frames_steps_times_and_lineage():
    equilibration, stride, timestep = 7, 5, 2.0
    steps = equilibration + 3 * stride + 2  # the last two are not worth a frame, and are not run
    atoms = seed(crystal(), replica=3, system_type="bulk")
    (trajectory,) = run([atoms], steps=steps, stride=stride, equilibration=equilibration, timestep=timestep)
    expected = [equilibration + stride * number for number in (1, 2, 3)]
    assert trajectory.rejection is None
    assert [frame.info["step"] for frame in trajectory.frames] == expected
    assert [frame.info["time"] for frame in trajectory.frames] == [timestep * step for step in expected]
    for frame in trajectory.frames:
        assert frame.info["parent_id"] == structure_id(atoms)
        assert frame.info["parent_id"] != structure_id(frame)
        assert (frame.info["system_type"], frame.info["generator"]) == ("bulk", "tests")
        assert (frame.info["temperature"], frame.info["replica"]) == (HOT, 3)
        assert frame.info["ensemble"] == "nvt_langevin"
        assert np.isnan(frame.info["pressure"])
        np.testing.assert_array_equal(frame.positions, frame.positions.astype(np.float32))
        np.testing.assert_array_equal(frame.cell.array, atoms.cell.array)


@pytest.mark.usefixtures("unrounded")
def test_equilibration_only_drops_frames():
    atoms = seed(crystal())
    (whole,) = run([atoms], steps=20, stride=5)
    (later,) = run([atoms], steps=20, stride=5, equilibration=10)
    np.testing.assert_array_equal(positions(later), positions(whole)[2:])


def test_seeds_are_left_as_they_were():
    atoms = seed(cluster())
    before, info = atoms.positions.copy(), dict(atoms.info)
    run([atoms])
    np.testing.assert_array_equal(atoms.positions, before)
    assert atoms.info == info


@pytest.mark.parametrize(("atoms", "timestep", "friction"), [(crystal(), 1.0, 0.01), (cluster("Pd"), 4.0, 0.1)])
def test_matches_a_plain_loop_over_baoab(atoms, timestep, friction):
    atoms = seed(atoms, temperature=300.0)
    (trajectory,) = run([atoms], steps=20, stride=1, timestep=timestep, friction=friction)
    noise = seeds.stream(RUN_SEED, "explore", structure_id(atoms), "300.0", 0)
    slow = atoms.copy()
    slow.calc = EMT()
    expected = baoab(slow, noise, temperature=300.0, timestep=timestep, friction=friction, n_steps=20)
    rounding = 2e-6  # Å; frames are float32 and coordinates below 8 Å
    assert np.ptp(expected, axis=0).max() > 0.01, "the atoms did not move"
    np.testing.assert_allclose(positions(trajectory), expected, rtol=0, atol=rounding)


def wells(n_atoms: int, *, spring: float = 2.0) -> tuple[Atoms, Wells]:
    """Copper atoms on a line, too far apart to overlap, each in a well of `spring` eV/Å^2."""
    atoms = seed(Atoms(f"Cu{n_atoms}", positions=[[5.0 * index, 0, 0] for index in range(n_atoms)]))
    return atoms, Wells(atoms.positions.copy(), spring)


def test_langevin_samples_the_boltzmann_distribution_of_positions():
    n_atoms, n_frames, spring = 200, 10, 2.0
    atoms, model = wells(n_atoms, spring=spring)
    # A frame every 400 fs, and four times as long to begin with; friction forgets in 100 fs.
    settings = dynamics(steps=1120, stride=80, equilibration=320, timestep=5.0)
    (trajectory,) = run_batch([atoms], model, settings, Guards(), RUN_SEED)
    assert len(trajectory.frames) == n_frames
    away = positions(trajectory) - atoms.positions
    # BAOAB has no error of the time step in the positions of a harmonic oscillator.
    expected = units.kB * HOT / spring
    n_samples = away.size
    assert np.mean(away**2) == pytest.approx(expected, rel=SIGMAS * np.sqrt(2 / n_samples))
    assert abs(np.mean(away)) < SIGMAS * np.sqrt(expected / n_samples)


def test_langevin_keeps_the_temperature_of_the_thermostat():
    n_atoms, n_steps, timestep, friction = 150, 800, 2.0, 0.02
    atoms, model = wells(n_atoms)
    rng = np.random.default_rng(0)
    momenta = torch.as_tensor(rng.standard_normal((n_atoms, 3)) * np.sqrt(units.kB * HOT * atoms.get_masses()[:, None]))
    state = ts.io.atoms_to_state([atoms], model.device, model.dtype)
    state = MDState.from_state(state, momenta=momenta, **model(state))
    damping = np.exp(-friction * timestep)
    kick = torch.sqrt(units.kB * HOT * (1 - damping**2) * state.masses)[:, None]
    found = []
    for _ in range(n_steps):
        noise = torch.as_tensor(rng.standard_normal((n_atoms, 3)))
        state = langevin_step(state, model, dt=timestep * units.fs, damping=damping, kick=kick, noise=noise)
        found.append(float(temperatures(state)[0]))
    # Momenta forget at the rate of the friction: so many independent looks at all degrees of freedom.
    n_looks = n_steps * timestep * friction / 2
    assert np.mean(found) == pytest.approx(HOT, rel=SIGMAS * np.sqrt(2 / (3 * n_atoms * n_looks)))
    assert np.std(found) == pytest.approx(HOT * np.sqrt(2 / (3 * n_atoms)), rel=0.5)


def test_first_momenta_are_maxwell_boltzmann_without_drift():
    n_atoms = 2000
    atoms = seed(Atoms(f"Cu{n_atoms // 2}Au{n_atoms // 2}", positions=np.zeros((n_atoms, 3))))
    momenta = module._maxwell_boltzmann(Trajectory(seed=atoms, noise=seeds.stream(RUN_SEED, "explore", b"x")))
    np.testing.assert_allclose(momenta.sum(axis=0), 0, atol=1e-9 * np.abs(momenta).sum())
    scaled = momenta / np.sqrt(units.kB * HOT * atoms.get_masses()[:, None])
    for half in (scaled[: n_atoms // 2], scaled[n_atoms // 2 :]):
        assert np.var(half) == pytest.approx(1, rel=SIGMAS * np.sqrt(2 / half.size))
    fourth_moment_of_a_normal = 3
    assert np.mean(scaled**4) == pytest.approx(fourth_moment_of_a_normal, rel=0.2)


def test_one_atom_keeps_its_momentum():
    one = Trajectory(seed=seed(Atoms("Cu")), noise=seeds.stream(RUN_SEED, "explore", b"x"))
    assert np.abs(module._maxwell_boltzmann(one)).min() > 0


def energies(timestep: float, n_steps: int) -> np.ndarray:
    """Total energy of a crystal without friction, eV."""
    atoms, model = seed(crystal()), batched(emt())
    rng = np.random.default_rng(1)
    momenta = torch.as_tensor(
        rng.standard_normal((len(atoms), 3)) * np.sqrt(units.kB * HOT * atoms.get_masses()[:, None])
    )
    state = ts.io.atoms_to_state([atoms], model.device, model.dtype)
    state = MDState.from_state(state, momenta=momenta, **model(state))
    no_kick = torch.zeros((len(atoms), 1), dtype=model.dtype)
    found = []
    for _ in range(n_steps):
        noise = torch.as_tensor(rng.standard_normal((len(atoms), 3)))
        state = langevin_step(state, model, dt=timestep * units.fs, damping=1.0, kick=no_kick, noise=noise)
        kinetic = 0.5 * (state.momenta**2).sum(dim=1) / state.masses
        found.append(float(state.energy[0] + kinetic.sum()))
    return np.array(found)


def test_energy_is_conserved_to_second_order_without_friction():
    coarse, fine = (np.std(energies(timestep, round(240 / timestep))) for timestep in (4.0, 2.0))
    assert fine < 1e-3  # eV, of 0.3 eV kinetic energy
    second_order = 2**2
    assert coarse / fine == pytest.approx(second_order, rel=0.3)


# --- guards -----------------------------------------------------------------------------------------


def test_all_systems_may_break_at_the_start():
    touching = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 0.3]])
    found = run([seed(touching), seed(touching, replica=1)])
    for trajectory in found:
        assert trajectory.frames == []
        assert trajectory.rejection is not None
        assert trajectory.rejection.reason == "force"
        assert trajectory.rejection.evidence.startswith("at step 0: a force of ")
        assert trajectory.rejection.details["step"] == 0
        assert trajectory.rejection.details["last_sane"]["symbols"] == ["Cu", "Cu"]


@pytest.mark.parametrize("stride", [1, 4, 5])
def test_the_last_system_may_break_at_any_step(stride):
    (trajectory,) = run([seed(compressed())], steps=20, stride=stride)
    assert trajectory.rejection is not None
    step = trajectory.rejection.details["step"]
    assert len(trajectory.frames) == (step - 1) // stride, "the frames before the break are kept"
    assert trajectory.rejection.reason == "temperature"
    assert f"at step {step}: an instantaneous temperature of " in trajectory.rejection.evidence


def test_last_step_of_a_stride_may_break_all():
    """The break and a frame are due at the same step."""
    (found,) = run([seed(compressed())], steps=20, stride=1)
    assert found.rejection is not None
    step = found.rejection.details["step"]
    (again,) = run([seed(compressed())], steps=step, stride=step)
    assert again.rejection is not None
    assert (again.rejection.details["step"], again.frames) == (step, [])


def test_overlap_is_rejected_at_the_frame_and_the_last_sane_geometry_is_kept():
    atoms = seed(cluster())
    (free,) = run([atoms], Guards(min_distance=0), steps=100, stride=5)
    shortest = np.array([pdist(frame.positions).min() for frame in free.frames])
    # The first frame whose shortest distance falls below that of all frames before it; the limit lies between.
    n_sane = next(index for index in range(1, len(shortest)) if shortest[index] < shortest[:index].min())
    limit = (shortest[n_sane] + shortest[:n_sane].min()) / 2
    both_radii = 2 * covalent_radii[29]
    (trajectory,) = run([atoms], Guards(min_distance=limit / both_radii), steps=100, stride=5)
    assert trajectory.rejection is not None
    assert trajectory.rejection.reason == "overlap"
    assert f"{shortest[n_sane]:.3f} Å" in trajectory.rejection.evidence
    assert len(trajectory.frames) == n_sane
    np.testing.assert_array_equal(positions(trajectory), positions(free)[:n_sane])
    last = trajectory.rejection.details["last_sane"]["positions"]
    np.testing.assert_allclose(last, free.frames[n_sane - 1].positions, atol=1e-4)


class Fussy(EMT):
    """Gives up on gold, as an SCF that does not converge does."""

    def calculate(self, atoms, properties, system_changes):
        if "Au" in atoms.symbols:
            raise CalculationFailed("SCF not converged in 250 cycles")
        super().calculate(atoms, properties, system_changes)


def test_failure_of_the_potential_is_named():
    structures = [seed(cluster("Au")), seed(cluster())]
    gold, copper = run_batch(structures, batched(Potential(calculator=Fussy())), dynamics(), Guards(), RUN_SEED)
    assert gold.rejection is not None
    assert gold.rejection.reason == "potential_failed"
    assert gold.rejection.evidence == "at step 0: unconverged: SCF not converged in 250 cycles"
    assert copper.rejection is None
    assert len(copper.frames) == dynamics().n_frames


def test_failure_of_one_system_is_not_laid_on_the_next_one():
    class LateFussy(EMT):
        """Gives up on gold that has moved."""

        def calculate(self, atoms, properties, system_changes):
            if "Au" in atoms.symbols and not np.array_equal(atoms.positions, gold.positions):
                raise CalculationFailed("SCF not converged in 250 cycles")
            super().calculate(atoms, properties, system_changes)

    gold, copper = seed(cluster("Au")), seed(cluster())
    model = batched(Potential(calculator=LateFussy()))
    strict = Guards(min_distance=0.98)  # copper at 2.45 Å is 0.93 of the sum of radii
    found = run_batch([gold, copper], model, dynamics(stride=1), strict, RUN_SEED)
    assert [item.rejection.reason for item in found if item.rejection] == ["potential_failed", "overlap"]
    assert [item.rejection.details["step"] for item in found if item.rejection] == [1, 1]


def test_forces_that_become_nan_under_way_are_rejected():
    class Blows(Wells):
        def forward(self, state, **_):
            found = super().forward(state)
            away = (state.positions - self.centres).abs().amax()
            return {**found, "forces": torch.where(away > far, torch.nan, found["forces"])}

    far = 0.1  # Å; thermal motion in these wells has an amplitude of 0.16 Å
    atoms, _ = wells(3)
    (trajectory,) = run_batch([atoms], Blows(atoms.positions.copy(), 2.0), dynamics(steps=100), Guards(), RUN_SEED)
    assert trajectory.rejection is not None
    assert trajectory.rejection.reason == "not_finite"
    assert trajectory.rejection.details["step"] > 0
    assert np.isfinite(trajectory.rejection.details["last_sane"]["positions"]).all()
