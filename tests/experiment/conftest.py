"""Fixtures of all tests of experiments."""

import pytest
import yaml

from agents.experiment import ExperimentConfig
from agents.experiment.store import RunStore
from tests import fake_bounds
from tests.experiment.invented import SMOKE


@pytest.fixture(autouse=True)
def bounds():
    fake_bounds.install()


@pytest.fixture
def data(tmp_path):
    """The smoke experiment with its results in a folder of the test's own."""
    found = yaml.safe_load(SMOKE.read_text())
    return {**found, "results": str(tmp_path / "results")}


@pytest.fixture
def config(data):
    return ExperimentConfig.model_validate(data)


@pytest.fixture
def store(config):
    return RunStore(config.results)


@pytest.fixture
def file(data, tmp_path):
    path = tmp_path / "smoke.yaml"
    path.write_text(yaml.safe_dump(data))
    return path
