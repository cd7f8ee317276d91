"""The package's own face: what it exports, what it imports, and what its metadata says."""

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import bonsai_routing

FOLDER = Path(bonsai_routing.__file__).parent
MODULES = sorted(f"bonsai_routing.{module.name}" for module in pkgutil.iter_modules([str(FOLDER)]))


def test_the_public_names_are_sorted_and_there() -> None:
    assert bonsai_routing.__all__ == sorted(bonsai_routing.__all__)
    assert all(hasattr(bonsai_routing, name) for name in bonsai_routing.__all__)


def test_every_public_name_of_a_module_is_one_of_the_package() -> None:
    offered = {name for module in MODULES if "._" not in module for name in importlib.import_module(module).__all__}
    assert offered == set(bonsai_routing.__all__)


@pytest.mark.parametrize("module", MODULES)
def test_each_module_says_what_it_offers_and_explains_it(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    assert loaded.__all__ == sorted(loaded.__all__)
    for name in loaded.__all__:
        assert hasattr(loaded, name)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_only_the_standard_library_is_imported(path: Path) -> None:
    roots = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add((node.module or "").partition(".")[0])
    assert roots <= set(sys.stdlib_module_names) | {"bonsai_routing"}


@pytest.mark.parametrize("name", bonsai_routing.__all__)
def test_a_public_name_has_type_hints_and_documented_methods(name: str) -> None:
    public = getattr(bonsai_routing, name)
    assert public.__doc__
    typing.get_type_hints(public)
    for method_name, method in inspect.getmembers(public, inspect.isfunction):
        if not method_name.startswith("_"):
            assert inspect.getdoc(method), method_name
        if method.__module__.startswith("bonsai_routing"):
            typing.get_type_hints(method)


def test_the_package_is_marked_as_typed() -> None:
    assert (FOLDER / "py.typed").exists()


def test_the_installed_package_depends_on_nothing() -> None:
    try:
        requirements = importlib.metadata.requires("bonsai_routing") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("bonsai_routing is not installed")
    assert [each for each in requirements if "extra ==" not in each] == []


def private_attributes(path: Path) -> set[str]:
    """Return the private attributes that a module reads from anything but ``self`` and ``cls``."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)]
    return {
        node.attr
        for node in nodes
        if node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_modules_use_each_other_only_through_the_two_doors(path: Path) -> None:
    # Only these read the directory, or write through the store.
    readers = {"_store", "registry", "router", "adapter_registry", "openai", "suggestions"}
    writers = {"registry", "router", "adapter_registry", "config", "loading"}
    allowed = {"_directory"} if path.stem in readers else set()
    allowed |= {"_store"} if path.stem in writers else set()
    assert private_attributes(path) <= allowed


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_all_imports_stand_at_the_top_of_the_module(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))}
    assert {node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))} == top


def test_no_module_imports_itself_through_others() -> None:
    imports: dict[str, set[str]] = {}
    for path in FOLDER.glob("*.py"):
        nodes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
        imports[path.stem] = {
            node.module.partition(".")[2] for node in nodes if node.module and node.module.startswith("bonsai_routing.")
        }
    # Remove what imports nothing that is left, until nothing is left.
    while imports:
        leaves = {module for module, imported in imports.items() if not imported & imports.keys()}
        assert leaves, f"a circle among {sorted(imports)}"
        imports = {module: imported for module, imported in imports.items() if module not in leaves}


def test_a_module_that_has_the_name_of_a_function_does_not_hide_it() -> None:
    code = "import bonsai_routing.suggestions; from bonsai_routing import suggestions; assert callable(suggestions)"
    subprocess.run([sys.executable, "-c", code], check=True)
