"""The layout is the diagram: imports between the pieces go one way, lazy ones included."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "polylab"

# piece -> pieces that it may import; a piece is a folder of the package, or an entry point
ARROWS: dict[str, set[str]] = {
    "poly": set(),
    "data": set(),
    "backbones": set(),
    "pretraining": {"data", "backbones"},
    "training": {"poly"},
    "callbacks": {"poly", "training"},
    "adaptation": {
        *("backbones", "config", "data", "finished", "parts", "poly", "trainers", "training")
    },
    "evaluating": {
        *("backbones", "callbacks", "config", "data", "parts", "poly", "terminal"),
        *("trainers", "training"),
    },
    "config": set(),
    "terminal": {"callbacks", "config", "data", "parts", "poly", "training"},
    "ranks": set(),
    "reporting": {"callbacks", "poly"},
    "papers": {"callbacks", "config"},
    "testing": {"poly"},
    "tracking": set(),
    "__init__": {"poly", "runs"},
}
PIECES = set(ARROWS) | {path.stem for path in ROOT.glob("*.py")}


def _files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def _piece(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imported(path: Path, source: str | None = None) -> Iterator[tuple[str, int]]:
    """Yield the pieces that a file imports, at any depth, by statement or by `import_module`."""
    for node in ast.walk(ast.parse(source or path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: from the file's own package
                package = ("polylab", *path.relative_to(ROOT).parent.parts)
                head = package[: len(package) - node.level + 1]
                base = ".".join([*head, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_name = (
                node.value.startswith("polylab.") and node.value.replace(".", "").isidentifier()
            )
            names = [node.value] if is_name else []
        for name in names:
            parts = name.split(".")
            if parts[0] == "polylab" and len(parts) > 1 and parts[1] in PIECES:
                yield parts[1], getattr(node, "lineno", 0)


def _wrong(path: Path, source: str | None = None) -> list[str]:
    piece = _piece(path)
    allowed = ARROWS.get(piece, PIECES) | {piece}  # an entry point may import everything
    found = _imported(path, source)
    return [f"{path.name}:{line} imports {other}" for other, line in found if other not in allowed]


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    if _piece(path) == "config":
        # names of targets and of the command are no imports there
        assert not [w for w in _wrong_statements(path)]
    else:
        assert not _wrong(path)


def _wrong_statements(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kept = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    return _wrong(path, "\n".join(kept))


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("data/x.py", "from polylab.poly import PolyModel"),
        ("data/x.py", "def f():\n    import polylab.poly.model"),
        ("data/mixture/x.py", "from ...poly import layers"),
        ("poly/x.py", "from polylab import data"),
        ("poly/x.py", "import_module('polylab.data')"),
        ("training/x.py", "from polylab.callbacks import Recovery"),
        ("config/x.py", "from polylab.training import PolyModule"),
        ("poly/x.py", "from polylab.train import main"),
        ("testing/x.py", "from polylab.callbacks import Recovery"),
    ],
)
def test_the_test_sees_what_it_should(place: str, source: str) -> None:
    assert len(_wrong(ROOT / place, source)) == 1


def test_every_piece_is_known() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders <= set(ARROWS)
