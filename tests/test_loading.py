"""What is loaded and what is refused: weights by their headers, memory by the config, the hub by what is cached, code never."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import save_qwen3_vl
from huggingface_hub import constants
from qwen_checkpoints import save_qwen2_5_omni
from safetensors.torch import load_file, save_file

from data.errors import AdapterError
from model_adapters import budget as budget_module
from model_adapters import loading
from model_adapters.base import ChunkKV, ModelAdapter
from model_adapters.budget import estimate, free_ram
from model_adapters.check import main as check_main
from model_adapters.loading import Checkpoint, find_checkpoint
from model_adapters.registry import FAMILIES, load_adapter, memory_needed
from model_adapters.weights import INDEX, SINGLE, read_weights
from retrieval.key_similarity import KeySimilarity
from vstream import models
from vstream.__main__ import main
from vstream.config import SessionConfig
from vstream.models import ModelChoice
from vstream.session import StreamSession

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_ID = "somebody/model"


@pytest.fixture
def folder(random_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(random_folder, tmp_path / "model"))


def sharded(folder: Path) -> list[Path]:
    """Split the weights of `folder` into three shards with an index. Returns the shards."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    weight_map = {name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        own = {name: tensors[name] for name in tensors if weight_map[name] == shard}
        save_file(own, folder / shard, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sorted(folder / shard for shard in set(weight_map.values()))


def with_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(name: str, **options: object) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(AdapterError) as caught:
        load_adapter(name, **{"device": "cpu", **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Weights


def test_headers_count_what_the_model_holds(random_folder, random_adapter) -> None:
    table = read_weights("model", random_folder)
    parameters = list(random_adapter.model.parameters())
    assert table.num_parameters == {"F32": sum(p.numel() for p in parameters)}
    assert table.num_bytes == sum(p.numel() * p.element_size() for p in parameters)
    assert table.tensors == set(load_file(random_folder / SINGLE))


def test_shards_are_one_checkpoint(folder, random_adapter) -> None:
    whole = read_weights("model", folder)
    sharded(folder)
    table = read_weights("model", folder)
    assert len(table.files) == 3 and table.num_parameters == whole.num_parameters and table.tensors == whole.tensors
    for mine, theirs in zip(
        load_adapter(str(folder), device="cpu").model.parameters(), random_adapter.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


def cut(num_bytes: int) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(file.read_bytes()[:num_bytes])


def longer_header(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes((len(data) * 2).to_bytes(8, "little") + data[8:])


DAMAGES = [
    pytest.param(cut(-1), "torn.* bytes of the ", id="one byte short"),
    pytest.param(lambda file: file.write_bytes(file.read_bytes() + b"\0"), "torn.* bytes of the ", id="one byte more"),
    pytest.param(cut(100), "torn", id="header cut"),
    pytest.param(cut(3), "torn", id="length cut"),
    pytest.param(cut(0), "torn", id="empty"),
    pytest.param(longer_header, "torn", id="header longer than the file"),
    pytest.param(lambda file: file.write_bytes(b"PK\3\4" + bytes(2000)), "no safetensors file", id="a pickle by another name"),
    pytest.param(
        lambda file: file.write_bytes(b"\4" + bytes(7) + b"[{]]" + bytes(9)), "header .* damaged", id="header no JSON"
    ),
    pytest.param(lambda file: file.write_bytes(b"\2" + bytes(7) + b"[]"), "header .* damaged", id="header a list"),
    pytest.param(
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "git lfs pull",
        id="pointer",
    ),
]


@pytest.mark.parametrize("shards", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("damage,words", DAMAGES)
def test_a_torn_weight_file_is_told_before_it_is_loaded(folder, damage, words: str, shards: bool) -> None:
    file = sharded(folder)[1] if shards else folder / SINGLE
    damage(file)
    with pytest.raises(AdapterError, match=words) as caught:
        find_checkpoint(str(folder), FAMILIES).weights()
    assert file.name in str(caught.value) and str(folder) in refusal(str(folder))


def test_a_missing_shard_is_named(folder) -> None:
    sharded(folder)[2].unlink()
    assert "lacks 1 of 3 weight files, model-00003-of-00003.safetensors" in refusal(str(folder))


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_told(folder, text: str) -> None:
    sharded(folder)
    (folder / INDEX).write_text(text)
    words = refusal(str(folder))
    assert INDEX in words or "lacks" in words


def test_weights_that_cannot_be_reached_are_told(folder) -> None:
    name = "x" * 300
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert "cannot be read: File name too long" in refusal(str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "last.ckpt"])
def test_pickled_weights_are_refused_with_the_reason(folder, name: str) -> None:
    (folder / SINGLE).rename(folder / name)
    words = refusal(str(folder))
    assert name in words and "can run code" in words


def test_pickles_beside_safetensors_are_not_looked_at(folder) -> None:
    (folder / "training_args.bin").write_bytes(b"not even a pickle")
    assert load_adapter(str(folder), device="cpu").info.num_layers == 3


# Code of its own


def test_code_that_a_checkpoint_brings_is_never_run(folder, tmp_path, caplog) -> None:
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    own = {"AutoConfig": "modeling_own.Own", "AutoModel": "modeling_own.Own", "AutoModelForImageTextToText": "modeling_own.Own"}
    with_config(folder, auto_map=own)
    for side in ("tokenizer_config.json", "preprocessor_config.json"):
        text = json.loads((folder / side).read_text())
        (folder / side).write_text(json.dumps(text | {"auto_map": {"AutoTokenizer": ["modeling_own.Own", None]}}))
    with caplog.at_level(logging.WARNING):
        assert load_adapter(str(folder), device="cpu").info.family == "qwen3_vl"
    assert "code of its own" in caplog.text and "loaded as qwen3_vl" in caplog.text
    with_config(folder, model_type="internvl_chat")
    words = refusal(str(folder))
    assert "'internvl_chat'" in words and "never run" in words and "qwen3_vl" in words
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", [{"size": "big"}, {"size": None}, {"patch_size": "x"}, {"image_mean": 0.5}])
def test_a_processor_configuration_that_makes_no_sense_is_told(folder, damage: dict[str, object], capsys) -> None:
    text = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(text | damage))
    assert check_main([str(folder)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("check: ") and str(folder) in line and len(line) < 500


@pytest.mark.parametrize("argv", [[], ["embedded", "--dtype", "float8"], ["embedded", "--quick"]])
def test_a_check_that_was_called_wrongly_is_told_in_one_line(argv: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        check_main(argv)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1 and err.startswith("python -m model_adapters.check: ")


# Memory


def test_the_estimate_is_the_same_from_the_config_as_from_the_headers(random_folder, random_adapter) -> None:
    checkpoint = find_checkpoint(str(random_folder), FAMILIES)
    by_config, by_headers = estimate(checkpoint, torch.bfloat16, "cpu"), memory_needed(str(random_folder), dtype="bfloat16")
    assert by_config.num_parameters == by_headers.num_parameters == sum(p.numel() for p in random_adapter.model.parameters())
    assert by_config.weight_bytes == by_headers.weight_bytes == 2 * by_config.num_parameters
    assert by_config.kv_bytes_per_token == random_adapter.info.kv_bytes_per_token / 2


def test_of_an_omni_checkpoint_only_the_thinker_is_counted(tmp_path) -> None:
    """By its headers, and by its config, where the talker would be as large as published."""
    folder = save_qwen2_5_omni(tmp_path / "omni")
    adapter = load_adapter(str(folder), device="cpu")
    loaded = sum(p.numel() for p in adapter.model.parameters())  # type: ignore[attr-defined]
    assert memory_needed(str(folder)).num_parameters == loaded
    assert estimate(find_checkpoint(str(folder), FAMILIES), None, "cpu").num_parameters == loaded


def test_what_is_stored_in_another_type_is_counted_in_the_type_it_is_loaded_in(tmp_path) -> None:
    folder = save_qwen3_vl(tmp_path / "half", torch.bfloat16)
    stored, wide = memory_needed(str(folder), dtype="auto"), memory_needed(str(folder), device_map="cpu")
    assert stored.weight_bytes * 2 == wide.weight_bytes == wide.num_parameters * 4
    assert stored.kv_bytes_per_token * 2 == wide.kv_bytes_per_token
    assert load_adapter(str(folder), device="cpu", dtype="auto").info.dtype == torch.bfloat16


def test_too_little_memory_is_told_before_anything_is_loaded(random_folder, monkeypatch, caplog) -> None:
    needed = memory_needed(str(random_folder)).weight_bytes
    monkeypatch.setattr(budget_module, "free_ram", lambda: needed - 1)
    words = refusal(str(random_folder), dtype="float32")
    assert "needs" in words and "float32" in words and "free on cpu" in words
    monkeypatch.setattr(budget_module, "free_ram", lambda: needed)
    with caplog.at_level(logging.WARNING):
        load_adapter(str(random_folder), device="cpu")
        assert "set aside" not in caplog.text
        load_adapter(str(random_folder), device="cpu", kv_bytes=1)
    assert "set aside for chunks" in caplog.text


def test_free_memory_minds_the_limit_of_a_control_group(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(budget_module, "CGROUP", tmp_path)
    machine = free_ram()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 300\n")
    assert free_ram() > machine / 2
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_ram() == 1000 - 700 + 300


def test_a_config_that_describes_no_model_is_told(folder) -> None:
    with_config(folder, text_config={"hidden_size": "wide"})
    assert "config.json" in refusal(str(folder))
    (folder / "config.json").write_text("[" * 10**5)
    assert "config.json" in refusal(str(folder))


# How it is loaded


def test_dtypes_and_places_are_checked(random_folder) -> None:
    name = str(random_folder)
    assert load_adapter(name, device_map="cpu", dtype="float64").info.dtype == torch.float64
    assert load_adapter(name, device="cpu", dtype=torch.float16).info.dtype == torch.float16
    assert load_adapter(name, device_map="auto").info.num_layers == 3
    assert "int3" in refusal(name, dtype="int3") and "'moon'" in refusal(name, device="moon")
    assert "hold no numbers" in refusal(name, device="meta")
    assert "one" in refusal(name, device="cpu", device_map="auto")
    assert "no revision 'v1'" in refusal(name, revision="v1")
    if not torch.cuda.is_available():
        assert "0 CUDA devices" in refusal(name, device="cuda")


def test_the_attention_of_transformers_can_be_asked_for(random_folder, random_adapter, frames, caplog) -> None:
    with StreamSession(random_adapter, SessionConfig(drop="off", window_seconds=20)) as session:
        list(session.feed(frames[:8]))
        chunks = [session.ingest.sink, *session.ingest.window]
    found = []
    for other in (random_adapter, load_adapter(str(random_folder), device="cpu", attn_implementation="eager")):
        context = other.new_context(8)
        other.append(context, chunks)
        found.append(other.logits(context, other.question_run("what is on screen now ?")))
    assert torch.allclose(*found, atol=1e-4 * float(found[0].abs().max()))
    assert "attention eager, which does not tell" in caplog.text
    with StreamSession(other, SessionConfig(window_seconds=2, max_new_tokens=2)) as session:
        list(session.feed(frames[:8]))
        assert {e.tier for e in session.answer("what is on screen now ?").evidence} == {"gpu"}, "only what was retrieved"
    assert "imaginary" in refusal(str(random_folder), attn_implementation="imaginary")


def test_weights_of_another_model_are_told(folder) -> None:
    tensors = load_file(folder / SINGLE)
    save_file({name.replace("language_model", "other"): w for name, w in tensors.items()}, folder / SINGLE, {"format": "pt"})
    words = refusal(str(folder))
    assert "lacks" in words and "do not belong together" in words


# The hub


@pytest.fixture
def hub(random_folder: Path, tmp_path: Path, monkeypatch) -> Path:
    """A local cache of the hub, offline, that holds one checkpoint at one commit and knows it as main. Its snapshot folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--somebody--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(random_folder, repo / "snapshots" / COMMIT))


def test_offline_takes_what_is_cached(hub, random_adapter) -> None:
    for revision in (None, "main", COMMIT):
        adapter = load_adapter(HUB_ID, device="cpu", revision=revision)
        assert adapter.info.name == HUB_ID and adapter.info.fingerprint == random_adapter.info.fingerprint
    assert find_checkpoint(HUB_ID, FAMILIES).revision == COMMIT


def test_of_a_hub_checkpoint_only_the_weights_it_is_loaded_from_are_fetched(hub, monkeypatch) -> None:
    asked: list[tuple[str, ...]] = []
    fetch = loading.fetched

    def seen(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
        asked.append(patterns)
        return fetch(name, revision, patterns)

    monkeypatch.setattr(loading, "fetched", seen)
    (hub / "consolidated.safetensors").write_bytes((hub / SINGLE).read_bytes())
    find_checkpoint(HUB_ID, FAMILIES).weights()
    assert not any("safetensors" in pattern for pattern in asked[0]) and asked[1] == (SINGLE,)
    shards = sharded(hub)
    assert len(find_checkpoint(HUB_ID, FAMILIES).weights().files) == 3
    assert asked[3] == tuple(shard.name for shard in shards)


def test_offline_says_that_it_is_offline(hub) -> None:
    for name, revision in (("somebody/other", None), (HUB_ID, "v2")):
        words = refusal(name, revision=revision)
        assert name in words and "HF_HUB_OFFLINE" in words and (revision is None or revision in words)


def test_weights_that_cannot_fit_are_not_fetched(hub, monkeypatch) -> None:
    def weights(checkpoint: Checkpoint) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(Checkpoint, "weights", weights)
    monkeypatch.setattr(budget_module, "free_ram", lambda: 1000)
    assert "needs" in refusal(HUB_ID)


# The command line


def test_a_bad_model_is_one_line_and_exit_code_2(folder, capsys) -> None:
    cut(-1)(folder / SINGLE)
    ask = ["ask", "world:?seed=1&seconds=4&speed=0", "what is on screen now ?", "--model"]
    for argv in ([str(folder)], [str(folder), "--revision", "v1"], [str(folder), "--device-map", "moon"]):
        assert main([*ask, *argv]) == 2
        said = capsys.readouterr()
        assert not said.out and len(said.err.splitlines()) == 1 and said.err.startswith("vstream ask: ")


def test_doctor_tells_what_a_model_costs(folder, capsys) -> None:
    assert main(["doctor", "--model", str(folder), "--dtype", "float64", "--fps", "1", "--ram-bytes", "1000000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line[3:22].strip(): line[22:].strip() for line in lines}
    needed = memory_needed(str(folder), dtype="float64")
    assert f"{needed.num_parameters / 1e6:,.1f} million parameters" in rows["weights"] and "float64" in rows["weights"]
    per_token = 2 * 3 * 2 * 24 * 8
    assert rows["kv"].startswith(f"{per_token} bytes per token; 15 visual and ")
    tokens = 15 + int(rows["kv"].split("15 visual and ")[1].split()[0])
    assert rows["kv per hour"].startswith(f"{per_token * tokens * 3600 / 2**20:.1f} MiB") or "GiB" in rows["kv per hour"]
    assert rows["ram holds"].startswith(f"{1e6 / (per_token * tokens):.1f} s in 1.0 MiB")
    retriever = KeySimilarity()
    retriever.add(ChunkKV(0, torch.zeros(3, 2, 5, 24), torch.zeros(3, 2, 5, 24), torch.zeros(3, 5).long(), 5, 0.0, 1.0))
    assert rows["index holds"].startswith(f"{2**30 / retriever.index.num_ram_bytes / 3600:.1f} h in 1.0 GiB")
    cut(-1)(folder / SINGLE)
    assert main(["doctor", "--model", str(folder)]) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " model " in line]
    assert line.startswith("--") and "torn" in line


@pytest.mark.parametrize("threads", [-1, 0, 1025, 10**30])
def test_a_number_of_threads_that_makes_no_sense_is_refused(threads: int) -> None:
    with pytest.raises(AdapterError, match=f"--threads is {threads}; give a number from 1 to 1024"):
        ModelChoice(threads=threads).load()


def test_a_small_model_takes_one_thread_and_any_other_what_is_there(
    random_folder: Path, random_adapter: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    named = str(random_folder)
    try:
        torch.set_num_threads(3)
        with monkeypatch.context() as large:
            large.setattr(models, "SMALL_BYTES", random_adapter.weight_bytes - 1)
            ModelChoice(named).load()
            assert torch.get_num_threads() == 3
        ModelChoice(named, threads=2).load()
        assert torch.get_num_threads() == 2, "what was asked for"
        ModelChoice(named).load()
        assert torch.get_num_threads() == 1
        torch.set_num_threads(3)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        ModelChoice(named).load()
        assert torch.get_num_threads() == 3, "the environment goes before our own rule"
    finally:
        torch.set_num_threads(before)
    assert random_adapter.weight_bytes >= (random_folder / "model.safetensors").stat().st_size * 0.9
    with pytest.raises(AdapterError, match="--threads is 0"):
        ModelChoice(named, threads=0).load()
