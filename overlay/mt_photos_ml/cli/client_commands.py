# SPDX-License-Identifier: AGPL-3.0-only
"""The commands check, ocr, clip and faces: a service, asked from here about photos."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from PIL import Image, ImageDraw, ImageOps
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..int8.measure import SUFFIXES, photos_of
from ..settings import DEFAULT_KEY
from .client import ApiError, Box, Client, read

Found = Sequence[tuple[Sequence[object], Box | None]]
"""Rows of a table, each with where it is in the photo."""

_NUMBERS = 4  # of a vector that are shown


def _options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--json", "as_json", is_flag=True, help="print JSON")(command)
    command = click.option("--key", envvar="API_AUTH_KEY", default=DEFAULT_KEY, help="its key (default: API_AUTH_KEY)")(
        command
    )
    address = click.option("--url", default="http://127.0.0.1:8060", help="address of the service", show_default=True)
    return address(command)


def _photo_options(command: Callable[..., None]) -> Callable[..., None]:
    folder = click.Path(file_okay=False, path_type=Path)
    command = click.option("--draw", type=folder, help="folder for copies with the boxes drawn in")(command)
    photos = click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
    return photos(_options(command))


@click.command()
@_options
def check(url: str, key: str, as_json: bool) -> None:
    """Ask a service what it is and how it is set."""
    try:
        told = Client.at(url, key).check()
    except ApiError as error:
        sys.exit(f"mt-photos-ml: {_words(error)}")
    if as_json:
        print(json.dumps(told, ensure_ascii=False, indent=2))
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, value in told.items():
            table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        Console().print(table)


@click.command()
@_photo_options
def ocr(photos: tuple[Path, ...], url: str, key: str, as_json: bool, draw: Path | None) -> None:
    """Read the text in PHOTOS, photos or folders."""
    client = Client.at(url, key)

    def rows(lines: Any) -> Found:
        return [((line.text, f"{line.score:.2f}"), line.box) for line in lines]

    _each(photos, client.ocr, ("text", "score"), rows, as_json, draw)


@click.command()
@_photo_options
@click.option("--word", "words", multiple=True, help="tell how near the photo is to it; may be given more than once")
def clip(
    photos: tuple[Path, ...], url: str, key: str, as_json: bool, draw: Path | None, words: tuple[str, ...]
) -> None:
    """Make the vectors of PHOTOS, or tell how near they are to words."""
    client = Client.at(url, key)
    try:
        vectors = {word: client.clip_text(word) for word in words}
    except ApiError as error:
        sys.exit(f"mt-photos-ml: {_words(error)}")

    def rows(vector: Any) -> Found:
        if not vectors:
            first = ", ".join(f"{number:.4f}" for number in vector[:_NUMBERS])
            return [((f"{len(vector)} numbers: {first}, …",), None)]
        near = {word: sum(a * b for a, b in zip(vector, other, strict=True)) for word, other in vectors.items()}
        return [((word, f"{near[word]:.3f}"), None) for word in sorted(near, key=near.__getitem__, reverse=True)]

    _each(photos, client.clip, ("word", "similarity") if words else ("vector",), rows, as_json, draw)


@click.command()
@_photo_options
def faces(photos: tuple[Path, ...], url: str, key: str, as_json: bool, draw: Path | None) -> None:
    """Find the faces in PHOTOS, photos or folders."""
    client = Client.at(url, key)

    def rows(found: Any) -> Found:
        return [
            ((i + 1, f"{face.score:.2f}", "{} {} {} {}".format(*face.box)), face.box) for i, face in enumerate(found)
        ]

    _each(photos, client.faces, ("face", "score", "x y width height"), rows, as_json, draw)


def _each(
    photos: Iterable[Path],
    ask: Callable[[bytes], Any],
    head: Sequence[str],
    rows: Callable[[Any], Found],
    as_json: bool,
    draw: Path | None,
) -> None:
    """Asks about every photo, prints what is found, and ends with 1 where something could not be done."""
    paths, failed, told = list(_paths(photos)), 0, dict[str, Any]()
    table = Table("photo", *head, box=None, pad_edge=False)
    with Progress(console=Console(stderr=True), disable=len(paths) < 2) as bar:
        for path in bar.track(paths, description="photos"):
            try:
                answer = ask(read(path))
            except ApiError as error:
                failed += 1
                told[str(path)] = {"error": str(error), "status": error.status}
                table.add_row(str(path), _words(error))
                if error.status in (0, 401, 429):  # all others would fare the same
                    break
                continue
            told[str(path)] = [_plain(item) for item in answer]
            found = rows(answer)
            for i, (cells, _) in enumerate(found or [(("nothing found",), None)]):
                table.add_row(str(path) if i == 0 else "", *map(str, cells))
            if draw and found:
                _draw(path, draw, found)
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    sys.exit(int(failed > 0))


def _paths(photos: Iterable[Path]) -> Iterator[Path]:
    for path in photos:
        yield from sorted(photos_of(path)) if path.is_dir() else [path]


def _plain(item: Any) -> Any:
    return item if isinstance(item, float) else asdict(item)


def _words(error: ApiError) -> str:
    when = f" (again in {error.retry_after} s)" if error.retry_after else ""
    return f"{error}{when}"


def _draw(path: Path, folder: Path, found: Found) -> None:
    """A copy of the photo, as people see it, with a box around all that was found."""
    folder.mkdir(parents=True, exist_ok=True)
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    draw, width = ImageDraw.Draw(image), max(image.width // 300, 2)
    for cells, box in found:
        if box is not None:
            x, y, w, h = box
            draw.rectangle((x, y, x + w, y + h), outline="red", width=width)
            draw.text((x + width, y + width), str(cells[0]) if len(cells) > 2 else "", fill="red", font_size=8 * width)
    suffix = path.suffix if path.suffix.lower() in SUFFIXES[:3] else ".jpg"
    image.save(folder / f"{path.stem}{suffix}")
