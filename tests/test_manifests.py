"""Manifests as they are written: what is checked in, what they never say, how pods are confined."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hrl_planner.errors import ManifestError
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.manifests import (
    Installation,
    accounts,
    base,
    planner_deployments,
    router_deployment,
    tree,
)
from hrl_planner.router.config import RouterConfig
from hrl_planner.spec import ClusterSpec

DEPLOY = Path(__file__).parent.parent / "deploy"
SPEC = ClusterSpec.load("small")
OVERLAYS = ("deployments", "dgd", "demo")


def installation(**fields: Any) -> Installation:
    return Installation(SPEC, "llm", **fields)


def objects(made: Installation) -> list[Any]:
    return list(itertools.chain.from_iterable(base(made).values()))


def workloads(text: str) -> list[Any]:
    return [made for made in yaml.safe_load_all(text) if made["kind"] == "Deployment"]


def rules_of(made: Installation, account: str) -> list[Any]:
    roles = (each for each in accounts(made) if each["kind"] == "Role")
    return next(list(role["rules"]) for role in roles if role["metadata"]["name"] == account)


def render(folder: Path) -> list[Any]:
    """A folder as kubectl renders it."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which renders kustomize trees, is not on this machine")
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_the_checked_in_tree_is_what_is_made_of_the_small_spec() -> None:
    for name, text in tree(Installation(SPEC, "hrl-planner")).items():
        assert (DEPLOY / name).read_text(encoding="utf-8") == text, (
            f"deploy/{name} is old: hrl-planner manifests small --out deploy"
        )


def test_every_dashboard_is_in_the_component_that_installs_them() -> None:
    component = yaml.safe_load((DEPLOY / "grafana" / "kustomization.yaml").read_text())
    listed = component["configMapGenerator"][0]["files"]
    assert sorted(listed) == sorted(path.name for path in (DEPLOY / "grafana").glob("*.json"))


def test_definitions_are_applied_as_a_whole() -> None:
    listed = yaml.safe_load((DEPLOY / "crds" / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in (DEPLOY / "crds").glob("hrl*.yaml"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_renders_every_overlay_with_no_object_twice(overlay: str) -> None:
    made = render(DEPLOY / "overlays" / overlay)
    names = [(each["kind"], each["metadata"]["name"]) for each in made]
    assert len(names) == len(set(names))
    assert {each["metadata"]["namespace"] for each in made} == {"hrl-planner"}


def test_all_components_fit_into_one_overlay_of_ones_own(tmp_path: Path) -> None:
    deploy = os.path.relpath(DEPLOY, tmp_path)
    parts = ("components/active", "components/monitoring", "grafana")
    mine = {
        "resources": [f"{deploy}/overlays/deployments"],
        "components": [f"{deploy}/{part}" for part in parts],
        "images": [{"name": "hrl-planner", "newName": "registry/planner", "newTag": "2"}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    made = render(tmp_path)
    assert {"ServiceMonitor", "PodMonitor", "ConfigMap"} <= {each["kind"] for each in made}
    assert json.dumps(made).count("registry/planner:2") == 1 + len(SPEC.pools)


def test_an_overlay_for_dynamo_scales_and_permits_adapters_and_no_deployments() -> None:
    made = render(DEPLOY / "overlays" / "dgd")
    refs = [each["spec"]["scaleTargetRef"] for each in made if each["kind"] == "WorkerPool"]
    assert {(ref["kind"], ref["name"]) for ref in refs} == {("DynamoGraphDeployment", "small")}
    assert {ref["component"] for ref in refs} == {pool.name for pool in SPEC.pools}
    rules = [rule for each in made if each["kind"] == "Role" for rule in each["rules"]]
    assert not any("apps" in rule["apiGroups"] for rule in rules)
    scales = [rule for rule in rules if rule["resources"][0].endswith("adapters/scale")]
    assert {name for rule in scales for name in rule["resourceNames"]} == {
        f"small-{pool.name}" for pool in SPEC.pools
    }
    graphs = [rule for rule in rules if rule["resources"] == ["dynamographdeployments"]]
    assert {verb for rule in graphs for verb in rule["verbs"]} == {"get", "list", "watch"}


def test_planners_only_decide_until_the_component_active_says_otherwise() -> None:
    modes = {
        overlay: each["spec"]["policy"]["mode"]
        for overlay in OVERLAYS
        for each in render(DEPLOY / "overlays" / overlay)
        if each["kind"] == "ServingGroup"
    }
    assert modes == {"deployments": "shadow", "dgd": "shadow", "demo": "active"}


@pytest.mark.parametrize("overlay", ["deployments", "demo"])
def test_applying_again_takes_back_nothing_that_planners_wrote(overlay: str) -> None:
    """What a manifest does not name stays as it is."""
    files = tree(installation())
    pools = yaml.safe_load_all(files["base/pools.yaml"])
    assert all({"quota", "quotaSequence", "status"}.isdisjoint(pool["spec"]) for pool in pools)
    engines = workloads(files[f"overlays/{overlay}/engines.yaml"])
    assert len(engines) == len(SPEC.pools)
    assert all("replicas" not in engine["spec"] for engine in engines)
    assert all(engine["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0 for engine in engines)


def test_pods_of_planners_and_router_may_do_nothing_to_their_node() -> None:
    for made in (each for each in objects(installation()) if each["kind"] == "Deployment"):
        pod = made["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"].keys() == {"requests", "limits"}
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()


def test_a_planner_of_a_pool_names_its_target_by_group_resource_and_name() -> None:
    target = ScaleTargetRef(
        api_version="leaderworkerset.x-k8s.io/v1", kind="LeaderWorkerSet", name="wide"
    )
    made = installation(targets={"decode-h100": target})
    rules = rules_of(made, "hrl-planner-local-decode-h100")
    scaled = {
        resource: (rule["apiGroups"], rule["resourceNames"])
        for rule in rules
        for resource in rule["resources"]
        if rule["apiGroups"] == ["leaderworkerset.x-k8s.io"]
    }
    assert scaled == {
        name: (["leaderworkerset.x-k8s.io"], ["wide"])
        for name in ("leaderworkersets", "leaderworkersets/scale")
    }
    assert not any("apps" in rule["apiGroups"] for rule in rules)


@pytest.mark.parametrize(
    ("layout", "nameless"), [("per-pool", {"events"}), ("all-in-one", {"events", "leases"})]
)
def test_a_rule_that_writes_names_what_it_may_write(layout: Any, nameless: set[str]) -> None:
    rules = [
        rule for role in accounts(installation(layout=layout)) for rule in role.get("rules", ())
    ]
    writing = [rule for rule in rules if not {"get", "list", "watch"}.issuperset(rule["verbs"])]
    without = [rule for rule in writing if not rule.get("resourceNames")]
    assert {resource for rule in without for resource in rule["resources"]} == nameless


def test_planners_of_both_layouts_run_every_level_once() -> None:
    def arguments(layout: Any) -> list[list[str]]:
        made = planner_deployments(installation(layout=layout))
        return [each["spec"]["template"]["spec"]["containers"][0]["args"][:2] for each in made]

    assert arguments("all-in-one") == [["all", "--group=small"]]
    locals_ = [["local", f"--pool={pool.name}"] for pool in SPEC.pools]
    assert arguments("per-pool") == [["global", "--group=small"], *locals_]


def test_the_routers_config_map_is_a_config_the_router_reads(tmp_path: Path) -> None:
    config = next(each for each in objects(installation()) if each["kind"] == "ConfigMap")
    for name, text in config["data"].items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    read = RouterConfig.load(tmp_path / "router.yaml")
    assert read.cluster() == SPEC
    assert read.discovery.kind == "kubernetes"


def test_the_demo_counts_tokens_as_its_mock_engines_do(tmp_path: Path) -> None:
    made = render(DEPLOY / "overlays" / "demo")
    config = next(each for each in made if each["kind"] == "ConfigMap")
    for name, text in config["data"].items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert RouterConfig.load(tmp_path / "router.yaml").tokenizer.kind == "words"


def test_another_config_starts_another_router() -> None:
    def digest(spec: ClusterSpec) -> str:
        template = router_deployment(Installation(spec, "llm"))["spec"]["template"]
        return str(template["metadata"]["annotations"]["hrl-planner.io/config"])

    changed = SPEC.model_copy(update={"kv_block_tokens": 32})
    assert digest(SPEC) == digest(SPEC) != digest(changed)


def test_names_that_kubernetes_does_not_take_are_refused_with_the_field() -> None:
    wrong = SPEC.model_copy(update={"name": "My_Cluster"})
    with pytest.raises(ManifestError, match="name: 'My_Cluster'"):
        Installation(wrong, "llm")
    with pytest.raises(ManifestError, match="no pool is named 'nobody'"):
        installation(targets={"nobody": ScaleTargetRef(kind="Deployment", name="x")})


@pytest.mark.parametrize("namespace", ["", "Bad Name", "-a", "a-", "a.b", "ü", "a" * 64])
def test_a_namespace_that_cannot_be_is_refused(namespace: str) -> None:
    with pytest.raises(ManifestError, match=f"namespace: {namespace!r}"):
        Installation(SPEC, namespace)


@pytest.mark.parametrize("namespace", ["llm", "1", "9-lives", "a" * 63])
def test_a_namespace_is_a_label_of_dns(namespace: str) -> None:
    assert Installation(SPEC, namespace).namespace == namespace


@pytest.mark.parametrize("option", ["--image", "--router-image"])
@pytest.mark.parametrize("image", ["", "two words"])
def test_an_image_without_a_name_is_refused(tmp_path: Path, option: str, image: str) -> None:
    from hrl_planner.cli import app

    done = CliRunner().invoke(app, ["manifests", "small", "--out", str(tmp_path), option, image])
    assert done.exit_code == 2
    assert f"{option.removeprefix('--')}: {image!r} names no image" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("as_dgd", [[], ["--as-dgd"]])
def test_the_checkpoint_it_is_told_decides_for_the_group(tmp_path: Path, as_dgd: list[str]) -> None:
    from hrl_planner.cli import app

    for checkpoint in ("reference", "/checkpoints/mine"):
        words = ["manifests", "small", "--out", str(tmp_path), "--checkpoint", checkpoint]
        assert CliRunner().invoke(app, words + as_dgd).exit_code == 0
        file = "dgd.yaml" if as_dgd else "base/group.yaml"
        made = yaml.safe_load_all((tmp_path / file).read_text())
        group = next(each for each in made if each["kind"] == "ServingGroup")
        assert group["spec"]["policy"]["checkpoint"] == checkpoint


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("out/train/mine", "checkpoint: 'out/train/mine' is no absolute path"),
        ("nobody", "no checkpoint ships for spec 'nobody'"),
        ("", "no checkpoint ships for spec ''"),
    ],
)
def test_a_checkpoint_that_pods_could_not_find_is_refused(
    tmp_path: Path, checkpoint: str, message: str
) -> None:
    from hrl_planner.cli import app

    words = ["manifests", "small", "--out", str(tmp_path), "--checkpoint", checkpoint]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and message in done.output.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_a_graph_leaves_no_choice_of_targets(tmp_path: Path) -> None:
    from hrl_planner.cli import app

    target = "prefill-h100=apps/v1/Deployment/x"
    words = ["manifests", "small", "--out", str(tmp_path), "--as-dgd", "--target", target]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert f"--target: {target!r} cannot be with --as-dgd" in done.output
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_tree_with_the_images_and_targets_it_is_told(
    tmp_path: Path,
) -> None:
    from hrl_planner.cli import app

    arguments = ["manifests", "small", "--out", str(tmp_path), "--namespace", "llm"]
    arguments += ["--image", "registry/planner:1", "--router-image", "registry/router:1"]
    arguments += ["--target", "decode-h100=apps/v1/StatefulSet/engines"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    text = (tmp_path / "base" / "planners.yaml").read_text()
    assert json.dumps(list(yaml.safe_load_all(text))).count("registry/planner:1") == 5
    pools = yaml.safe_load_all((tmp_path / "base" / "pools.yaml").read_text())
    kinds = [pool["spec"]["scaleTargetRef"]["kind"] for pool in pools]
    assert kinds.count("StatefulSet") == 1
    wrong = CliRunner().invoke(app, [*arguments, "--target", "decode-h100"])
    assert wrong.exit_code == 2
