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


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a statement loads in a fresh interpreter that has what the package is made of."""
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(FOLDER.parent)!r})
        import dataclasses, enum, heapq, math, threading
        before = set(sys.modules)
        {statement}
        print(*set(sys.modules) - before)
    """
    # Isolated and without site, which may import anything.
    command = [sys.executable, "-I", "-S", "-c", code]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_else() -> None:
    assert loaded_by("import bonsai_routing") == {"bonsai_routing"}


def test_who_routes_loads_no_slow_module_and_no_addition() -> None:
    loaded = loaded_by("from bonsai_routing import ModelEndpoint, ModelNotFoundError, ModelRegistry, ModelRouter")
    modules = ("_checks", "_directory", "_futures", "endpoint", "errors", "leases", "model_id", "registry", "router")
    assert loaded == {"bonsai_routing", *(f"bonsai_routing.{module}" for module in modules)}


def test_a_module_is_found_on_the_package_without_being_imported() -> None:
    assert loaded_by("import bonsai_routing; bonsai_routing.errors.RoutingError") == {
        "bonsai_routing",
        "bonsai_routing.errors",
    }


def test_the_package_lists_its_names_before_they_are_used() -> None:
    code = "import bonsai_routing as b; assert not {*b.__all__, '__doc__'} - {*dir(b)}; assert not hasattr(b, 'models')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_lists_its_names_and_finds_its_modules() -> None:
    assert {*bonsai_routing.__all__, "__all__", "errors"} <= {*dir(bonsai_routing)}
    assert bonsai_routing.__getattr__("errors") is importlib.import_module("bonsai_routing.errors")
    assert bonsai_routing.__getattr__("RoutingError") is bonsai_routing.RoutingError


def test_a_name_that_the_package_has_not_is_an_attribute_error_that_names_it() -> None:
    for name in ("ModelRegister", "_directory", "typing"):
        with pytest.raises(AttributeError, match=rf"^module 'bonsai_routing' has no attribute '{name}'$"):
            bonsai_routing.__getattr__(name)
