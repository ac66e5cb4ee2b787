"""The house itself: imports point one way, foreign libraries stay in their rooms, files stay readable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ["data", "model_adapters", "memory", "retrieval", "vstream", "eval", "app"]
"""Lower rooms first; a room may import itself and the rooms before it."""
ALLOWED = {
    "transformers": ("model_adapters/",),
    "gradio": ("app.py", "vstream/ui/"),
    "av": ("data/sources/",),
    "decord": ("data/sources/",),
    "faiss": ("retrieval/",),
    "safetensors": ("memory/", "model_adapters/"),
    "sqlite3": ("memory/",),
    "zstandard": ("memory/",),
    "zlib_ng": ("memory/",),
}
FILES = sorted(p for room in ORDER for p in [*ROOT.glob(f"{room}/**/*.py"), *ROOT.glob(f"{room}.py")])


def imports(path: Path) -> set[str]:
    """All modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def room_of(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    own = ORDER.index(path.relative_to(ROOT).parts[0].removesuffix(".py"))
    for module in imports(path):
        room = room_of(module)
        if room in ORDER:
            assert ORDER.index(room) <= own, f"{place} imports {module} from a room above it"
        if room in ALLOWED:
            assert place.startswith(ALLOWED[room]), f"{place} imports {module}, which belongs into {ALLOWED[room]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_upper_rooms_know_no_concrete_adapter(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] == "model_adapters":
        return
    concrete = {m for m in imports(path) if m.startswith("model_adapters.")} - {
        "model_adapters.base",
        "model_adapters.registry",
    }
    assert not concrete, f"{path.relative_to(ROOT)} imports {concrete}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_rooms_have_a_door(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300, "split it by noun"
    assert path.parent == ROOT or (path.parent / "__init__.py").exists()


def test_no_pickle_no_remote_code() -> None:
    for path in FILES:
        text = path.read_text()
        assert "trust_remote_code=True" not in text
        assert not imports(path) & {"pickle", "dill", "cloudpickle", "joblib"}, path
