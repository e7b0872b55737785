"""The page of a run: complete, escaped, self-contained, and alive in a browser."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geopose.errors import InputError
from geopose.products import page
from geopose.products.entry import shrink
from geopose.products.page import write_page
from geopose.products.write import write_products
from tests.predicted_images import predicted_town

WANTED = frozenset({"vflow", "page"})
NASTY = '<b onload="alert(1)">&\'"</script>$x'
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), ""
)
# Moves the slider as a user does, switches to heights, and says what came of it.
DRIVER = """<script>
addEventListener("load", () => {
  const said = {};
  const stage = document.querySelector(".stage"), input = stage.querySelector("input");
  const over = stage.querySelector(".over"), bar = stage.querySelector(".bar");
  const at = () => [getComputedStyle(over).clipPath, bar.getBoundingClientRect().left];
  said.before = at();
  input.value = 80;
  input.dispatchEvent(new Event("input", {bubbles: true}));
  said.after = at();
  said.width = stage.getBoundingClientRect().width;
  document.querySelector('[data-show="heights"]').click();
  const shown = name => getComputedStyle(stage.querySelector(name)).display;
  said.displays = [shown(".rectified"), shown(".heights")];
  said.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  said.images = [...document.images].map(image => image.naturalWidth);
  said.requests = performance.getEntriesByType("resource").map(entry => entry.name.slice(0, 5));
  document.body.dataset.said = JSON.stringify(said);
});
</script></body>"""


class _Links(HTMLParser):
    """Every address in a page, and every tag's name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (tag, name) == ("link", "href"):
                self.loaded.append(value or "")
            elif name == "href":
                self.links.append(value or "")


def _run(folder: Path, count: int = 2) -> list[Path]:
    image = predicted_town(folder)
    changed = [
        replace(image, stem=f"town {n}", warnings=("flow of town.tif is doubtful",) * (n == 1))
        for n in range(count)
    ]
    return [write_products(one, folder, WANTED).files["page"] for one in changed]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("run")
    return folder, _run(folder)


def test_the_page_shows_every_image_and_loads_nothing(run: tuple[Path, list[Path]]) -> None:
    folder, entries = run
    write_page(entries, folder / "index.html", {"bad.tif": "broken image"})
    text = (folder / "index.html").read_text(encoding="utf-8")
    found = _Links(text)
    assert found.tags.count("article") == 2
    assert all(address.startswith("data:") for address in found.loaded)
    assert len([a for a in found.loaded if a.startswith("data:image/webp;base64,")]) == 6
    assert "url(" not in text
    assert "@import" not in text
    files = [link for link in found.links if not link.startswith("#")]
    assert files == ["town%200_VFLOW.json", "town%201_VFLOW.json"]
    for said in ("bad.tif: not predicted: broken image", "flow of town.tif is doubtful",
                 "a network", "2 warnings", "0.80, 34\N{DEGREE SIGN}", "0.70, 29\N{DEGREE SIGN}",
                 "0.10, 6\N{DEGREE SIGN}", "geopose 9.9"):  # fmt: skip
        assert said in text, said


def test_what_comes_from_files_is_escaped(tmp_path: Path) -> None:
    image = predicted_town(tmp_path)
    stem = NASTY.replace("/", "")
    bad = replace(
        image, stem=stem, warnings=(NASTY,), facts={"model": NASTY, NASTY: NASTY, "version": NASTY},
        source=tmp_path / stem,
    )  # fmt: skip
    entry = write_products(bad, tmp_path, WANTED).files["page"]
    write_page([entry], tmp_path / "index.html", {NASTY: NASTY}, NASTY)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<b onload" not in text
    assert text.count("</script>") == 1
    assert "b" not in _Links(text).tags
    assert html.escape(NASTY) in text


def test_a_resumed_run_needs_the_entries_only(tmp_path: Path) -> None:
    entries = _run(tmp_path)
    for path in tmp_path.glob("town*"):
        path.unlink()
    write_page(entries, tmp_path / "index.html")
    assert (tmp_path / "index.html").read_text(encoding="utf-8").count("<article") == 2
    entries[1].write_text("{}")
    with pytest.raises(InputError, match=r"town 1.json: not an entry"):
        write_page(entries, tmp_path / "index.html")


def test_a_page_of_many_images_has_smaller_pictures(
    run: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, entries = run
    monkeypatch.setattr(page, "_MOST_BYTES", sum(e.stat().st_size for e in entries) // 4)
    write_page(entries, folder / "small.html")
    assert (folder / "small.html").stat().st_size < sum(e.stat().st_size for e in entries)
    picture = json.loads(entries[0].read_text())["pictures"]["image"]
    small = Image.open(io.BytesIO(base64.b64decode(shrink(picture, 450))))
    assert small.size == (450, 214)
    assert small.mode == "RGBA"
    assert np.asarray(small)[5, 5, 3] == 0  # no data is transparent


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 500], ids=["desktop", "phone"])
def test_in_a_browser(run: tuple[Path, list[Path]], tmp_path: Path, width: int) -> None:
    _, entries = run
    write_page(entries, tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    (tmp_path / "driven.html").write_text(text.replace("</body>", DRIVER), encoding="utf-8")
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
            f"--window-size={width},900", "--dump-dom",
            (tmp_path / "driven.html").as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=180,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    found = re.search(r'data-said="([^"]*)"', done.stdout)
    assert found is not None
    said = json.loads(html.unescape(found[1]))
    assert said["before"][0] == "inset(0px 0px 0px 50%)"
    assert said["after"][0] == "inset(0px 0px 0px 80%)"
    moved = said["after"][1] - said["before"][1]
    assert moved == pytest.approx(0.3 * said["width"], abs=1)
    assert said["displays"] == ["none", "block"]
    assert said["images"] == [701] * 6
    assert set(said["requests"]) <= {"data:"}
    assert said["wide"] <= 0  # nothing sticks out to the right
