"""Without a memory nothing of a stream reaches a disk: a process is watched from its first line on, then its folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORLD = "world:?seed=5&seconds=12&speed=0"
CHILD = """
import os, sys, tempfile
tempfile.tempdir = os.environ["TMPDIR"]  # else the module tries the folder out with a file
written = []

def hook(event, values):
    if event == "open" and isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND):
        written.append(str(values[0]))
    elif event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "sqlite3.connect"):
        written.append(f"{event} {values[0]}")

sys.addaudithook(hook)
"""
COMMANDS = """
from vstream.__main__ import main
code = main(sys.argv[1:])
"""
PAGE = """
import time
from pathlib import Path
from data.sources import PushSource, open_source
from data.world import make_world
from model_adapters.registry import load_adapter
from vstream.config import SessionConfig
from vstream.ui.serve import serving
from vstream.ui.studio import Studio

studio = Studio(load_adapter(sys.argv[1]), SessionConfig(max_new_tokens=4), start_source=None, folder=None)
with serving(studio, port=int(sys.argv[2])):
    tab = studio.open("a")
    tab.start(open_source(sys.argv[3]))
    tab.feeder._thread.join(timeout=120)
    *_, answer = tab.ask("what is on screen now ?")
    assert answer.done and len(tab.records()) == 12
    tab.leave()
    for frame in make_world(3, 2, side=64).frames(2.0):
        tab.push(frame.data.transpose(1, 2, 0))
    tab.stop()
code = 0
"""
END = """
import json
print(json.dumps({"code": code, "written": written}), file=sys.stderr)
"""


def run(tmp_path: Path, body: str, *args: object) -> tuple[list[str], list[Path]]:
    """What a process opened for writing or made, and the files that it left in its home, its temporary and its own folder."""
    places = {name: tmp_path / name for name in ("home", "tmp", "cwd")}
    for place in places.values():
        place.mkdir()
    environment = os.environ | {
        "HOME": str(places["home"]),
        "TMPDIR": str(places["tmp"]),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD + body + END, *map(str, args)],
        cwd=places["cwd"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    assert done.returncode == 0 and last.startswith("{"), done.stderr
    found = json.loads(last)
    assert found["code"] == 0, done.stderr
    # PyTorch makes an empty folder for compiled code when it is imported; nothing is ever compiled.
    own = [path for path in found["written"] if "torchinductor" not in path and path != "/dev/null"]
    return own, [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_the_commands_write_what_they_were_asked_for_and_nothing_else(random_folder: Path, tmp_path: Path) -> None:
    shared = ("--model", random_folder, "--max-new-tokens", 4)
    for number, (args, asked) in enumerate(
        [
            (("ask", WORLD, "what is on screen now ?"), None),
            (("watch", WORLD, "--when", "a red circle appears"), None),
            (("comment", WORLD, "--out", "said.vtt"), "said.vtt"),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        written, left = run(tmp_path / str(number), COMMANDS, *args, *shared)
        assert {Path(path).name for path in written} == {path.name for path in left} == ({asked} if asked else set())


@pytest.mark.slow
def test_the_page_writes_nothing_of_its_streams(random_folder: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    written, left = run(tmp_path, PAGE, random_folder, port, WORLD)
    # Empty folders only: for uploads, which goes when the page does, and gradio's own.
    assert left == [] and all(path.startswith("os.mkdir ") for path in written), written


@pytest.mark.slow
def test_this_check_sees_a_memory(random_folder: Path, tmp_path: Path) -> None:
    shared = ("--model", random_folder, "--max-new-tokens", 4)
    written, left = run(tmp_path, COMMANDS, "ask", WORLD, "what is on screen now ?", "--memory", tmp_path / "m", *shared)
    assert any("sqlite3.connect" in path for path in written) and any("segment-" in path for path in written)
    assert {path.suffix for path in left} >= {".sqlite", ".f32", ".safetensors"}
