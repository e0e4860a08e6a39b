"""What a training run consists of, as a YAML file: spec, networks, randomisation, stages.

`experiments/train/*.yaml` hold the configs behind published checkpoints. Everything has a default
that suits the reference spec; `--set stages.0.steps=1000` changes one value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from envs.episodes import TRAINING
from hrl_planner._spec_file import describe, read_mapping
from hrl_planner.errors import TrainingError


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NetworkConfig(_Model):
    """Sizes of both networks.

    Attributes:
        class_hidden: width of the class encoder.
        hidden: width of the allocator's pool encoder and head.
        scaler_hidden: the same of the scaler, which runs inside the simulator's loop.
        attention: let pools attend to each other in the allocator.
        sees_future: let the critics see the arrivals to come (the policies never do).
    """

    class_hidden: int = Field(16, ge=1, le=1024)
    hidden: int = Field(64, ge=1, le=1024)
    scaler_hidden: int = Field(32, ge=1, le=1024)
    attention: bool = False
    sees_future: bool = True


class RandomiseConfig(_Model):
    """What differs from episode to episode (domain randomisation); a pair is a range.

    Attributes:
        scenarios: shapes of the load, drawn evenly.
        durations_s: lengths of an episode, drawn evenly.
        load: factor on the scenario's rates, log-uniform.
        loads: a further factor on the rates of a scenario, by its name; 1 where absent.
        tightness: factor on the GPUs of every type, over the load and the scenario's need.
        ample: chance that this factor is one to four times its upper end, and the load down to a
            quarter of its lower: clusters that are nearly empty, where letting go is all there is
            to learn.
        needs: factor on the spec's budget that a scenario needs at load 1, by its name; 1 where
            absent: the size for which it was made. `hrl-planner experiment table needs` has them.
        startup: factor on start-up times, which stay within 30 to 420 s.
        profile_error: deviation of the log of the true step times around the profile's.
        scrape_lag_s: age of the metrics.
        drop_pool: chance that a pool does not exist.
        failures: chance that workers fail at all, then every 2 hours each.
        as_told: chance that of all this only load and budget differ, and the cluster is what
            planners are told: most clusters are, most of the time.
    """

    scenarios: tuple[str, ...] = TRAINING
    durations_s: tuple[float, ...] = (1800.0, 3600.0)
    load: tuple[float, float] = (0.2, 1.1)
    loads: dict[str, float] = Field(default_factory=dict)
    tightness: tuple[float, float] = (0.5, 1.2)
    ample: float = Field(0.0, ge=0, le=1)
    needs: dict[str, float] = Field(default_factory=dict)
    startup: tuple[float, float] = (0.5, 2.0)
    profile_error: float = Field(0.1, ge=0, le=1)
    scrape_lag_s: tuple[float, float] = (2.0, 30.0)
    drop_pool: float = Field(0.1, ge=0, lt=1)
    failures: float = Field(0.1, ge=0, le=1)
    as_told: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> RandomiseConfig:
        from hrl_planner.workload.scenarios import SCENARIOS

        for field in ("scenarios", "needs", "loads"):
            for name in getattr(self, field):
                if name not in SCENARIOS:
                    raise ValueError(f"{field}: unknown {name!r}; one of {', '.join(SCENARIOS)}")
        if not self.scenarios or not self.durations_s or min(self.durations_s) < 60.0:
            raise ValueError("scenarios and durations_s need entries; durations are at least 60 s")
        for field in ("load", "tightness", "startup"):
            low, high = getattr(self, field)
            if not 0.0 < low <= high < 100.0:
                raise ValueError(f"{field}: {low} to {high} is no range of factors above 0")
        for field in ("needs", "loads"):
            factors = getattr(self, field)
            if not all(factor > 0.0 for factor in factors.values()):
                raise ValueError(f"{field}: {factors} holds factors that are not above 0")
        if not 0.0 <= self.scrape_lag_s[0] <= self.scrape_lag_s[1]:
            raise ValueError(f"scrape_lag_s: {self.scrape_lag_s} is no range")
        return self


class PpoConfig(_Model):
    """Proximal policy optimisation, see stable_baselines3.PPO for the meaning of each."""

    learning_rate: float = Field(3e-4, gt=0)
    epochs: int = Field(6, ge=1)
    batch: int = Field(480, ge=2)
    gamma: float = Field(0.97, gt=0, le=1)
    gae_lambda: float = Field(0.9, gt=0, le=1)
    clip: float = Field(0.2, gt=0)
    target_kl: float = Field(0.03, gt=0)
    entropy: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(0.5, gt=0)


class StageConfig(_Model):
    """One stage: who learns, under whom, for how long.

    Attributes:
        level: `scaler` (all pools' local planners), `allocator`, or `flat` (no hierarchy).
        head: what an allocator decides: `terms`, how much of each role's capacity the prior may
            plan with, how dear it is to stop a replica, what must stay, how far to trust the
            forecast and how readily to rebuild; `residual`, a correction of every pool's quota at
            once; or `moves`, single replicas one by one within the budget.
        moves: most moves of a decision.
        stop_odds: log-odds of making no further move at first, against all moves together.
        quotas: who sets quotas while a scaler learns: `random`, a policy, or `learned` for the
            allocator of the stage before.
        quota_noise: deviation of the log of a factor on every pool's quota, drawn per episode.
        steps: environment steps in all.
        n_envs: clusters side by side.
        n_steps: steps of each between two updates.
        critic_only: updates at first that train the critic alone.
        std: deviation of the residual at first.
        odds: log-odds of a scaler's first favourite action: the rule.
        try_quota: let a scaler that is not warm-started begin at taking the quota instead, where
            that does better on training days.
        noise_memory: how much of a step's exploration noise the next one keeps.
        average: what is judged and kept are the mean weights of the last updates: how much of
            that mean the next one keeps; 0 for the weights of each update alone.
        paired: learn from the gain over action 0 on the same day, see `agents.train.paired`.
        per_day: clusters that share a day and its twin, where learning is paired.
        penalty: weight of GPUs asked for beyond the budget in the reward; 0 leaves all to the
            projection.
        ppo: the algorithm's numbers.
    """

    level: Literal["scaler", "allocator", "flat"]
    head: Literal["residual", "moves", "terms"] = "residual"
    moves: int = Field(6, ge=1, le=64)
    stop_odds: float = Field(0.5, gt=0)
    quotas: str = "lp"
    quota_noise: float = Field(0.4, ge=0, le=2)
    steps: int = Field(ge=1)
    n_envs: int = Field(32, ge=1, le=4096)
    n_steps: int = Field(60, ge=2)
    critic_only: int = Field(3, ge=0)
    std: float = Field(0.4, gt=0, le=2)
    odds: float = Field(2.0, ge=0)
    try_quota: bool = True
    noise_memory: float = Field(0.85, ge=0, lt=1)
    average: float = Field(0.0, ge=0, lt=1)
    paired: bool = False
    per_day: int = Field(1, ge=1)
    penalty: float = Field(0.0, ge=0)
    ppo: PpoConfig = PpoConfig()

    @model_validator(mode="after")
    def _check(self) -> StageConfig:
        if self.n_envs * self.n_steps < self.ppo.batch:
            raise ValueError(
                f"ppo.batch: {self.ppo.batch} is more than n_envs x n_steps = "
                f"{self.n_envs * self.n_steps}"
            )
        if self.n_envs % self.per_day or (self.per_day > 1 and not self.paired):
            raise ValueError(
                f"per_day: {self.per_day} needs paired: true and must divide n_envs, {self.n_envs}"
            )
        if self.head != "residual" and self.level != "allocator":
            raise ValueError(f"head: {self.head} is for level allocator, not {self.level}")
        return self


class ValidationConfig(_Model):
    """When and on how many validation days a stage is judged."""

    episodes: int = Field(24, ge=1)
    every: int = Field(10, ge=1, description="updates between two validations")
    final: int = Field(96, ge=2, description="days drawn anew, for the scale of a trained residual")


class TrainConfig(_Model):
    """A training run.

    Attributes:
        name: of the run and its checkpoint.
        spec: the cluster, by name or file.
        seed: of everything random.
        prior: the policy the allocator corrects.
        threads: of the simulator.
        prior_processes: processes that make the prior's plans, 0 for none.
        network: sizes.
        randomise: what differs between episodes.
        validation: how a stage is judged.
        stages: in order.
    """

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    spec: str = "reference"
    seed: int = Field(0, ge=0)
    prior: str = "lp"
    threads: int = Field(2, ge=1)
    prior_processes: int = Field(0, ge=0)
    network: NetworkConfig = NetworkConfig()
    randomise: RandomiseConfig = RandomiseConfig()
    validation: ValidationConfig = ValidationConfig()
    stages: tuple[StageConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        seen: set[str] = set()
        for i, stage in enumerate(self.stages):
            if stage.level == "scaler" and stage.quotas == "learned" and "allocator" not in seen:
                raise ValueError(f"stages.{i}.quotas: no allocator is trained before this stage")
            seen.add(stage.level)
        if seen == {"scaler"}:
            raise ValueError("stages: a checkpoint needs one that trains an allocator, or flat")
        return self

    def replace(self, **changes: Any) -> TrainConfig:
        """Return a copy with fields replaced, validated."""
        return parse({**self.model_dump(), **changes}, self.name)


def parse(data: dict[str, Any], where: str) -> TrainConfig:
    """Validate plain data.

    Raises:
        TrainingError: naming the file, the field and the value.
    """
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as error:
        raise TrainingError(describe(error, where)) from error


def load_config(path: Path, changes: tuple[str, ...] = ()) -> TrainConfig:
    """Read a config file; one with `base` changes another and holds only what differs.

    Args:
        path: the YAML file; `base` is relative to it, `set` maps `field.field` to values.
        changes: `field.field=value`, applied over the file's; values are YAML.

    Raises:
        TrainingError: naming the file, the field and the value.
    """
    data = _read(path)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise TrainingError(f"--set {change}: not of the form field.field=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise TrainingError(f"--set {change}: the value is no YAML: {error}") from error
        _apply(data, key, value, f"--set {change}")
    return parse(data, str(path))


def _read(path: Path, changed_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    data = read_mapping(path, "training config", TrainingError)
    if "base" not in data:
        return data
    base = path.parent / str(data.pop("base"))
    chain = (*changed_by, path.resolve())
    if base.resolve() in chain:
        raise TrainingError(f"{path}: base: {base} is changed by this file itself")
    whole = _read(base, chain)
    changes = data.pop("set", {})
    if not isinstance(changes, dict):
        raise TrainingError(f"{path}: set: {changes!r} is no mapping of field.field to values")
    for key, value in changes.items():
        _apply(whole, str(key), value, f"{path}: set.{key}")
    return whole | data


def _apply(data: dict[str, Any], key: str, value: Any, where: str) -> None:
    *way, last = key.split(".")
    place: Any = data
    for name in way:
        if isinstance(place, list) and name.isdigit() and int(name) < len(place):
            place = place[int(name)]
        elif isinstance(place, dict):
            place = place.setdefault(name, {})
        else:
            raise TrainingError(f"{where}: there is no {name!r} to go into")
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise TrainingError(f"{where}: there is no {last!r} to set")
