"""Nuclei drawn as outlines: Aperio's XML (ImageScope) and QuPath's GeoJSON, rasterised into label maps.

A pixel belongs to a nucleus where its centre lies inside the outline. The two formats count differently. QuPath's
pixel (column c, row r) is the square from (c, r) to (c + 1, r + 1), so its centre is at (c + .5, r + .5). For Aperio's
XML the makers of MoNuSAC rasterise with `skimage.draw.polygon`, to which the centre of a pixel is (c, r); so do we.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from skimage.draw import polygon

from dataloader.images import read_bytes
from dataloader.instances import Piece, paint
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import Annotation, BoolArray

OUTLINE_SUFFIXES = (".geojson", ".xml")
Ring = list[tuple[float, float]]
_FEWEST = 3  # points of an outline


class Outline(NamedTuple):
    """One nucleus. parts: polygons, each its outer ring and then its holes, in px where a pixel's centre is (c, r)."""

    parts: list[list[Ring]]
    name: str  # of its class, '' if it has none


class Outlines(NamedTuple):
    """What a file holds. notes: what was left out of it, in words."""

    nuclei: list[Outline]
    notes: tuple[str, ...] = ()


def read_outlines(
    path: Path, shape: tuple[int, int], type_names: Sequence[str] = (), left_out: Sequence[str] = ()
) -> Annotation:
    """The outlines of a file as a label map: instance k is the k-th outline, cut at the image's border.

    shape: (H, W) px of the image. type_names: names of the types, background first, upper and lower case alike; the
    type_map is None without them. left_out: names of classes that are not painted. tile_id is the file's stem. Raises
    DatasetError for a file that is not in its format, and for a class that type_names does not know.
    """
    nuclei, notes = _read_xml(path) if path.suffix.lower() == ".xml" else _read_geojson(path)
    unwanted = {name.casefold() for name in left_out}
    kept = [nucleus for nucleus in nuclei if nucleus.name.casefold() not in unwanted]
    if len(kept) < len(nuclei):
        notes = (*notes, f"{len(nuclei) - len(kept)} outlines of {', '.join(left_out)} are left out")
    types = {name.casefold(): k for k, name in enumerate(type_names)}
    if not all(np.isfinite(_points(nucleus)).all() for nucleus in kept):
        raise DatasetError(f"{path} has a point whose place is no finite number: export it again.")
    pieces = [rasterise(nucleus, shape, _type_of(path, nucleus, types)) for nucleus in kept]
    painted = paint(pieces, shape, typed=bool(type_names))
    return Annotation(path.stem, painted.inst_map, painted.type_map, (*notes, *painted.notes))


def rasterise(nucleus: Outline, shape: tuple[int, int], type_id: int = 0) -> Piece | None:
    """The pixels whose centres lie inside the outline and the image of `shape` (H, W) px; None if there are none."""
    points = _points(nucleus)
    lowest = np.floor(points.min(axis=0)).astype(int)
    highest = np.ceil(points.max(axis=0)).astype(int)
    left, top = np.maximum(lowest, 0).tolist()
    right, bottom = np.minimum(highest, (shape[1] - 1, shape[0] - 1)).tolist()
    if right < left or bottom < top:
        return None
    box = (bottom - top + 1, right - left + 1)
    mask = np.zeros(box, bool)
    for outer, *holes in nucleus.parts:
        filled = _filled(outer, (top, left), box)
        for hole in holes:
            filled &= ~_filled(hole, (top, left), box)
        mask |= filled
    return Piece(mask, top, left, type_id) if mask.any() else None


def _points(nucleus: Outline) -> npt.NDArray[np.float64]:
    return np.array([point for part in nucleus.parts for ring in part for point in ring], np.float64)


def _filled(ring: Ring, corner: tuple[int, int], box: tuple[int, int]) -> BoolArray:
    rows_columns = np.array(ring)[:, ::-1] - corner
    mask: BoolArray = np.zeros(box, np.bool_)
    rows, columns = rows_columns.T
    mask[polygon(rows, columns, box)] = True  # type: ignore[no-untyped-call]
    return mask


def _type_of(path: Path, nucleus: Outline, types: Mapping[str, int]) -> int:
    if not types:
        return 0
    if nucleus.name.casefold() not in types:
        raise DatasetError(
            f"{path} has a nucleus of class '{nucleus.name}', which data.type_names does not name "
            f"({', '.join(types)}): add it there, or correct the file."
        )
    return types[nucleus.name.casefold()]


def _read_xml(path: Path) -> Outlines:
    """Annotations/Annotation[/Attributes/Attribute@Name]/Regions/Region/Vertices/Vertex@X,@Y, as ImageScope saves."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        root = fromstring(read_bytes(path))
        if root.tag != "Annotations":
            raise DatasetError(f"{path} begins with <{root.tag}>, not <Annotations>: give Aperio's annotation file.")
        found = [outline for layer in root.iter("Annotation") for outline in _layer(layer)]
    except (ParseError, DefusedXmlException) as error:
        raise DatasetError(f"{path} is damaged or no XML ({error}): copy or export it again.") from error
    except (KeyError, ValueError) as error:
        raise DatasetError(f"{path} has a vertex without numbers as X and Y: export it again.") from error
    return _without_lines(found)


def _layer(layer: Any) -> Iterator[Outline]:
    attribute = layer.find("Attributes/Attribute")
    name = "" if attribute is None else attribute.get("Name", "").strip()
    for region in layer.iter("Region"):
        ring = [(float(vertex.attrib["X"]), float(vertex.attrib["Y"])) for vertex in region.iter("Vertex")]
        yield Outline([[ring]], name)


def _read_geojson(path: Path) -> Outlines:
    try:
        content = json.loads(read_bytes(path))
    except ValueError as error:
        raise DatasetError(f"{path} is damaged or no JSON: export it from QuPath again.") from error
    features = content.get("features", [content]) if isinstance(content, dict) else content
    try:
        found = [_feature(feature) for feature in features]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{path} holds no GeoJSON features: export the objects from QuPath again.") from error
    drawn = _without_lines([outline for outline in found if outline is not None])
    skipped = sum(outline is None for outline in found)
    lines = (f"{skipped} objects are points or lines and are left out",) if skipped else ()
    return Outlines(drawn.nuclei, (*lines, *drawn.notes))


def _feature(feature: Mapping[str, Any]) -> Outline | None:
    """None for what has no area. A cell is read by its nucleus, where QuPath tells it."""
    geometry = feature.get("nucleusGeometry") or feature["geometry"]
    kind, coordinates = geometry["type"], geometry.get("coordinates", [])
    if kind not in ("Polygon", "MultiPolygon"):
        return None
    parts = [coordinates] if kind == "Polygon" else coordinates
    centred = [[[(float(x) - 0.5, float(y) - 0.5) for x, y, *_ in ring] for ring in part] for part in parts]
    named = feature.get("properties") or {}
    return Outline(centred, ((named.get("classification") or {}).get("name") or "").strip())


def _without_lines(found: Sequence[Outline]) -> Outlines:
    """Outlines of fewer than three points left out, and said so."""
    drawn = [outline for outline in found if all(len(ring) >= _FEWEST for part in outline.parts for ring in part)]
    drawn = [outline for outline in drawn if outline.parts and all(outline.parts)]
    skipped = len(found) - len(drawn)
    notes = (f"{skipped} outlines have fewer than {_FEWEST} points and are left out",) if skipped else ()
    return Outlines(drawn, notes)
