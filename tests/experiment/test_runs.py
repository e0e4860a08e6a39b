"""Runs: done once, shared where they are the same, and told apart where they are not."""

import shutil
import threading
import time

import numpy as np
import pytest
import yaml

from agents.evaluate.config import EvaluationConfig, policy_key
from agents.evaluate.store import write_atomically
from agents.experiment import ExperimentConfig, Results, prepare
from agents.experiment.store import RunStore, append
from hrl_planner._spec_file import find_spec
from hrl_planner.errors import PolicyError
from hrl_planner.profile import PROFILE_DIR
from hrl_planner.spec import ClusterSpec
from tests.experiment.invented import SMOKE, invent, run_all


def test_what_is_done_is_not_done_again_and_more_traces_add_to_it(data):
    config = ExperimentConfig.model_validate(data | {"traces": 1, "cells": data["cells"][1:]})
    results, failures, seen = run_all(config)
    assert not failures and seen[-1] == (0, 6)
    assert results.coverage("lp").complete
    _, _, seen = run_all(config)
    assert seen == [(6, 0)]
    more = config.model_copy(update={"traces": 2})
    results, _, seen = run_all(more)
    assert seen[0][0] == 6 and seen[-1] == (6, 6)
    assert results.coverage("subject").done == 4
    assert results.violations == 0


def test_runs_of_one_case_are_the_same_requests_for_all(data):
    config = ExperimentConfig.model_validate(data | {"traces": 1, "cells": data["cells"][1:]})
    results, *_ = run_all(config)
    offered = [results.scores(label, "offered") for label in results.started]
    assert len({float(np.nanmax(x)) for x in offered}) == 1


def test_a_torn_line_is_not_a_run_and_does_not_spoil_the_next(config, store):
    run = prepare(config).cells()[0]
    line = {"key": run.key, "seed": 0, "trace": 0, "code": "c"}
    path = config.results / "runs" / run.entry / "seed-0.jsonl"
    append(path, line)
    with open(path, "a") as file:
        file.write('{"key":"half')
    append(path, line | {"trace": 1})
    assert [one["trace"] for one in store.lines(run.entry)] == [0, 1]
    assert store.has(run)


def test_a_run_that_ends_while_others_are_discarded_is_kept(config, store, monkeypatch):
    runs = prepare(config).cells()
    old, new = [run for run in runs if run.entry == runs[0].entry][:2]
    line = {"key": old.key, "seed": 0, "trace": old.trace, "code": "old"}
    store.write(old, line)
    written = []

    def meanwhile(path, text):
        writer = threading.Thread(
            target=lambda: store.write(new, line | {"key": new.key, "code": "new"})
        )
        writer.start()
        written.append(writer)
        time.sleep(0.2)  # long enough for the writer to have opened the old file
        write_atomically(path, text)

    monkeypatch.setattr("agents.experiment.store.write_atomically", meanwhile)
    assert store.discard("new", [old, new]) == 1
    written[0].join()
    assert [one["key"] for one in store.lines(old.entry)] == [new.key]


def test_the_key_follows_what_a_run_depends_on_and_nothing_else(data):
    def keys(**changes):
        config = ExperimentConfig.model_validate(data | changes)
        return {(r.policy, r.cell.label): r.key for r in prepare(config).cells()}

    before = keys()
    assert keys(title="Another", about="x", traces=1).items() <= before.items()
    assert set(keys(grace_s=30).values()).isdisjoint(before.values())
    group = data["cells"][0]
    for change in ({"need": 0.5}, {"load": 0.2}, {"duration_s": 60}, {"truth": {"startup": 3.0}}):
        changed = keys(cells=[group | change])
        assert set(changed.values()).isdisjoint(before.values()), change
    assert len(set(before.values())) == len(before)


def test_runs_of_an_experiment_that_has_changed_since_are_not_reported(data, monkeypatch):
    monkeypatch.setattr("agents.bounds.clairvoyant_need", lambda *_, **__: 0.5)
    group = {key: value for key, value in data["cells"][0].items() if key != "need"}
    config = ExperimentConfig.model_validate(data | {"cells": [group]})
    prepare(config, compute_needs=True)
    invent(config, lambda *_: 0.5).experiment.keep_keys()
    assert Results(prepare(config), RunStore(config.results)).coverage("lp").complete
    for change in ({"load": 0.5 * group.get("load", 1.0)}, {"duration_s": 77.0}):
        changed = ExperimentConfig.model_validate(data | {"cells": [group | change]})
        # Nobody has computed the need of what it says now.
        assert Results(prepare(changed), RunStore(config.results)).coverage("lp").done == 0


def test_a_profile_rebuilt_in_place_is_another_cluster(data, tmp_path):
    spec = yaml.safe_load(find_spec("small").read_text())
    pool = spec["pools"][0]
    own = tmp_path / "own.npz"
    shutil.copy(PROFILE_DIR / f"{pool['profile']}.npz", own)
    pool["profile"] = own.name
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(spec))
    group = data["cells"][0] | {"spec": str(tmp_path / "own.yaml"), "need": 1.0}
    config = ExperimentConfig.model_validate(data | {"cells": [group]})

    def keys():
        loaded = ClusterSpec.load(group["spec"])
        evaluation = EvaluationConfig(loaded, (), ("lp",), seeds=1)
        return prepare(config).cell_keys, evaluation.fingerprint()

    before = keys()
    assert keys() == before
    with np.load(own) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["decode_ms"] = 1.1 * arrays["decode_ms"]
    np.savez_compressed(own, **arrays)
    after = keys()
    assert set(after[0].values()).isdisjoint(before[0].values())
    assert after[1] != before[1]


def test_another_checkpoint_under_the_same_path_is_another_policy(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"one")
    text = f"learned:path={tmp_path}"
    before = policy_key(text)
    assert policy_key(text) == before and before.startswith(text)
    (tmp_path / "weights.bin").write_bytes(b"two")
    assert policy_key(text) != before


def test_a_report_needs_neither_checkpoints_nor_recordings(data, tmp_path, monkeypatch):
    config = ExperimentConfig.model_validate(data)
    results = invent(config, lambda *_: 0.5)
    results.experiment.keep_keys()

    def gone(text):
        raise PolicyError(f"no checkpoint at {text}")

    monkeypatch.setattr("agents.evaluate.cell.check_policy", gone)
    optional = [{**entry, "optional": True} for entry in data["entries"]]
    elsewhere = ExperimentConfig.model_validate(data | {"entries": optional})
    experiment = prepare(elsewhere)
    assert experiment.cells() == []
    found = Results(experiment, RunStore(config.results))
    assert found.coverage("subject").complete


@pytest.mark.parametrize(("name", "label"), [("main", "learned"), ("ablations", "unshielded")])
def test_the_results_in_the_repository_need_no_checkpoints(name, label, tmp_path, monkeypatch):
    repository = SMOKE.parents[2]
    config = ExperimentConfig.load(SMOKE.parent / f"{name}.yaml")
    config = config.model_copy(update={"results": repository / config.results})
    monkeypatch.chdir(tmp_path)
    results = Results(prepare(config), RunStore(config.results))
    assert results.experiment.cells(), "policies without checkpoints can be made"
    assert not any(run.entry == label for run in results.experiment.cells())
    assert results.coverage(label).complete


def test_experiments_share_runs(data):
    config = ExperimentConfig.model_validate(data)
    invent(config, lambda *_: 0.5)
    part = ExperimentConfig.model_validate(
        data | {"name": "part", "cells": data["cells"][:1], "traces": 1}
    )
    found = Results(prepare(part), RunStore(part.results))
    assert found.coverage("lp").complete


def test_cells_alike_in_all_but_name_share_runs_too(data):
    group = data["cells"][0]
    twice = data | {"cells": [group, {**group, "group": "again"}]}
    config = ExperimentConfig.model_validate(twice)
    results = invent(config, lambda entry, seed, cell, trace: None if "again" in cell else 0.5)
    assert results.coverage("lp").complete
