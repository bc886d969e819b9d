"""The dashboard at a glance: its main pages, in both themes, on a desk and on a phone.

    python -m tests.browser.contact_sheet [--all FOLDER] [--output docs/dashboard.png]

Starts the server of the browser tests. `--all` also writes every page at full size into a folder.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.chromium import ARGUMENTS, signed_in
from tests.browser.every_page import PAGES
from tests.browser.world import World, world

#: Viewports, CSS pixels.
SIZES: Mapping[str, tuple[int, int]] = {"desk": (1280, 860), "phone": (390, 860)}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
#: What the sheet shows, in this order, and the part of the page that a picture begins with.
MAIN = {
    "jobs": "",
    "job": "#charts-reward",
    "rollouts": "",
    "rollout": "#turns-title",
    "side by side": "",
    "evaluation": "",
}
#: Of a screenshot's size.
SCALE = 0.42
GAP, TITLE = 16, 28
PAPER, INK = "#e9e9e4", "#1a1d21"
MOST_BYTES = 500_000


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture of one page."""

    page: str
    size: str
    theme: str
    image: Image.Image


def main() -> None:
    """Take the pictures and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", type=Path, default=None, help="folder for every page, full size")
    parser.add_argument("--output", type=Path, default=Path("docs/dashboard.png"))
    wanted = parser.parse_args()
    path = shutil.which("chromium")
    if path is None:
        raise SystemExit("chromium is not installed")
    with (
        tempfile.TemporaryDirectory() as folder,
        world(Path(folder)) as made,
        sync_playwright() as playwright,
    ):
        chromium = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS])
        shots = list(_shots(made, chromium, list(PAGES) if wanted.all else list(MAIN)))
    if wanted.all:
        wanted.all.mkdir(parents=True, exist_ok=True)
        for shot in shots:
            name = f"{shot.page} {shot.size} {shot.theme}.png".replace(" ", "-")
            shot.image.save(wanted.all / name)
    wanted.output.write_bytes(small_png(sheet([shot for shot in shots if shot.page in MAIN])))


def _shots(world: World, chromium: Browser, pages: list[str]) -> Iterator[Shot]:
    state = signed_in(chromium, world.url, world.admin_key)
    for size, theme in product(SIZES, THEMES):
        width, height = SIZES[size]
        context = chromium.new_context(
            base_url=world.url,
            storage_state=state,
            viewport={"width": width, "height": height},
            color_scheme=theme,
            reduced_motion="reduce",
        )
        page = context.new_page()
        for name in pages:
            yield Shot(name, size, theme, _shot(page, PAGES[name](world) + MAIN.get(name, "")))
        context.close()


def _shot(page: Page, address: str) -> Image.Image:
    page.goto(address)
    page.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)))")
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def sheet(shots: list[Shot]) -> Image.Image:
    """A row per page: the desk in both themes, then the phone."""
    columns = list(product(SIZES, THEMES))
    widths = [round(SIZES[size][0] * SCALE) for size, _ in columns]
    height = round(max(size[1] for size in SIZES.values()) * SCALE)
    names = list(dict.fromkeys(shot.page for shot in shots))
    whole = (sum(widths) + GAP * (len(columns) + 1), (height + TITLE + GAP) * len(names) + GAP)
    picture = Image.new("RGB", whole, PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for shot in shots:
        column, row = columns.index((shot.size, shot.theme)), names.index(shot.page)
        x = GAP + sum(width + GAP for width in widths[:column])
        y = GAP + row * (height + TITLE + GAP)
        small = shot.image.resize((widths[column], height), Image.Resampling.LANCZOS)
        picture.paste(small, (x, y + TITLE))
        if column == 0:
            draw.text((x, y + 4), shot.page[0].upper() + shot.page[1:], fill=INK, font=font)
    return picture


def small_png(picture: Image.Image, most: int = MOST_BYTES) -> bytes:
    """As many colours as fit into so many bytes. Raises `ValueError` where even eight do not."""
    for colours in (256, 128, 64, 32, 16, 8):
        file = io.BytesIO()
        # By coverage, so that colours that are rare, as a curve's, are kept; then moved to where
        # most of the picture is, so that paper stays paper.
        few = picture.quantize(
            colours, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
        )
        few.save(file, format="PNG", optimize=True)
        if file.tell() <= most:
            return file.getvalue()
    raise ValueError(f"more than {most} bytes with eight colours: make SCALE smaller")


if __name__ == "__main__":
    main()
