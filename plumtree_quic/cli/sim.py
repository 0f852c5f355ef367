"""`plumtree-quic sim`: one scenario on the simulator, its figures, and pictures of it.

What happens is in sim/scenarios.py. Here is only what people and other programs read.
"""

import importlib.util
import json
import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import click
from rich.console import Console
from rich.table import Table

from plumtree_quic.errors import ConfigError
from plumtree_quic.sim.cluster import Cluster
from plumtree_quic.sim.scenarios import SCENARIOS, Figure, Outcome, Run, origin_of, play

__all__ = ["sim"]

PRESETS = ("default", "lan", "wan", "large_cluster")


def _about() -> str:
    return "\b\n" + "\n".join(f"{name:<10} {each.about}" for name, each in SCENARIOS.items())


@click.command(
    epilog=_about(), context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True
)
@click.argument("scenario", type=click.Choice(list(SCENARIOS)), metavar="SCENARIO")
@click.option(
    "--nodes", type=click.IntRange(2, 10_000), help="How many; each scenario has a default."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of everything that is drawn.")
@click.option("--preset", type=click.Choice(PRESETS), default="lan", show_default=True)
@click.option(
    "--rings", type=click.IntRange(5, 32), help="K, the rings of links, instead of the preset's."
)
@click.option(
    "--share",
    type=click.FloatRange(0.01, 0.95),
    default=0.5,
    show_default=True,
    help="Of the nodes, where a scenario hits some of them.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1.0, 86_400.0),
    help="Of virtual time, where a scenario lasts for some (stalls, losses).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, the last line of stdout.")
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Draw the overlay, the tree and curves there (needs plumtree-quic[sim]).",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write down what happens, a line each, with the virtual time.",
)
def sim(
    scenario: str,
    nodes: int | None,
    seed: int,
    preset: str,
    share: float,
    rings: int | None,
    seconds: float | None,
    as_json: bool,
    pictures: Path | None,
    trace: Path | None,
) -> int:
    """Run a scenario in virtual time. Exit status 1 when a rule or a bound was broken.

    The same seed gives the same run. Every rule that holds at any time is checked as it runs.
    """
    if pictures is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--pictures needs matplotlib: pip install 'plumtree-quic[sim]'")
    chosen = SCENARIOS[scenario]
    errors = Console(stderr=True, highlight=False)
    began = time.monotonic()

    def say(text: str) -> None:
        errors.print(f"[dim]{time.monotonic() - began:7.1f} s[/]  {text}")

    run = Run(
        nodes=nodes if nodes is not None else chosen.nodes,
        seed=seed,
        preset=preset,
        share=share,
        rings=rings,
        seconds=seconds,
        say=say,
    )
    if trace is None:
        outcome = play(chosen, run)
    else:
        try:
            lines = trace.open("w", encoding="ascii")
        except OSError as error:
            raise ConfigError(f"--trace {trace} cannot be written: {error.strerror}")
        with lines:
            run.on_cluster = _follow(lines)
            outcome = play(chosen, run)
    elapsed_s = time.monotonic() - began
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if run.cluster is None and (pictures is not None or trace is not None):
        say(f"{scenario} makes its clusters by itself: no trace, and no picture of one")
    if pictures is not None:
        from plumtree_quic.sim.pictures import draw

        for path in draw(pictures, run.cluster, origin_of(run), outcome):
            say(f"wrote {path}")
    if as_json:
        click.echo(json.dumps(_summary(scenario, run, outcome, elapsed_s, rss_mb)))
    else:
        _show(Console(highlight=False), scenario, run, outcome, elapsed_s, rss_mb)
    return 0 if outcome.holds else 1


def _follow(lines: IO[str]) -> Callable[[Cluster], None]:
    def on_cluster(cluster: Cluster) -> None:
        cluster.journal.tell = lambda line: print(line, file=lines)

    return on_cluster


def _summary(
    scenario: str, run: Run, outcome: Outcome, seconds: float, rss_mb: float
) -> dict[str, object]:
    cluster = run.cluster
    return {
        "scenario": scenario,
        "nodes": run.nodes,
        "seed": run.seed,
        "preset": run.preset,
        "holds": outcome.holds,
        "violation": outcome.violation,
        "figures": {
            each.name: each.value if math.isfinite(each.value) else None for each in outcome.figures
        },
        "virtual_s": round(cluster.time.now - cluster.began, 3) if cluster is not None else 0.0,
        "elapsed_s": round(seconds, 3),
        "rss_mb": round(rss_mb, 1),
        "trace": cluster.journal.trace() if cluster is not None else "",
    }


def _show(
    console: Console, scenario: str, run: Run, outcome: Outcome, seconds: float, rss_mb: float
) -> None:
    table = Table(title=f"{scenario}: {run.nodes} nodes, seed {run.seed}, preset {run.preset}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("bound", justify="right")
    for each in outcome.figures:
        mark = "" if each.bound is None else _bound(each)
        table.add_row(each.name, f"{_number(each.value)} {each.unit}".rstrip(), mark)
    console.print(table)
    cluster = run.cluster
    if cluster is not None:
        virtual_s = cluster.time.now - cluster.began
        console.print(
            f"{virtual_s:.0f} s of virtual time in {seconds:.0f} s, {rss_mb:.0f} MiB, "
            f"trace {cluster.journal.trace()}"
        )
    if outcome.violation:
        console.print(f"broken rule: {outcome.violation}", markup=False)
    options = f"--nodes {run.nodes} --seed {run.seed} --preset {run.preset} --share {run.share:g}"
    if run.rings is not None:
        options += f" --rings {run.rings}"
    if run.seconds is not None:
        options += f" --seconds {run.seconds:g}"
    console.print(f"again: plumtree-quic sim {scenario} {options}")


def _bound(figure: Figure) -> str:
    sign = "\u2265" if figure.at_least else "\u2264"
    verdict = "" if figure.holds else "  MISSED"
    return f"{sign} {_number(figure.bound or 0.0)}{verdict}"


def _number(value: float) -> str:
    if value == math.inf:
        return "never"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
