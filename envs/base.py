"""The Gymnasium face over one episode at a time; the environments add what their agent decides."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.controlled import Episodes, Level, Run, info_of
from envs.episodes import EpisodeOptions
from envs.spaces import observation_space
from hrl_planner.encoding import Layout
from hrl_planner.errors import ScenarioError
from hrl_planner.spec import ClusterSpec

RENDER_MODES = ("ansi", "rgb_array")


def layout_of(options: EpisodeOptions, layout: Layout | None, one_pool: bool) -> Layout:
    """Return the layout asked for, or the one that fits the options' cluster."""
    if layout is not None:
        return layout
    spec = options.spec
    cluster = spec if isinstance(spec, ClusterSpec) else ClusterSpec.load(spec or "reference")
    fitting = Layout.of(cluster)
    return Layout(1, fitting.max_classes, fitting.max_types) if one_pool else fitting


class PlannerEnv(gymnasium.Env[NDArray[np.float32], Any]):
    """What the environments share: episodes, observation, reward, info and pictures.

    Args:
        level: what the agent decides.
        layout: size of the observation; absent, it fits the cluster of `options`.
        render_mode: None, "ansi" or "rgb_array".
        options: the episode options (`envs.episodes.EpisodeOptions`) that hold unless `reset`
            says otherwise.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        level: Level,
        layout: Layout | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        """See the class."""
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ScenarioError(
                f"render_mode must be one of {', '.join(RENDER_MODES)}, got {render_mode!r}"
            )
        self.render_mode = render_mode
        self.defaults = EpisodeOptions().changed(options)
        self.layout = layout_of(self.defaults, layout, level.one_pool)
        self.observation_space: spaces.Space[Any] = observation_space(self.layout)
        self.action_space: spaces.Space[Any] = level.action_space(self.layout)
        self._episodes = Episodes(level, self.layout, 1, parallel=False)

    @property
    def run(self) -> Run:
        """The episode under way, with its simulation."""
        return self._episodes.run(0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of everything random from now on.
            options: what to choose of the episode, see `envs.episodes.EpisodeOptions`.

        Raises:
            HrlPlannerError: naming an option that cannot be.
        """
        super().reset(seed=seed)
        chosen = self.defaults.changed(options)
        observation = self._episodes.start(0, chosen, self.np_random)
        return observation, info_of(self.run)

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Act, and let one interval pass."""
        observations, terms = self._episodes.step([action])
        run = self.run
        ended = run.now_s >= run.end_s
        return observations[0], float(terms[0].sum()), False, ended, info_of(run)

    def render(self) -> Any:
        """Draw the cluster as text or as a picture, by `render_mode`."""
        if self.render_mode is None:
            return None
        from envs import viewer

        return viewer.text(self.run) if self.render_mode == "ansi" else viewer.picture(self.run)
