"""The house rules, read off the source. Each checker is also shown a planted violation, which it must find."""

import ast
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hovernet_cyclic", "models", "dataloader", "infer")
SCRIPTS = ("run_train", "run_infer", "run_eval")
OURS = {*PACKAGES, *SCRIPTS, "config"}

LONGEST_FUNCTION, MEDIAN_FUNCTION, LONGEST_FILE, MOST_PARAMETERS = 70, 12, 400, 7
VAGUE_NAMES = ("utils", "misc", "manager", "handler")
READERS_OF_MASKS = tuple(
    f"hovernet_cyclic/training/{name}.py" for name in ("evaluate", "view", "drawn_tiles", "check_data")
)
MUTATORS = {"add", "append", "clear", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update"}
# Written in two parts, so that this file is not its own violation.
FOREIGN_TEXT = re.compile(
    r"(?<![\w.~])/" + r"(?:work|root)/|pypi" + r"\.org|python" + r"hosted\.org|download\.py" + r"torch\.org"
)
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ".sh", ""}


def tracked_files(root=ROOT):
    """Files under version control; in an unpacked archive, all but hidden folders and what runs leave behind."""
    git = shutil.which("git")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=root, capture_output=True).stdout if git else b""
    names = [name for name in listed.decode().split("\0") if name]
    if not names:
        found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        made = ("demo_out", "logs", "datasets")
        plain = (path for path in found if path.parts[0] not in made)
        names = [str(path) for path in plain if not any(part.startswith(".") for part in path.parent.parts)]
    return [root / name for name in sorted(names) if (root / name).is_file()]


def python_files(root=ROOT, *, product_only=True):
    files = [path for path in tracked_files(root) if path.suffix == ".py"]
    outside = ("tests", "benchmarks") if product_only else ()
    return [path for path in files if path.relative_to(root).parts[0] not in outside]


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(path):
    """(function, whether its first parameter is self or cls) of one file."""
    tree = parse(path)
    methods = {
        item
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any(isinstance(name, ast.Name) and name.id == "staticmethod" for name in item.decorator_list)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, node in methods


def parameters(function, bound):
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args][int(bound) :]
    return [*plain, *arguments.kwonlyargs, *filter(None, [arguments.vararg, arguments.kwarg])]


def length(function):
    return function.end_lineno - function.lineno + 1


def imports(path):
    """Every module that a file imports, at its top or inside functions: 'from a.b import c' gives a.b and a.b.c."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def our_imports(path):
    return {module for module in imports(path) if module.split(".")[0] in OURS or module.startswith(".")}


# --- checkers: paths -> sentences, one a violation --------------------------------------------------------------------


def overlong_functions(paths):
    return [
        f"{path}:{function.lineno}: {function.name} has {length(function)} lines"
        for path in paths
        for function, _ in functions(path)
        if length(function) > LONGEST_FUNCTION
    ]


def overlong_files(paths):
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return [f"{path}: {count} lines" for path, count in counts.items() if count > LONGEST_FILE]


def high_median(paths):
    lengths = [length(function) for path in paths for function, _ in functions(path)]
    median = statistics.median(lengths) if lengths else 0
    return [f"the median function has {median} lines"] if median > MEDIAN_FUNCTION else []


def crowded_functions(paths):
    return [
        f"{path}:{function.lineno}: {function.name} takes {len(parameters(function, bound))} parameters"
        for path in paths
        for function, bound in functions(path)
        if len(parameters(function, bound)) > MOST_PARAMETERS
    ]


def unannotated_functions(paths):
    return [
        f"{path}:{function.lineno}: {function.name} is not fully annotated"
        for path in paths
        for function, bound in functions(path)
        if function.returns is None or any(item.annotation is None for item in parameters(function, bound))
    ]


def vague_names(paths):
    for path in paths:
        if path.stem in VAGUE_NAMES:
            yield f"{path}: a vague name"
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef) and node.name.lower().endswith(VAGUE_NAMES):
                yield f"{path}:{node.lineno}: class {node.name} has a vague name"


def module_names(tree):
    """Names bound at the top of a module."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def changed_names(function):
    """(name, line) of what a function changes in place, or declares global."""
    for node in ast.walk(function):
        changed = None
        if isinstance(node, ast.Global):
            yield from ((name, node.lineno) for name in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            changed = node.func.value
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            changed = node.value
        if isinstance(changed, ast.Name):
            yield changed.id, node.lineno


def local_names(function):
    stored = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {item.arg for item in parameters(function, bound=False)}


def module_state(paths):
    for path in paths:
        at_top = set(module_names(parse(path)))
        for function, _ in functions(path):
            hidden = local_names(function) - {
                name for node in ast.walk(function) if isinstance(node, ast.Global) for name in node.names
            }
            for name, line in changed_names(function):
                if name in at_top - hidden:
                    yield f"{path}:{line}: {function.name} changes the module's {name}"


def wrong_script_imports(root):
    """config -> core.settings alone; only run_train -> config; nothing -> a script."""
    allowed_by_config = "hovernet_cyclic.core.settings"
    for path in python_files(root):
        name = path.relative_to(root).with_suffix("").as_posix()
        for module in sorted(our_imports(path)):
            top = module.split(".")[0]
            if name == "config" and not module.startswith(allowed_by_config):
                yield f"{path}: config imports {module}"
            elif top == "config" and name != "run_train":
                yield f"{path}: imports config, which is run_train's alone"
            elif top in SCRIPTS:
                yield f"{path}: imports the script {module}"


def mask_readers(root):
    for path in python_files(root):
        calls = (node for node in ast.walk(parse(path)) if isinstance(node, ast.Call))
        named = any(isinstance(call.func, ast.Attribute) and call.func.attr == "annotation" for call in calls)
        if named and path.relative_to(root).as_posix() not in READERS_OF_MASKS:
            yield f"{path}: asks for drawn masks"


def foreign_text(paths):
    for path in paths:
        if path.suffix in TEXT_SUFFIXES:
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                if FOREIGN_TEXT.search(line):
                    yield f"{path}:{number}: {line.strip()}"


def broken_contracts(root):
    """What import-linter says against pyproject.toml's contracts, or nothing."""
    pytest.importorskip("importlinter", reason="import-linter is not installed: see requirements-dev.txt")
    command = "from importlinter.cli import lint_imports_command as lint; lint()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"], cwd=root, capture_output=True, text=True
    )
    return [] if done.returncode == 0 else [done.stdout + done.stderr]


# --- the source obeys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "checker",
    [overlong_functions, overlong_files, high_median, crowded_functions, unannotated_functions, module_state],
)
def test_product_code_keeps_the_house_rules(checker):
    assert not list(checker(python_files()))


def test_names_say_what_things_are():
    assert not list(vague_names(python_files(product_only=False)))


def test_scripts_obey_the_layers():
    assert not list(wrong_script_imports(ROOT))


def test_packages_obey_the_layers():
    assert not broken_contracts(ROOT)


def test_drawn_masks_are_read_by_scoring_alone():
    assert not list(mask_readers(ROOT))


def test_the_main_package_imports_nothing():
    assert not list(imports(ROOT / "hovernet_cyclic" / "__init__.py"))


def test_test_folders_are_no_packages():
    assert not [path for path in tracked_files() if path.name == "__init__.py" and "tests" in path.parts]


def test_no_text_names_one_machine_or_registry():
    assert not list(foreign_text(tracked_files()))


def test_the_rules_are_held_against_all_packages():
    roots = {path.relative_to(ROOT).parts[0] for path in python_files()}
    assert set(PACKAGES) <= roots and "config.py" in roots


# --- and the checkers can fail ----------------------------------------------------------------------------------------

PLANTED = [
    (overlong_functions, "def f() -> None:\n" + "    pass\n" * LONGEST_FUNCTION, "f has 71 lines"),
    (overlong_files, "x = 1\n" * (LONGEST_FILE + 1), "401 lines"),
    (high_median, "def f() -> None:\n" + "    pass\n" * MEDIAN_FUNCTION, "median function has 13 lines"),
    (crowded_functions, "def f(a, b, c, d, /, e, f, *, g, **h): ...\n", "f takes 8 parameters"),
    (unannotated_functions, "class A:\n    def f(self, a) -> None: ...\n", "f is not fully annotated"),
    (unannotated_functions, "class A:\n    def f(self, a: int): ...\n", "f is not fully annotated"),
    (unannotated_functions, "class A:\n    @staticmethod\n    def f(a) -> int: ...\n", "f is not fully annotated"),
    (vague_names, "class PatchManager: ...\n", "class PatchManager"),
    (module_state, "SEEN = []\ndef f() -> None:\n    SEEN.append(1)\n", "f changes the module's SEEN"),
    (module_state, "SEEN = {}\ndef f() -> None:\n    SEEN[1] = 2\n", "f changes the module's SEEN"),
    (module_state, "COUNT = 0\ndef f() -> None:\n    global COUNT\n    COUNT = 1\n", "f changes the module's COUNT"),
    (foreign_text, "data = '/" + "work/x'\n", "data ="),
    (foreign_text, "# from https://pypi" + ".org/simple\n", "# from"),
]

HARMLESS = [
    (overlong_functions, "def f() -> None:\n" + "    pass\n" * (LONGEST_FUNCTION - 1)),
    (crowded_functions, "class A:\n    def f(self, a, b, c, d, e, f, g): ...\n"),
    (unannotated_functions, "class A:\n    def f(self, *a: int, **b: int) -> None: ...\n"),
    (vague_names, "class NetManaged: ...\n"),
    (module_state, "NAMES = []\ndef f() -> None:\n    NAMES = []\n    NAMES.append(1)\n"),
    (foreign_text, "folder = 'frame" + "work/x'; rate = a.root/b\n"),
]


@pytest.mark.parametrize(("checker", "source", "sentence"), PLANTED)
def test_a_checker_finds_what_is_planted(checker, source, sentence, tmp_path):
    (tmp_path / "planted.py").write_text(source)
    (found,) = checker([tmp_path / "planted.py"])
    assert sentence in found


@pytest.mark.parametrize(("checker", "source"), HARMLESS)
def test_a_checker_lets_the_harmless_pass(checker, source, tmp_path):
    (tmp_path / "planted.py").write_text(source)
    assert not list(checker([tmp_path / "planted.py"]))


@pytest.mark.parametrize("name", VAGUE_NAMES)
def test_a_vague_module_is_found(name, tmp_path):
    (tmp_path / f"{name}.py").touch()
    assert list(vague_names([tmp_path / f"{name}.py"]))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("config.py", "from hovernet_cyclic.core import types\n"),
        ("config.py", "def f():\n    import models.checkpoint\n"),
        ("run_infer.py", "from config import RECIPES\n"),
        ("models/net.py", "import config\n"),
        ("infer/tile.py", "from run_infer import main\n"),
        ("run_eval.py", "import run_train\n"),
    ],
)
def test_a_wrong_script_import_is_found(file, source, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(source)
    assert list(wrong_script_imports(tmp_path))


def test_a_stray_reader_of_masks_is_found(tmp_path):
    (tmp_path / "cyclic.py").write_text("mask = source.annotation(0)\n")
    assert list(mask_readers(tmp_path))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models/net.py", "import infer\n"),
        ("dataloader/reader.py", "def f():\n    from hovernet_cyclic import training\n"),
        ("hovernet_cyclic/core/maps.py", "import torch\n"),
    ],
)
def test_a_broken_contract_is_found(file, source, tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in (*PACKAGES, "hovernet_cyclic/core", "hovernet_cyclic/training"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    assert not broken_contracts(tmp_path)
    (tmp_path / file).write_text(source)
    (report,) = broken_contracts(tmp_path)
    assert "BROKEN" in report
