"""The documents say what the code does."""

import dataclasses
import inspect
import re
import textwrap
from pathlib import Path

import config
from dataloader.datasets import ccrcc, consep, monusac, pannuke
from hovernet_cyclic.core import settings

ROOT = Path(__file__).parents[1]
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
SETTINGS = [item for _, item in inspect.getmembers(settings, dataclasses.is_dataclass)]


def described(text, heading):
    """name -> default as written, of the table under a heading."""
    section = text.partition(f"### `{heading}`\n")[2].partition("\n### ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", section, flags=re.MULTILINE))


def defaults(cls):
    """name -> default of the code; 'required' where there is none, and the call where it is a dataclass of its own."""
    values = {}
    for item in dataclasses.fields(cls):
        if item.default is not dataclasses.MISSING:
            values[item.name] = item.default
        elif item.default_factory is not dataclasses.MISSING:
            values[item.name] = f"{item.default_factory.__name__}()"
        else:
            values[item.name] = "required"
    return values


def value(written):
    """What a default in the document stands for."""
    try:
        return eval(written, {"__builtins__": {}})
    except NameError:
        return written


def test_every_setting_is_described_with_its_default():
    in_code = {cls.__name__: defaults(cls) for cls in SETTINGS}
    in_document = {name: {key: value(written) for key, written in described(RECIPES, name).items()} for name in in_code}
    assert in_document == in_code, "bring docs/recipes.md in step with hovernet_cyclic/core/settings.py"


def test_a_missing_setting_would_be_seen():
    table = "### `A`\n|---|---|---|\n| `x` | `2e-3` | .. |\n| `y` | required | .. |\n### `B`\n| `z` | `1` | .. |\n"
    assert described(table, "A") == {"x": "2e-3", "y": "required"}


def test_every_recipe_is_listed_and_can_be_built():
    listed = RECIPES.partition("## Writing")[0]
    for name, build in config.RECIPES.items():
        assert f"`{name}`" in listed
        assert settings.TrainRecipe.from_dict(build().to_dict()) == build()


def test_every_reader_and_its_types_are_described():
    datasets = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    for reader in settings.READERS:
        assert f"`{reader}`" in datasets.partition("## What a run may open")[0]
    listed = {eval(found) for found in re.findall(r'\("background"[^)]*\)', datasets)}
    assert listed == {ccrcc.TYPES, consep.MERGED_TYPES, monusac.TYPES_2020, pannuke.TYPES}
    assert all(f"{number} {name}" in datasets.replace("\n", " ") for number, name in enumerate(consep.TYPES) if number)


def test_the_example_of_a_recipe_runs():
    (example,) = re.findall(r"```python\n(.*?)```", RECIPES, flags=re.DOTALL)
    scope = vars(settings).copy()
    exec(textwrap.dedent(example), scope)
    assert scope["custom"]().data.mpp == 0.5
