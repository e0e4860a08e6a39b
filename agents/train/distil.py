"""Many trained policies distilled into one that answers what they say in the mean.

Seeds of one training agree about most of what they learnt and differ by chance in the rest, and the
mean of their answers is steadier than any of them. A student learns that mean (policy distillation,
Rusu et al., arXiv 1511.06295) on the states it meets itself (DAgger, Ross et al., AISTATS 2011): in
every round it plays training days, the teachers say what they would answer, and it is fitted to all
rounds so far. It is as large as one of them, and its answers are scaled like theirs were, on
validation days (`agents.train.shrink`).

Where teachers were trained on no ample clusters (`RandomiseConfig.ample`), a third of those it
plays are ample. What teachers would say there nobody has tried, and the student is taught action 0:
the planner without learning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numba
import numpy as np
import torch
from torch import Tensor

from agents.policies.heads import ResidualHead
from agents.policies.network import Normaliser, Parts, SetNetwork, take_apart
from agents.policies.policy import SetPolicy
from agents.train import export
from agents.train.config import StageConfig, TrainConfig, parse
from agents.train.shrink import Shrunk, shrink
from agents.train.stage import make_env, make_head, make_level, update_seed
from envs.vec_env import ClusterVecEnv
from hrl_planner.errors import TrainingError
from hrl_planner.planner import checkpoint as checkpoints
from hrl_planner.planner.checkpoint import Checkpoint, Ranges, Tensors

_EPOCHS, _LAST_EPOCHS = 6, 40
_BATCH = 512
_LEARNING_RATE = 2e-3
_STREAM = 2**31 + 2  # of training days, apart from those of any stage
_HEADS = ("terms", "residual", "flat")

OnRound = Callable[[int, float], None]
"""Told the round, from 1, and the share of the teachers' mean square the student misses there."""


@dataclass(frozen=True)
class Distilled:
    """What came of it.

    Attributes:
        path: of the checkpoint.
        missed: share of the mean square of the teachers' mean that the student missed in the last
            round, on states it had not been fitted to.
        shrunk: the scale that was kept and what it gains.
    """

    path: Path
    missed: float
    shrunk: Shrunk


class Teachers:
    """Networks that are asked together.

    Args:
        checkpoints: of one kind, see `read_teachers`.
        head: what their outputs mean.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], head: ResidualHead) -> None:
        """See the class."""
        self._head = head
        self._networks = []
        for teacher in checkpoints:
            network = SetNetwork(teacher.manifest.allocator.shape, Normaliser.identity())
            network.load(_tensors(teacher))
            self._networks.append(network)

    def answer(self, parts: Parts) -> Tensor:
        """Return the mean of the means of their distributions over actions."""
        with torch.no_grad():
            return torch.stack([self._head.means(n(parts), parts)[0] for n in self._networks]).mean(
                0
            )


@dataclass(frozen=True)
class Lesson:
    """Clusters to play on, and who says what is right there.

    Attributes:
        env: the clusters.
        teachers: None where action 0 is.
    """

    env: ClusterVecEnv
    teachers: Teachers | None


class States:
    """Observations and what is right there, growing from round to round."""

    def __init__(self) -> None:
        """See the class."""
        self.observations: list[Tensor] = []
        self.answers: list[Tensor] = []

    def add(self, observations: Tensor, answers: Tensor) -> None:
        """Take in a batch."""
        self.observations.append(observations)
        self.answers.append(answers)


def read_teachers(folders: Sequence[Path]) -> list[Checkpoint]:
    """Load checkpoints that one student can learn from.

    Raises:
        CheckpointError: one cannot be loaded.
        TrainingError: there are fewer than two, or they differ in what must be the same.
    """
    if len(folders) < 2:
        raise TrainingError(f"distil: {len(folders)} checkpoint given; a mean takes at least two")
    teachers = [checkpoints.load(folder) for folder in folders]
    first = teachers[0].manifest
    if first.head not in _HEADS:
        raise TrainingError(
            f"checkpoint {folders[0]}: head is {first.head}, which has no mean; "
            f"one of {', '.join(_HEADS)}"
        )
    for teacher in teachers:
        if "config" not in teacher.manifest.training:
            raise TrainingError(
                f"checkpoint {teacher.path}: training.config is missing; it was not made by "
                "hrl-planner train"
            )
        for field in ("head", "prior", "allocator", "scaler", "spec"):
            mine, other = getattr(teacher.manifest, field), getattr(first, field)
            if mine != other:
                raise TrainingError(
                    f"checkpoint {teacher.path}: {field} differs from that of {folders[0]}"
                )
    return teachers


def distil(
    folders: Sequence[Path], out: Path, *, name: str, rounds: int, seed: int, on_round: OnRound
) -> Distilled:
    """Train a student and write its checkpoint, in place of what was there; the last thing it does.

    Args:
        folders: of the teachers. The student's scaler, its episodes and its networks' sizes are
            those of the first.
        out: folder of the checkpoint.
        name: of the checkpoint.
        rounds: of playing and fitting.
        seed: of the days, and of the order of fitting.
        on_round: told how it goes.

    Raises:
        CheckpointError: a teacher cannot be loaded, or `out` is something else than a checkpoint.
        TrainingError: the teachers do not go together.
    """
    checkpoints.check_replaceable(out)
    teachers = read_teachers(folders)
    manifest = teachers[0].manifest
    config = parse(manifest.training["config"], str(folders[0])).replace(seed=seed)
    stage = next(s for s in reversed(config.stages) if s.level != "scaler")
    numba.set_num_threads(min(config.threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    level = make_level(stage, config.prior, teachers[0].scaler)
    env = make_env(config, level, stage.n_envs, future=False, validation=False)
    student = _student(stage, env, teachers)
    lessons = [Lesson(env, Teachers(teachers, _head(student)))]
    if not config.randomise.ample:
        n_ample = max(stage.n_envs // 2, 1)
        ample = make_env(_ample(config), level, n_ample, future=False, validation=False)
        lessons.append(Lesson(ample, None))
    missed = _learn(student, lessons, config, stage, rounds, on_round)
    for lesson in lessons:
        lesson.env.close()
    many = make_env(config, level, config.validation.final, future=False, validation=True)
    kept, shrunk = shrink(many, student, student.export())
    many.close()
    training = {
        "config": config.model_dump(mode="json"),
        "teachers": [_origin(teacher) for teacher in teachers],
        "rounds": rounds,
        "states": rounds * sum(lesson.env.num_envs for lesson in lessons) * stage.n_steps,
    }
    metrics = {"missed": missed} | {f"final_{k}": float(v) for k, v in vars(shrunk).items()}
    made = manifest.model_copy(
        update={
            "name": name,
            "ranges": _all_ranges([teacher.manifest.ranges for teacher in teachers]),
            "reward_normaliser": None,
            "training": training,
            "metrics": {key: round(value, 5) for key, value in metrics.items()},
            "git_revision": export.git_revision(),
            "versions": {package: version(package) for package in manifest.versions},
        }
    )
    scaler = None if manifest.scaler is None else _tensors(teachers[0], checkpoints.SCALER_FILE)
    checkpoints.save(out, made, kept, scaler, _card(name, teachers, shrunk, config))
    return Distilled(out, missed, shrunk)


def _tensors(checkpoint: Checkpoint, file: str = checkpoints.ALLOCATOR_FILE) -> Tensors:
    return checkpoints.read_tensors(checkpoint.path / file)


def _student(stage: StageConfig, env: ClusterVecEnv, teachers: Sequence[Checkpoint]) -> SetPolicy:
    """Return a policy with the mean of the teachers' feature normalisers and fresh weights."""
    known = [_tensors(teacher) for teacher in teachers]
    fields = Normaliser.__dataclass_fields__
    normaliser = Normaliser(
        **{field: np.mean([t[field] for t in known], axis=0).astype(np.float32) for field in fields}
    )
    shape = teachers[0].manifest.allocator.shape
    return SetPolicy(
        env.observation_space,
        env.action_space,
        lambda _: _LEARNING_RATE,
        layout=env.layout,
        shape=shape,
        normaliser=normaliser,
        head=make_head(stage, shape),
        sees_future=False,
    )


def _head(student: SetPolicy) -> ResidualHead:
    assert isinstance(student.head, ResidualHead)
    return student.head


def _ample(config: TrainConfig) -> TrainConfig:
    """Return the same training on clusters with more GPUs than it had."""
    randomise = config.randomise.model_copy(update={"ample": 1.0})
    return config.model_copy(update={"randomise": randomise})


def _learn(
    student: SetPolicy,
    lessons: Sequence[Lesson],
    config: TrainConfig,
    stage: StageConfig,
    rounds: int,
    on_round: OnRound,
) -> float:
    """Play and fit, round by round; returns what is missed of the teachers' in the last round."""
    states = States()
    optimiser = torch.optim.Adam(student.actor.parameters(), lr=_LEARNING_RATE)
    missed = 1.0
    for number in range(1, rounds + 1):
        first = len(states.observations)
        for lesson in lessons:
            _play(student, lesson, stage.n_steps, update_seed(config, _STREAM, number), states)
        missed = _missed(student, states.observations[first:], states.answers[first:])
        on_round(number, missed)
        _fit(student, optimiser, states, last=number == rounds)
    return missed


def _play(student: SetPolicy, lesson: Lesson, n_steps: int, seed: int, states: States) -> None:
    env = lesson.env
    env.seed(seed)
    observations = torch.from_numpy(np.asarray(env.reset(), np.float32))
    for _ in range(n_steps):
        with torch.no_grad():
            own = _answers(student, observations)
        right = torch.zeros_like(own)
        if lesson.teachers is not None:
            right = lesson.teachers.answer(take_apart(observations, env.layout))
        states.add(observations, right)
        observations = torch.from_numpy(np.asarray(env.step(own.numpy())[0], np.float32))


def _answers(student: SetPolicy, observations: Tensor) -> Tensor:
    parts = take_apart(observations, student._layout)
    return _head(student).means(student.actor(parts), parts)[0]


def _missed(student: SetPolicy, observations: Sequence[Tensor], answers: Sequence[Tensor]) -> float:
    asked, wanted = torch.cat(list(observations)), torch.cat(list(answers))
    with torch.no_grad():
        error = (_answers(student, asked) - wanted).square().mean()
    return float(error / wanted.square().mean().clamp(min=1e-12))


def _fit(
    student: SetPolicy, optimiser: torch.optim.Optimizer, states: States, *, last: bool
) -> None:
    """Fit the student to all states; the last time for longer, with falling steps."""
    asked, wanted = torch.cat(states.observations), torch.cat(states.answers)
    epochs = _LAST_EPOCHS if last else _EPOCHS
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = _LEARNING_RATE * (1.0 - epoch / epochs if last else 1.0)
        for rows in torch.split(torch.randperm(len(asked)), _BATCH):
            loss = (_answers(student, asked[rows]) - wanted[rows]).square().mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def _all_ranges(ranges: Sequence[Ranges]) -> Ranges:
    """Return what any of the teachers has seen."""

    def joined(kind: str) -> dict[str, tuple[float, float]]:
        bounds = [getattr(each, kind) for each in ranges]
        return {
            name: (min(b[name][0] for b in bounds), max(b[name][1] for b in bounds))
            for name in bounds[0]
        }

    return Ranges(pools=joined("pools"), classes=joined("classes"))


def _origin(teacher: Checkpoint) -> dict[str, object]:
    manifest = teacher.manifest
    return {
        "name": manifest.name,
        "seed": manifest.training["config"].get("seed"),
        "digest": checkpoints.digest(teacher.path),
        "git_revision": manifest.git_revision,
    }


_CARD = """# {name}

{count} allocators for `hrl-planner`, trained on the spec `{spec}` with seeds {seeds}, distilled
into one network that answers what they say in the mean{scaler}.

Its answers were then scaled by {scale:g}, which was the best on {days} validation days: there they
gain {gain:+.4f} (standard error {error:.4f}) in score, {attained:+.4f} in value attained, over
action 0, the planner without learning.

- **Use**: `hrl-planner evaluate --spec {spec} --policy learned:path=FOLDER ...`. Outside of the
  ranges in the manifest the shield lets the fluid LP decide.
- **Trained on**: simulated days only, never on a real cluster; scenarios {scenarios}.
- **Made by**: `hrl-planner distil`; the manifest names the teachers, by name, seed and digest.
"""


def _card(name: str, teachers: Sequence[Checkpoint], found: Shrunk, config: TrainConfig) -> str:
    seeds = [str(teacher.manifest.training["config"].get("seed")) for teacher in teachers]
    return _CARD.format(
        name=name,
        count=len(teachers),
        spec=config.spec,
        seeds=", ".join(seeds),
        scaler="" if teachers[0].scaler is None else "; the local scaler is that of the first",
        scale=found.scale,
        days=config.validation.final,
        gain=found.gain,
        error=found.error,
        attained=found.attained,
        scenarios=", ".join(config.randomise.scenarios),
    )
