# SPDX-License-Identifier: AGPL-3.0-only
"""What `models optimize` prints."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..engine import inference_threads
from ..models.catalog import TASKS_OF_GROUPS
from ..models.variants import variant_of
from ..settings import Settings
from .measure import OptimizeError
from .optimize import Trial, optimize


def optimize_and_report(settings: Settings, name: str, photos: Sequence[Path]) -> int:
    """Writes int8 variants of a model and prints how good they are. Returns the exit code: 1 if one was not kept."""
    trials: list[Trial] = []
    failure = None
    try:
        trials.extend(optimize(settings, name, photos, inference_threads(settings)))
    except OptimizeError as error:  # still print the trials before it
        failure = error
    table = Table("part", "int8", "ms", "MB", "mean cosine", "worst", "worst on", "", box=None, pad_edge=False)
    for trial in trials:
        table.add_row(
            trial.ref.type,
            trial.way,
            "{:.1f} → {:.1f}".format(*trial.milliseconds),
            "{:.0f} → {:.0f}".format(*trial.megabytes),
            f"{trial.mean:.4f}",
            f"{trial.worst:.4f}",
            trial.worst_on,
            "kept" if trial.kept else "rejected",
        )
    if trials:
        Console(width=None if sys.stdout.isatty() else 140).print(table)
    kept = {trial.ref: trial for trial in trials if trial.kept}
    for ref in dict.fromkeys(trial.ref for trial in trials):
        if ref not in kept:
            print(
                f"{ref}: nothing kept; a variant needs a mean cosine of at least {settings.int8_min_mean} and a worst "
                f"one of at least {settings.int8_min_worst}, otherwise searches and faces would give other results"
            )
        elif kept[ref].milliseconds[1] >= kept[ref].milliseconds[0]:
            folder = variant_of(ref.path(settings.cache_folder)).parent
            print(f"{ref}: not faster on this processor; delete {folder} to use the original")
        else:
            print(f"{ref}: used if INT8_TASKS contains {TASKS_OF_GROUPS[ref.group]}")
    if failure:
        print(f"mt-photos-ml: {failure}", file=sys.stderr)
    return int(failure is not None or any(trial.ref not in kept for trial in trials))
