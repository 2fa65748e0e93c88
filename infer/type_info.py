"""What nucleus types are called and drawn in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hovernet_cyclic.core.errors import DatasetError

Colour = tuple[int, int, int]

# Where the network tells no types: a green that stands off both stains.
UNTYPED_COLOUR = (0, 255, 0)
# Bright, far from one another, and from pink and purple. Type 0, where a network told no other, is black.
_PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 165, 0), (0, 255, 255), (255, 255, 255))
_EXAMPLE = '{"1": ["neopla", [255, 0, 0]]}'


class NucleusType(NamedTuple):
    """Name and colour (R, G, B), each 0..255, of a type."""

    name: str
    colour: Colour


_BACKGROUND = NucleusType("nolabel", (0, 0, 0))


@dataclass(frozen=True)
class TypeInfo:
    """Names and colours of all types by type_id, background (0) included; empty where the network tells no types."""

    types: Mapping[int, NucleusType] = field(default_factory=dict)

    def name(self, type_id: int) -> str:
        """What a type is called."""
        return self.types[type_id].name

    def colour(self, type_id: int | None) -> Colour:
        """(R, G, B) of a type, and of nuclei without one (None)."""
        return UNTYPED_COLOUR if type_id is None else self.types[type_id].colour


def default_type_info(nr_types: int | None, names: Sequence[str] = ()) -> TypeInfo:
    """Types 0..nr_types-1 in colours of our own. names: by type_id, background first; 'type 3' where it has none."""
    if nr_types is None:
        return TypeInfo()
    given = dict(enumerate(names))
    types = {0: _BACKGROUND._replace(name=given.get(0, _BACKGROUND.name))}
    for type_id in range(1, nr_types):
        types[type_id] = NucleusType(given.get(type_id, f"type {type_id}"), _PALETTE[(type_id - 1) % len(_PALETTE)])
    return TypeInfo(types)


def read_type_info(path: str | Path, nr_types: int) -> TypeInfo:
    """The types of a JSON file as hover_net's type_info.json: {"1": ["neopla", [255, 0, 0]], ...}.

    nr_types: of the network, with background; "0" may be left out, and further types are kept, for hover_net's users
    give one file to networks of several data sets. Raises DatasetError for a file that cannot be used, or that does not
    name a type.
    """
    types = {0: _BACKGROUND, **dict(_entry(path, key, value) for key, value in _read(path).items())}
    missing = sorted(set(range(nr_types)) - set(types))
    if missing:
        raise DatasetError(
            f"{path} does not name type {missing[0]}, and the network tells 0 to {nr_types - 1}: give its own file."
        )
    return TypeInfo(types)


def _read(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))  # editors on Windows put a mark first
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): check --type_info_path.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is no JSON file ({error}): correct it.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} holds no entry a type, such as {_EXAMPLE}: correct it.")
    return content


def _entry(path: str | Path, key: str, value: Any) -> tuple[int, NucleusType]:
    match value:
        case [str() as name, [red, green, blue]] if key.isascii() and key.isdecimal():
            # type() and not isinstance(): true and false are no colours. Control characters would break the table.
            if all(type(part) is int and 0 <= part <= 255 for part in (red, green, blue)) and name.isprintable():
                return int(key), NucleusType(name, (red, green, blue))
    raise DatasetError(f'{path}: its entry "{key}" is not as in {_EXAMPLE}: correct it.')
