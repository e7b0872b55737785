"""`index.html`: one page for a run, with nothing outside of it but links to the products.

In: the entries of its images (`page/<stem>.json`), and what failed. Out: a file that works from a
disk, offline: pictures are inside as WebP, and a policy in it forbids the browser any request.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from geopose.files.atomic import atomic_path
from geopose.products.entry import PICTURE_PX, colour_stops, read_entry, shrink

INDEX = "index.html"
_MOST_BYTES = 48 * 2**20  # of pictures; with more images they become smaller
_SMALLEST_PX = 160
_SOURCES = {"model": "model", "rpc": "RPCs", "sensor": "sensor's angles"}
_DASH = "\N{EN DASH}"


def write_page(
    entries: Sequence[Path],
    path: Path,
    failed: Mapping[str, str] | None = None,
    title: str = "Heights above ground",
) -> None:
    """Writes the page of a run.

    Args:
        entries: the images' `page/<stem>.json`, in the order of the page.
        path: the .html file, in the folder of the products.
        failed: images that have no products, and why.
        title: of the page.

    Raises:
        InputError: an entry is missing or broken.
        RunError: the page cannot be written.
    """
    total = sum(entry.stat().st_size for entry in entries if entry.exists())
    # Bytes go with the area: halving the sides leaves a quarter.
    share = min(1.0, math.sqrt(_MOST_BYTES / total)) if total else 1.0
    longest = max(int(PICTURE_PX * share), _SMALLEST_PX)
    images = [read_entry(entry) for entry in entries]
    cards = "\n".join(_card(number, image, longest) for number, image in enumerate(images))
    web = files("geopose.products") / "web"
    parts = {name: (web / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    text = Template((web / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=Template(parts["css"]).substitute(stops=", ".join(colour_stops())),
        script=parts["js"],
        lead=_lead(images),
        numbers=_numbers(images, failed or {}),
        warnings=_warnings(images, failed or {}),
        single=" single" if len(images) == 1 else "",
        cards=cards,
        rows="\n".join(_row(number, image) for number, image in enumerate(images)),
        footer=_footer(images),
    )
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _lead(images: list[dict[str, Any]]) -> str:
    models = _distinct(images, "model")
    if not models:
        return "Predicted from one view each: drag the slider to put leaning buildings upright."
    return (
        f"Predicted from one view each by {escape(', '.join(models))}. Drag the slider to put "
        "leaning buildings upright."
    )


def _distinct(images: list[dict[str, Any]], fact: str) -> list[str]:
    values = (str(image["provenance"].get(fact, "")) for image in images)
    return [value for value in dict.fromkeys(values) if value]


def _numbers(images: list[dict[str, Any]], failed: Mapping[str, str]) -> str:
    area = sum(image["size"][0] * image["size"][1] * image["gsd_m"] ** 2 for image in images)
    highest = [h for image in images if (h := image["heights"]["highest_m"]) is not None]
    found = {"images" if len(images) != 1 else "image": str(len(images))}
    if area:
        found["km\N{SUPERSCRIPT TWO} in all images"] = f"{area / 1e6:.3g}"
    if highest:
        found["m, highest surface"] = f"{max(highest):.1f}"
    found["warnings"] = str(sum(len(image["warnings"]) for image in images))
    if failed:
        found["failed"] = str(len(failed))
    return "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in found.items())


def _warnings(images: list[dict[str, Any]], failed: Mapping[str, str]) -> str:
    lines = [f"{escape(name)}: not predicted: {escape(why)}" for name, why in failed.items()]
    for image in images:
        name = image["stem"]
        for text in image["warnings"]:
            said = text if image["source"] in text else f"{name}: {text}"
            lines.append(escape(said))
    if not lines:
        return ""
    points = "".join(f"<li>{line}</li>" for line in lines)
    count = f"{len(lines)} warning{'s' if len(lines) > 1 else ''}"
    return f'<details class="warnings" open><summary>{count}</summary><ul>{points}</ul></details>'


def _card(number: int, image: dict[str, Any], longest: int) -> str:
    stem = escape(image["stem"])
    width, height = image["size"]
    pictures = {k: shrink(v, longest) for k, v in image["pictures"].items()}

    def picture(kind: str, alt: str, classes: str) -> str:
        return (
            f'<img class="{classes}" alt="{alt}" width="{width}" height="{height}" '
            f'decoding="async" src="data:image/webp;base64,{pictures[kind]}">'
        )

    top_m = image["top_m"]
    return f"""<article class="card" id="image-{number}">
<div class="stage">
{picture("image", f"{stem} as seen", "base")}
{picture("rectified", f"{stem} rectified", "over rectified")}
{picture("heights", f"heights of {stem}", "over heights")}
<input type="range" min="0" max="100" step="0.5" value="50" aria-label="{stem}: how much as seen">
<span class="bar"><i></i><i></i></span>
<span class="tag left">as seen</span><span class="tag right">rectified</span>
</div>
<div class="text">
<div class="title"><h3>{stem}</h3>
<div class="switch" role="group" aria-label="right of the slider">\
<button type="button" data-show="rectified" aria-pressed="true">rectified</button>\
<button type="button" data-show="heights" aria-pressed="false">heights</button></div></div>
<p class="legend"><span>0</span><span></span><span>{top_m:.0f} m above ground</span></p>
<dl class="facts">{_facts(image)}</dl>
{_details(image)}
</div>
</article>"""


def _facts(image: dict[str, Any]) -> str:
    heights, flow, shares = image["heights"], image["flow"], image["shares"]
    tall = "no data"
    if heights["highest_m"] is not None:
        tall = (
            f"median {heights['median_m']:.1f} m, 99 % below {heights['high_m']:.1f} m, highest "
            f"{heights['highest_m']:.1f} m"
        )
    found = {
        "heights": tall,
        "flow": f"{_arrow(flow['used'])}{_vector(flow['used'])}, by the "
        f"{_SOURCES.get(flow['source'], escape(str(flow['source'])))}",
    }
    if shares is not None:
        seen, hidden, unknown = (f"{100 * share:.1f} %" for share in shares)
        found["ground"] = f"{seen} seen, {hidden} hidden, {unknown} unknown"
    width, height = image["size"]
    found["image"] = f"{width} \N{MULTIPLICATION SIGN} {height} px of {image['gsd_m']:.3g} m"
    return "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in found.items())


def _details(image: dict[str, Any]) -> str:
    links = "".join(
        f'<li><a href="{escape(quote(name))}">{escape(name)}</a></li>' for name in image["files"]
    )
    facts = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>"
        for key, value in {"source": image["source"], **image["provenance"]}.items()
    )
    return (
        f"<details><summary>files ({len(image['files'])})</summary><ul>{links}</ul></details>"
        f'<details><summary>made by</summary><dl class="facts">{facts}</dl></details>'
    )


def _row(number: int, image: dict[str, Any]) -> str:
    heights, flow = image["heights"], image["flow"]
    apart, warned = _DASH, ""
    if flow["disagreement"] is not None:
        scale, angle = flow["disagreement"]
        apart = f"{scale:.2f}, {math.degrees(angle):.0f}\N{DEGREE SIGN}"
        warned = ' class="warned"' if image["warnings"] else ""
    cells = [
        f'<a href="#image-{number}">{escape(image["stem"])}</a>',
        f"{image['size'][0]} \N{MULTIPLICATION SIGN} {image['size'][1]}",
        f"{image['gsd_m']:.3g}",
        *(_number(heights[key]) for key in ("median_m", "high_m", "highest_m")),
        *(_vector(flow[key]) for key in ("used", "model", "sensor")),
    ]
    shares = image["shares"] or (None, None, None)
    cells_after = [_number(None if share is None else 100 * share) for share in shares]
    before = "".join(f"<td>{cell}</td>" for cell in cells)
    after = "".join(f"<td>{cell}</td>" for cell in cells_after)
    return f"<tr>{before}<td{warned}>{apart}</td>{after}</tr>"


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.1f}"


def _vector(flow: Sequence[float] | None) -> str:
    if flow is None:
        return _DASH
    return f"{flow[0]:.2f}, {math.degrees(flow[1]):.0f}\N{DEGREE SIGN}"


def _arrow(flow: Sequence[float]) -> str:
    """An arrow that points as the flow does: down the image at 0 degrees, to the right at 90."""
    turn = -math.degrees(flow[1])
    return (
        f'<svg class="flow" viewBox="-10 -10 20 20" aria-hidden="true"><path '
        f'transform="rotate({turn:.1f})" d="M0 -8V8M-4 3.5L0 8L4 3.5"/></svg>'
    )


def _footer(images: list[dict[str, Any]]) -> str:
    versions = _distinct(images, "version")
    made = f"geopose {', '.join(versions)}" if versions else "geopose"
    return (
        f"Made by {escape(made)}. Heights and flow are predictions of a network from one image: "
        "look at them before you rely on them."
    )
