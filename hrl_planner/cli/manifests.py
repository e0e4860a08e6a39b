"""`hrl-planner manifests`: what an operator applies, as a kustomize tree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from hrl_planner.kube.resources import ScaleTargetRef


def manifests(
    spec: Annotated[str, typer.Argument(help="A .yaml file, or small, reference, large.")],
    out: Annotated[Path, typer.Option(help="Folder of the tree.", file_okay=False)],
    namespace: Annotated[str, typer.Option(help="Of all objects.")] = "hrl-planner",
    image: Annotated[
        str | None, typer.Option(help=r"Of planners. \[default: hrl-planner:VERSION]")
    ] = None,
    router_image: Annotated[
        str | None, typer.Option(help=r"Of the router. \[default: hrl-planner-router:VERSION]")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Trained planner that decides: an absolute path in planners' pods, or the spec "
            r"one ships for. \[default: the policies lp and rule]",
            show_default=False,
        ),
    ] = None,
    layout: Annotated[
        Literal["per-pool", "all-in-one"],
        typer.Option(help="A planner pod per pool, or one for all."),
    ] = "per-pool",
    target: Annotated[
        list[str] | None,
        typer.Option(
            help=r"POOL=GROUP/VERSION/KIND/NAME\[/COMPONENT], may be repeated. "
            r"\[default: the Deployment of the pool's name]",
            show_default=False,
        ),
    ] = None,
    as_dgd: Annotated[
        bool,
        typer.Option(
            "--as-dgd",
            help="Write one file, dgd.yaml: everything as components of a DynamoGraphDeployment.",
        ),
    ] = False,
) -> None:
    """Write the manifests of a cluster: planners, router, accounts, network policies, overlays.

    [bold]Examples[/bold]

      hrl-planner manifests my-cluster.yaml --namespace llm --out my-deploy

      hrl-planner manifests reference --checkpoint reference --out my-deploy

      kubectl apply -k my-deploy/base
    """
    from hrl_planner.errors import ManifestError
    from hrl_planner.manifests import (
        PLANNER_IMAGE,
        ROUTER_IMAGE,
        Installation,
        documents,
        graph_manifests,
        tree,
    )
    from hrl_planner.spec import ClusterSpec

    if as_dgd and target:
        raise ManifestError(
            f"--target: {target[0]!r} cannot be with --as-dgd, whose pools are scaled as "
            "components of its graph"
        )
    made = Installation(
        ClusterSpec.load(spec),
        namespace,
        targets=dict(_target(text) for text in target or ()),
        layout=layout,
        checkpoint=checkpoint,
        planner_image=PLANNER_IMAGE if image is None else image,
        router_image=ROUTER_IMAGE if router_image is None else router_image,
    )
    files = {"dgd.yaml": documents(graph_manifests(made))} if as_dgd else tree(made)
    for name, text in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        typer.echo(f"wrote {path}")


def _target(text: str) -> tuple[str, ScaleTargetRef]:
    from hrl_planner.errors import ManifestError
    from hrl_planner.kube.resources import ScaleTargetRef

    pool, _, reference = text.partition("=")
    parts = reference.split("/")
    if len(parts) not in (4, 5) or not all((pool, *parts)):
        raise ManifestError(f"--target: {text!r} is not POOL=GROUP/VERSION/KIND/NAME[/COMPONENT]")
    group, api_version, kind, name, *component = parts
    target = ScaleTargetRef(
        api_version=f"{group}/{api_version}",
        kind=kind,
        name=name,
        component=component[0] if component else None,
    )
    return pool, target
