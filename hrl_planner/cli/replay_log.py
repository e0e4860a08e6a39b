"""`hrl-planner replay-log`: what planners decided and why, and whether they would again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hrl_planner.control.replay import Instead


def replay_log(
    logs: Annotated[
        list[str],
        typer.Argument(metavar="LOG", help="Files of decisions; - for standard input."),
    ],
    policy: Annotated[
        str | None,
        typer.Option(help="Ask this one instead: an allocator, or allocator+scaler."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Ask this trained planner instead: a folder, or the spec one ships for."),
    ] = None,
    pool: Annotated[
        list[str] | None, typer.Option(help="Show this pool only; may be repeated.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Show what came after: 2026-05-01T12:00Z, or 30m: before the end."),
    ] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Show so many decisions.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="An object per decision, a line each.")
    ] = False,
) -> None:
    """Explain the decisions of a log, and make them again.

    Every decision is shown to the policy it came from, in order. Exit status 1: one came out
    otherwise, or could not be made. With another policy: what it would have decided on what was
    seen; what would have come of it, only a simulation can tell.

    [bold]Examples[/bold]

      hrl-planner replay-log planner.log --last 3

      kubectl logs deploy/planner | hrl-planner replay-log - --pool decode-h200 --since 30m

      hrl-planner replay-log planner.log* --policy lp:headroom=0.2
    """
    from hrl_planner.cli._decision_tables import Selection, Tally, as_json_line, print_table
    from hrl_planner.control.log_reader import DecisionLogs
    from hrl_planner.control.replay import Replayer

    read, tally = DecisionLogs(logs), Tally()
    selection = Selection.of(pool or (), since, last)
    steps = Replayer(_instead(policy, checkpoint)).steps(read)
    shown = selection.of_steps(tally.counting(steps))
    if as_json:
        for step in shown:
            typer.echo(as_json_line(step))
    else:
        print_table(shown, selection.pools)
    for flaw in read.flaws:
        typer.secho(f"unreadable: {flaw}", err=True)
    tally.require_decisions(logs)
    typer.secho(tally.in_words(read.foreign), err=True)
    if tally.first is not None:
        typer.secho(f"not reproduced: {tally.first}", err=True, fg="red")
        raise typer.Exit(1)


def _instead(policy: str | None, checkpoint: str | None) -> Instead:
    """Read who is to be asked, and refuse who does not exist before anybody is asked."""
    from hrl_planner.control.decision import Choice, new_policy
    from hrl_planner.control.replay import Instead
    from hrl_planner.errors import DecisionLogError

    if policy is not None and checkpoint is not None:
        raise DecisionLogError("--policy and --checkpoint: only one of the two can decide instead")
    if policy is None:
        instead = Instead(checkpoint=checkpoint)
    else:
        allocator, _, scaler = policy.partition("+")
        instead = Instead(allocator, scaler or None)
    for logged in (Choice("allocator", "lp"), Choice("scaler", "rule")):
        new_policy(instead.choice(logged))
    return instead
