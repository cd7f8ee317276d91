"""Runs every Python block of the README and the docs, and the doctests of the package."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import bonsai_routing

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
MODULES = sorted(module.name for module in pkgutil.iter_modules(bonsai_routing.__path__))


def named(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_python_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": page.stem}
    for match in BLOCK.finditer(text):
        # The empty lines in front make the line numbers of a traceback those of the page.
        lines_before = text[: match.start(1)].count("\n")
        code = match[1]
        if code.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(code, namespace, page.name, str(page), lines_before)
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, clear_globs=False)
            assert result.failed == 0
            namespace.update(test.globs)
        else:
            exec(compile("\n" * lines_before + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_the_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"bonsai_routing.{module}"), extraglobs=vars(bonsai_routing))
    assert result.failed == 0


def test_the_reference_has_an_entry_for_each_public_name_in_order() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert re.findall(r"^## `(\w+)", text, re.MULTILINE) == bonsai_routing.__all__
