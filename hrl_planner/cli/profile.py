"""`hrl-planner profile`: look at latency surfaces, bring in foreign ones, make new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Latency profiles of workers: list, show, import, build.",
    rich_markup_mode="rich",
)


def _names(incomplete: str) -> list[str]:
    """Complete names of shipped profiles; by file name alone, as completion must be quick."""
    places = (Path(__file__).parents[1] / "profiles").glob(f"{incomplete}*.npz")
    return sorted(place.stem for place in places)


@app.command("list")
def list_profiles() -> None:
    """List the profiles that come with the package.

    Step times are of one 2k-token prompt, and of decoding 32 requests at 2k context. Where there
    are no KV tokens the weights do not fit.
    """
    from rich.console import Console
    from rich.table import Table

    from hrl_planner.profile import WorkerProfile, shipped_profiles

    table = Table(box=None, header_style="bold")
    table.add_column("profile", no_wrap=True)
    table.add_column("GPUs", no_wrap=True)
    for column in ("prefill ms", "decode ms", "KV tokens"):
        table.add_column(column, justify="right")
    for name in shipped_profiles():
        profile = WorkerProfile.load(name)
        table.add_row(
            name,
            f"{profile.tp} x {profile.system}",
            f"{profile.prefill_step_ms(1, 2048):.0f}",
            f"{profile.decode_step_ms(32, 2048):.1f}",
            f"{profile.kv_capacity_tokens:,}" if profile.fits else "[red]none[/red]",
        )
    Console().print(table)


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of a shipped profile, or path of an .npz file.", autocompletion=_names
        ),
    ],
    plot: Annotated[
        Path | None,
        typer.Option(help="Also write a plot: .html (interactive) or .png.", dir_okay=False),
    ] = None,
) -> None:
    """Show the latency surfaces of a profile: tables here, a plot in a file.

    [bold]Examples[/bold]

      hrl-planner profile show qwen3_32b__l40s__tp2__vllm

      hrl-planner profile show my_gpu.npz --plot my_gpu.html
    """
    from hrl_planner.cli.profile_view import print_profile, write_plot
    from hrl_planner.profile import WorkerProfile

    profile = WorkerProfile.load(name)
    print_profile(profile)
    if plot is not None:
        write_plot(profile, plot)
        typer.echo(f"wrote {plot}")


@app.command("import")
def import_profile(
    directory: Annotated[Path, typer.Argument(help="Result directory of Dynamo's profiler.")],
    out: Annotated[Path, typer.Option(help="The .npz file to write.", dir_okay=False)],
    model: Annotated[str, typer.Option(help="Model id, as the spec's `model` names it.")],
    system: Annotated[str, typer.Option(help="Accelerator, for people: h200_sxm.")] = "unknown",
    tp: Annotated[int, typer.Option(min=1, help="GPUs one worker shards the model over.")] = 1,
    kv_bytes_per_token: Annotated[
        int, typer.Option(min=0, help="KV cache bytes of one token on one GPU; 0: unknown.")
    ] = 0,
    tdp_w: Annotated[float, typer.Option(min=0, help="Power of one GPU, W; 0: unknown.")] = 0.0,
) -> None:
    """Turn the output of Dynamo's profiler into a profile.

    Reads raw_data.npz in selected_prefill_interpolation and selected_decode_interpolation, or their
    JSON twins prefill_raw_data.json and decode_raw_data.json. That format knows prefill times of
    single prompts without a cached prefix; what is assumed for batches and prefixes is printed, and
    written into the profile.

    [bold]Example[/bold]

      hrl-planner profile import results/H200_TP2 --model Qwen/Qwen3-32B --tp 2 --out h200.npz
    """
    from hrl_planner.profile_import import ASSUMPTIONS, import_dynamo

    profile = import_dynamo(
        directory,
        name=out.stem,
        model=model,
        system=system,
        tp=tp,
        kv_bytes_per_token=kv_bytes_per_token,
        tdp_w_per_gpu=tdp_w,
    )
    profile.save(out)
    typer.echo(f"wrote {out}: {profile.kv_capacity_tokens:,} KV tokens")
    for assumption in ASSUMPTIONS:
        typer.echo(f"assumed: {assumption}")
    if not kv_bytes_per_token:
        typer.echo(
            "note: without --kv-bytes-per-token a KV transfer costs its latency only, unless the "
            "spec gives kv_transfer.bytes_per_token"
        )


@app.command()
def build(
    model: Annotated[str, typer.Option(help="Model id on the hub, such as Qwen/Qwen3-32B.")],
    system: Annotated[str, typer.Option(help="System, such as h200_sxm, a100_sxm, l40s.")],
    out: Annotated[Path, typer.Option(help="The .npz file to write.", dir_okay=False)],
    tp: Annotated[int, typer.Option(min=1, help="GPUs one worker shards the model over.")] = 1,
    backend: Annotated[str, typer.Option(help="Engine: vllm, sglang or trtllm.")] = "vllm",
    moe: Annotated[bool, typer.Option("--moe", help="The model is a mixture of experts.")] = False,
) -> None:
    """Make a profile from the performance database of NVIDIA's AISimulate; no GPU needed.

    Needs the package `aisimulate` beside this one; the message says how to get it.

    [bold]Example[/bold]

      hrl-planner profile build --model Qwen/Qwen3-32B --system h200_sxm --tp 2 --out h200.npz
    """
    from hrl_planner.profile_build import build_profile

    profile = build_profile(model, system, tp=tp, backend=backend, moe=moe, name=out.stem)
    profile.save(out)
    fits = f"{profile.kv_capacity_tokens:,} KV tokens" if profile.fits else "weights do not fit"
    typer.echo(f"wrote {out}: {fits}")
