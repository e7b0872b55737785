"""The rows of benchmarks/recipes.py: a CSV file that is only added to, and a table in Markdown."""

import csv
import statistics
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from geopose.errors import InputError

KEYS = ("model", "recipe", "settings", "data", "budget", "tta", "seed", "split")
FIGURES = ("score", "agl_r2", "flow_r2", "angle_deg", "scale_px_per_m", "agl_m")
COLUMNS = (
    *("model", "recipe", "seed", "held_out", "split", "updates", "batch", "seconds"),
    *FIGURES,
    *("images", "budget", "tta", "settings", "data"),
)
SPEED_COLUMNS = ("model", "recipe", "settings", "round", "batch", "seconds_an_update")
_HEADS = ("score", "AGL R²", "flow R²", "angle, degrees", "scale, px/m", "AGL, m")
_LOCK = threading.Lock()

Row = Mapping[str, str]


def read_rows(path: Path) -> list[dict[str, str]]:
    """All rows; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def key_of(row: Mapping[str, object]) -> tuple[str, ...]:
    """What tells a row from another."""
    return tuple(str(row[name]) for name in KEYS)


def append(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Adds rows at once, with the header where the file is new.

    Raises:
        InputError: the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK, path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        header = next(csv.reader(file), None)
        if header is not None and tuple(header) != tuple(columns):
            raise InputError(f"{path}: has other columns than {', '.join(columns)}; give another")
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if header is None:
            writer.writeheader()
        for row in rows:
            writer.writerow({name: _text(row[name]) for name in columns})


def _text(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value


def table(rows: Sequence[Row], recipes: Sequence[str]) -> str:
    """Markdown: for each split, recipes in their order against the first one."""
    splits = list(dict.fromkeys(row["split"] for row in rows))
    return "\n\n".join(
        _split_table(split, [row for row in rows if row["split"] == split], recipes)
        for split in splits
    )


def _split_table(split: str, rows: Sequence[Row], recipes: Sequence[str]) -> str:
    by_recipe = {
        name: {row["seed"]: row for row in rows if row["recipe"] == name} for name in recipes
    }
    first = by_recipe[recipes[0]]
    heads = ("recipe", "seeds", "score", f"- {recipes[0]}, same seeds", "apart", *_HEADS[1:])
    lines = [f"**{split[0].upper()}{split[1:]}**", ""]
    lines.append("| " + " | ".join((*heads, "updates")) + " |")
    lines.append("|---" * (len(heads) + 1) + "|")
    for name, own in by_recipe.items():
        if not own:
            continue
        figures = [_spread([float(row[what]) for row in own.values()]) for what in FIGURES]
        updates = statistics.mean(float(row["updates"]) for row in own.values())
        cells = [name, str(len(own)), figures[0], *_compared(first, own), *figures[1:]]
        lines.append("| " + " | ".join([*cells, f"{updates:.0f}"]) + " |")
    return "\n".join(lines)


def _compared(first: Mapping[str, Row], own: Mapping[str, Row]) -> tuple[str, str]:
    """The difference of the scores, and whether mean +- deviation of both lie apart."""
    seeds = [seed for seed in own if seed in first]
    if first is own or not seeds:
        return "", ""
    theirs = [float(first[seed]["score"]) for seed in seeds]
    ours = [float(own[seed]["score"]) for seed in seeds]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(seeds) == 1:
        return f"{differences[0]:+.3f}", "one seed"
    gap = abs(statistics.mean(ours) - statistics.mean(theirs))
    apart = gap > statistics.stdev(ours) + statistics.stdev(theirs)
    text = f"{statistics.mean(differences):+.3f} ± {statistics.stdev(differences):.3f}"
    return text, "yes" if apart else "no"


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"
