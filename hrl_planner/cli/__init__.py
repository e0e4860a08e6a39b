"""The `hrl-planner` command: a thin door to the packages behind it.

Every subcommand lives in a module of its own and imports what it runs inside the command
function, so that `hrl-planner --help` and shell completion load neither numpy nor a compiler. What
goes wrong through the input's fault arrives here as `HrlPlannerError` and leaves as one message and
exit status 2; Ctrl-C leaves with 130; a traceback is a bug of ours.
"""

from __future__ import annotations

import errno
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hrl_planner.cli import (
    checkpoint,
    crds,
    demo_cluster,
    distil,
    evaluate,
    experiment,
    kube_binaries,
    load,
    manifests,
    mock_cluster,
    mock_engine,
    plan,
    profile,
    replay_log,
    router,
    simulate,
    trace,
    train,
    tune,
)
from hrl_planner.errors import HrlPlannerError

# Module that is missing: the extra of this package that brings it.
_EXTRAS = {
    "numba": "sim",
    "gymnasium": "sim",
    "pettingzoo": "sim",
    "pandas": "report",
    "pyarrow": "report",
    "plotly": "report",
    "jinja2": "report",
    "matplotlib": "report",
    "statsmodels": "forecast",
    "torch": "train",
    "stable_baselines3": "train",
    "cma": "train",
    "tensorboard": "train",
    "optuna": "train",
    "ray": "ray",
    "kubernetes": "planner",
    "envoy": "router",
    "grpc": "router",
    "dynamo": "router",
    "tokenizers": "router",
    "aiohttp": "router",
    "zmq": "router",
    "msgspec": "router",
    "prometheus_client": "router",
    "pythonjsonlogger": "router",
    "uvloop": "router",
    "watchfiles": "router",
}


class _Group(TyperGroup):
    """A command group that ends in a message where the user, not the program, went wrong."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HrlPlannerError as error:
            _fail(str(error))
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module not in _EXTRAS:
                raise
            _fail(
                f"this command needs the package {module}, of the extra {_EXTRAS[module]}; in a "
                f"clone: pip install -c constraints.txt -e '.[{_EXTRAS[module]}]'"
            )
        except OSError as error:
            # A closed pipe (`| head`) is no error; the framework ends quietly on it.
            if error.errno == errno.EPIPE or error.filename is None:
                raise
            _fail(f"{error.filename}: {error.strerror}")
        except SystemError as error:
            # Ctrl-C inside a compiled function's C code comes out as this.
            if not _interrupted(error):
                raise
            raise KeyboardInterrupt from error


def _interrupted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


app = typer.Typer(
    name="hrl-planner",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(simulate.simulate)
app.command()(evaluate.evaluate)
app.command()(train.train)
app.command()(tune.tune)
app.command()(distil.distil)
app.command()(mock_engine.mock_engine)
app.command()(mock_cluster.mock_cluster)
app.command()(router.router)
app.command()(demo_cluster.demo_cluster)
app.command()(load.load)
app.command("kube-binaries")(kube_binaries.kube_binaries)
app.command()(crds.crds)
app.command()(manifests.manifests)
app.command()(replay_log.replay_log)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(experiment.app, name="experiment")
app.add_typer(plan.app, name="plan")
app.add_typer(profile.app, name="profile")
app.add_typer(trace.app, name="trace")


def _fail(message: str) -> None:
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(message, err=True)
    raise typer.Exit(2)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(version("hrl-planner"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Plan GPUs over many pools that serve one model: simulate, compare planners, read profiles.

    A [bold]spec[/bold] (YAML; small, reference and large come with the package) describes a
    cluster, [bold]profiles[/bold] (latency surfaces) its workers, and a [bold]trace[/bold] or a
    named [bold]scenario[/bold] its load.

    [bold]Examples[/bold]

      hrl-planner simulate --spec small --scenario cold-start-ramp

      hrl-planner evaluate --spec small --scenario cold-start-ramp --policy lp --out out/ramp

      hrl-planner profile show qwen3_32b__h200_sxm__tp2__vllm

      hrl-planner trace --help

    Completion for your shell: hrl-planner --install-completion
    """


def main() -> None:
    """Entry point of the `hrl-planner` script."""
    app(prog_name="hrl-planner")
