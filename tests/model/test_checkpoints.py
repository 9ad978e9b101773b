"""Published weights find their places and their way back; what does not fit is one message, and nothing runs."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints import (
    CheckpointError,
    describe,
    export_official,
    load,
    load_official,
    official,
    require_filled,
    save,
    save_official,
)
from model.config import configure
from model.hosts import build
from model.hosts.tokenizer import byte_tokenizer
from model.sparrow import Sparrow
from model.train.export import FREE
from schemas.json_checksum import FILES, dumps_checked, load_checked

HOSTS = ("videoglamm", "glus", "unipixel")


class Shapes(dict):
    """Whole published files without their memory: large tensors have nothing but a shape."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        places = {
            name: "cpu" if math.prod(shape) < 1_000_000 else "meta"
            for name, shape in shapes.items()
        }
        super().__init__(
            {name: torch.empty(shape, device=places[name]) for name, shape in shapes.items()}
        )
        self.shapes, self.files = shapes, [Path("published")]


def tiny(name: str, seed: int, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return build(name, "tiny", "cpu", **changes)


def sparrow(host: Any, preset: str, **changes: Any) -> Any:
    small = {"queries": 32, "encoder_layers": 1, "decoder_layers": 1, "ffn": 64}
    return Sparrow(
        host, configure(preset, **{f"proposer.{name}": n for name, n in small.items()}, **changes)
    )


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: str = "") -> bool:
    names = [name for name in one if name.startswith(start)]
    return bool(names) and all(torch.equal(one[name], other[name]) for name in names)


def put(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, folder / name)
    return folder


@pytest.fixture(scope="module")
def glus():
    return tiny("glus", 1)


# --- every published layout, at its real size ---


@pytest.mark.parametrize(
    ("file", "host", "layout"),
    [
        ("videoglamm.json", "videoglamm", "videoglamm"),
        ("glus.json", "glus", "glus"),
        ("unipixel_3b.json", "unipixel", "unipixel"),
        ("sparrow_finetune_export.json", "videoglamm", "sparrow"),
        ("sparrow_finetune_export_with_video_tower.json", "videoglamm", "sparrow"),
    ],
)
def test_published_names_and_shapes_fit_and_come_back(shared, monkeypatch, file, host, layout):
    def entries(name: str) -> dict[str, tuple[int, ...]]:
        tensors = json.loads((shared / "golden/keys" / name).read_text())["tensors"]
        return {
            t["name"]: tuple(t["shape"])
            for t in tensors
            if t.get("alias_of") != "model.embed_tokens.weight"
        }

    tower = file.endswith("with_video_tower.json")
    published = entries(file) | (entries("sparrow_finetune_export.json") if tower else {})
    monkeypatch.setattr(official, "weight_files", lambda path: [path])
    monkeypatch.setattr(official, "Tensors", lambda files: Shapes(published))
    model = Sparrow(build(host), configure("release")) if layout == "sparrow" else host
    report = load_official(model, "published", device="meta")
    computed = [name for names in report.ignored.values() for name in names]
    assert report.layout == layout
    assert report.tensors == len(published) - len(computed)
    assert all(name.endswith("inv_freq") for name in computed)
    assert len(computed) == (32 if host == "glus" else 0)
    back = {
        name: tuple(t.shape) for name, t in export_official(report.model, layout, optional=tower)
    }
    assert back == published


def test_the_published_proposer_folder_with_its_shared_tensors(shared, tmp_path):
    entries = json.loads((shared / "golden/keys/ddetr_sam2_folder.json").read_text())["tensors"]
    entries = [t for t in entries if not t["name"].startswith("vis_encoder.")]
    both = {t["name"]: torch.randn(t["shape"]) for t in entries if "alias_of" not in t}
    both |= {t["name"]: both[t["alias_of"]] for t in entries if "alias_of" in t}
    model: Any = Sparrow(tiny("glus", 1), configure("release"))
    torch.save(both, tmp_path / "pytorch_model.bin")
    report = load_official(model, tmp_path)
    assert (report.layout, report.tensors) == ("proposer", 334)
    assert equal(both, dict(export_official(model, "proposer")))

    torch.nn.init.zeros_(model.proposer.input_proj[0][0].weight)
    one_name = {name: t for name, t in both.items() if ".decoder.bbox_embed." not in name}
    load_official(model, put(tmp_path / "one", one_name))
    assert equal(both, dict(export_official(model, "proposer")))

    alias = next(t["name"] for t in entries if "alias_of" in t)
    with pytest.raises(CheckpointError, match="must be equal"):
        load_official(
            model,
            put(
                tmp_path / "differ",
                {name: t + 1 for name, t in both.items()} | {alias: both[alias]},
            ),
        )
    assert equal(both, dict(export_official(model, "proposer")))


def test_the_proposer_tells_whether_its_image_encoder_is_the_hosts(tmp_path, glus):
    source = sparrow(glus, "release")
    save_official(source, "proposer", tmp_path)
    assert any("are equal" in note for note in load_official(source, tmp_path).notes)
    other = sparrow(tiny("glus", 7), "release")
    assert any("differ in" in note for note in load_official(other, tmp_path).notes)


# --- values ---


@pytest.mark.parametrize("name", HOSTS)
def test_values_survive_export_and_loading(tmp_path, name):
    source, target = tiny(name, 1), tiny(name, 2)
    save_official(source, name, tmp_path, optional=True)
    assert not equal(values(source), values(target), "seg_head")
    report = load_official(target, tmp_path)
    mine, theirs = values(source), values(target)
    for part in ("llm", "sam", "seg_head"):
        assert equal(mine, theirs, part), part
    left = {key for key in mine if not torch.equal(mine[key], theirs[key])}
    assert all(key.startswith("image_encoder.") for key in left), (
        "files leave out CLIP, and nothing else"
    )
    assert (report.problems, report.unfilled) == ([], [])


def test_shards_of_bin_files_are_read_through_their_index(tmp_path, glus):
    tensors = dict(export_official(glus, "glus"))
    names = sorted(tensors)
    shards = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, part in shards.items():
        torch.save({name: tensors[name].clone() for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "training_args.bin").write_bytes(b"not weights")
    target = tiny("glus", 2)
    report = load_official(target, tmp_path)
    assert [p.name for p in report.files] == ["a.bin", "b.bin"]
    assert equal(values(glus), values(target), "llm")

    put(
        tmp_path,
        {name: tensor + 1 for name, tensor in tensors.items() if tensor.is_floating_point()},
    )
    assert [p.name for p in load_official(target, tmp_path).files] == ["model.safetensors"]
    assert torch.equal(target.llm.lm_head.weight, glus.llm.lm_head.weight + 1)


def test_components_as_their_libraries_write_them(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    source, target = tiny("videoglamm", 1), tiny("videoglamm", 2)
    source.llm.save_pretrained(tmp_path / "phi3", max_shard_size="100KB")
    clip = CLIPModel(
        CLIPConfig(
            vision_config=source.image_encoder.config.to_dict(),
            text_config={
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "vocab_size": 50,
            },
        )
    )
    clip.save_pretrained(tmp_path / "clip")
    torch.save({"model": values(source.sam)}, tmp_path / "sam2_hiera_large.pt")
    video = {f"vision_encoder.{name}": t for name, t in values(source.video_encoder).items()}
    video |= {f"vision_proj.{name}": t for name, t in values(source.vision_proj).items()}
    torch.save(
        {"module": video | {"text_encoder.x": torch.ones(1), "temp": torch.ones(())}},
        tmp_path / "iv2.pt",
    )
    parts = {
        "phi3": "phi3",
        "clip": "clip",
        "sam2_hiera_large.pt": "sam2",
        "iv2.pt": "internvideo2",
    }
    for path, layout in parts.items():
        assert load_official(target, tmp_path / path).layout == layout
    mine, theirs = values(source), values(target)
    assert all(equal(mine, theirs, part) for part in ("llm", "sam", "video_encoder", "vision_proj"))
    vision = {
        f"image_encoder.{key.removeprefix('vision_model.')}": t for key, t in values(clip).items()
    }
    assert all(
        torch.equal(t, vision[key]) for key, t in theirs.items() if key.startswith("image_encoder.")
    )


def test_qwen_folders_of_old_and_new_transformers(tmp_path):
    source = tiny("unipixel", 1)
    old = dict(export_official(source, "qwen2_5_vl"))
    new = {
        name.removeprefix("llm."): t
        for name, t in values(source).items()
        if name.startswith("llm.model.")
    }
    assert set(old).isdisjoint(new)
    for name, tensors in {"old": old, "new": new}.items():
        target = tiny("unipixel", 2)
        assert load_official(target, put(tmp_path / name, tensors)).layout == "qwen2_5_vl"
        assert equal(values(source), values(target), "llm.")


def test_a_tied_head_may_be_stored_if_it_equals_the_embeddings(tmp_path):
    source, target = tiny("unipixel", 1), tiny("unipixel", 2)
    tensors = dict(export_official(source, "unipixel"))
    assert "lm_head.weight" not in tensors
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    assert any(
        "second name" in note
        for note in load_official(target, put(tmp_path / "same", tensors | head)).notes
    )
    assert target.llm.lm_head.weight is target.llm.get_input_embeddings().weight
    with pytest.raises(CheckpointError, match=r"lm_head\.weight .*must be equal"):
        load_official(
            target,
            put(tmp_path / "other", tensors | {"lm_head.weight": head["lm_head.weight"] + 1}),
        )


@pytest.mark.parametrize("word", ["gamma", "weight"])
def test_the_layer_scale_of_the_memory_fuser_has_two_names_and_can_be_lost(tmp_path, glus, word):
    stem = "model.visual_model.memory_encoder.fuser.layers"
    tensors = dict(export_official(glus, "glus"))
    for i in range(2):
        tensors[f"{stem}.{i}.{word}"] = torch.full_like(tensors.pop(f"{stem}.{i}.gamma"), 0.25 + i)
    put(tmp_path, tensors)
    target = tiny("glus", 2)
    layers = target.sam.memory_encoder.fuser.layers
    load_official(target, tmp_path)
    assert [layer.gamma.unique().tolist() for layer in layers] == [[0.25], [1.25]]
    load_official(target, tmp_path, fuser_scale="lost")
    assert torch.equal(layers[1].gamma, torch.full_like(layers[1].gamma, 1e-6))


def test_the_vocabulary_has_the_files_size_and_the_tokenizer_beside_it_is_taken(tmp_path, glus):
    tensors = dict(export_official(glus, "glus"))
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    bigger = {
        name: torch.cat([tensors[name], torch.ones(3, tensors[name].shape[1])]) for name in tables
    }
    put(tmp_path, tensors | bigger)
    byte_tokenizer(["[SEG]", "more"]).save_pretrained(tmp_path)
    target = tiny("glus", 2)
    load_official(target, tmp_path)
    rows = len(bigger[tables[0]])
    assert target.llm.config.vocab_size == rows == len(target.token_embeddings().weight) == rows
    assert torch.equal(target.llm.get_output_embeddings().weight, bigger[tables[1]])
    assert target.tokenizer.convert_tokens_to_ids("more") == target.seg_id + 1

    (tmp_path / "tokenizer.json").write_text("{}")
    report = load_official(target, tmp_path)
    assert any("could not be read" in note for note in report.notes)
    with pytest.raises(CheckpointError, match="mis-shaped"):
        load_official(target, put(tmp_path / "uneven", tensors | {tables[1]: bigger[tables[1]]}))


def test_a_sparrow_teaches_the_tokenizer_it_finds_its_own_token(tmp_path, glus):
    tensors = dict(export_official(glus, "glus"))
    put(tmp_path, tensors)
    byte_tokenizer(["[SEG]"]).save_pretrained(tmp_path)
    host = build("glus", "tiny", "meta", tokenizer="checkpoint")
    model = sparrow(host, "release")
    load_official(model, tmp_path)
    row = host.token_id("[BOX]")
    assert row == host.seg_id + 1
    table = tensors["model.embed_tokens.weight"]
    assert torch.allclose(host.token_embeddings().weight[row], table[:row].mean(0))
    assert torch.equal(host.token_embeddings().weight[:row], table[:row])


def test_dtype_device_and_tables_after_loading_onto_meta(tmp_path, glus):
    save_official(glus, "glus", tmp_path)
    clip = {f"vision_model.{name}": t for name, t in values(glus.image_encoder).items()}
    model: Any = build("glus", "tiny", "meta")
    report = load_official(model, tmp_path, dtype=torch.bfloat16)
    assert report.unfilled
    assert all(name.startswith("image_encoder.") for name in report.unfilled)
    with pytest.raises(CheckpointError, match=r"no values yet: image_encoder\.embeddings"):
        require_filled(model)
    load_official(model, put(tmp_path / "clip", clip), dtype=torch.bfloat16)
    require_filled(model)
    assert {p.dtype for name, p in model.named_parameters() if not name.startswith("sam.")} == {
        torch.bfloat16
    }
    assert {p.dtype for p in model.sam.parameters()} == {torch.float32}
    found = sparrow(model, "paper").ground(
        np.zeros((3, 64, 96, 3), np.uint8), "square", answer="force"
    )
    assert found.instances
    assert all(np.isfinite(one.scores_t).all() for one in found.instances)
    assert torch.equal(model.llm.model.rotary_emb.inv_freq, glus.llm.model.rotary_emb.inv_freq)
    assert torch.equal(model.seg_head[0].weight, glus.seg_head[0].weight.bfloat16())


def test_loading_needs_little_more_memory_than_the_weights(tmp_path):
    """200 MB in a file, 100 MB as bfloat16: at its peak, the weights and a bounded piece of the file are in memory."""
    state = {f"{i}.weight": torch.zeros(2048, 2048) for i in range(12)}
    paths = [tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin"]
    save_file(state, paths[0])
    torch.save(state, paths[1])
    code = f"""
import torch
from pathlib import Path
from model.checkpoints.files import Tensors
from model.checkpoints.tree import Tree
def peak():  # not getrusage: a child starts with its parent's
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
for path in {[str(path) for path in paths]}:
    with torch.device("meta"):
        model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, bias=False) for _ in range(12)))
    tensors, tree = Tensors([Path(path)]), Tree(model)
    for name in tensors:
        tree.put(name, tensors[name], torch.bfloat16, None)
    weights = sum(p.nbytes for p in model.parameters())
    del tensors, tree, model
print(peak() - before, weights)
"""
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    ).stdout
    used, weights = map(int, out.split())
    assert used <= 1.25 * weights + (96 << 20), f"{used >> 20} MB for weights of {weights >> 20} MB"


# --- what does not fit ---


def test_every_difference_is_in_one_table_and_nothing_is_loaded(tmp_path, glus):
    tensors = dict(export_official(glus, "glus"))
    del tensors["model.text_hidden_fcs.0.2.bias"]
    tensors["model.norm.weight"] = torch.ones(7)
    tensors["model.surprise"] = torch.ones(3)
    put(tmp_path, tensors)
    target = tiny("glus", 2)
    before = values(target)
    with pytest.raises(CheckpointError) as error:
        load_official(target, tmp_path)
    text = str(error.value)
    assert "1 missing, 1 unknown, 1 mis-shaped" in text
    assert all(
        name in text
        for name in ("model.text_hidden_fcs.0.2.bias", "model.surprise", "model.norm.weight")
    )
    assert equal(before, values(target))

    report = load_official(target, tmp_path, strict=False)
    assert sorted(kind for kind, *_ in report.problems) == ["mis-shaped", "missing", "unknown"]
    assert "model.surprise" in str(report)
    assert torch.equal(target.llm.lm_head.weight, glus.llm.lm_head.weight)
    assert torch.equal(target.llm.model.norm.weight, before["llm.model.norm.weight"])


def test_files_for_other_models_say_so(tmp_path, glus):
    save_official(glus, "glus", tmp_path / "glus")
    with pytest.raises(CheckpointError, match="is GLUS, for glus, not for unipixel"):
        load_official(tiny("unipixel", 2), tmp_path / "glus")
    with pytest.raises(CheckpointError, match="has none of proposer"):
        load_official(
            glus,
            put(
                tmp_path / "p",
                {"ddetr_transformer.x": torch.ones(1), "input_proj.y": torch.ones(1)},
            ),
        )
    with pytest.raises(
        CheckpointError, match=r"visual\.transformer\.resblocks\.N(.|\n)*Known layouts"
    ):
        load_official(
            glus, put(tmp_path / "c", {"visual.transformer.resblocks.0.w": torch.ones(1)})
        )
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"PEFT training checkpoint \(1 LoRA pairs.*merge"):
        load_official(glus, put(tmp_path / "l", lora))
    with pytest.raises(ValueError, match="layout sparrow is the official SPARROW export"):
        list(export_official(glus, "sparrow"))


def test_an_index_names_only_files_beside_it(tmp_path, glus):
    outside, inside = tmp_path / "outside.safetensors", tmp_path / "in"
    put(tmp_path, {"x": torch.ones(1)}, outside.name)
    put(inside, {"x": torch.ones(1)})
    for name, reason in {
        "../outside.safetensors": "outside its own",
        str(outside): "outside its own",
        "gone.safetensors": "not here",
    }.items():
        (inside / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"x": name}})
        )
        with pytest.raises(CheckpointError, match=reason):
            load_official(glus, inside)


def test_nothing_in_a_file_runs(tmp_path, glus):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model.norm.weight": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        load_official(glus, tmp_path)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "broken.safetensors").write_bytes(b"\x10" + bytes(20))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_official(glus, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_official(glus, tmp_path / "absent")


# --- our own checkpoints ---


def test_trained_parts_are_saved_and_put_back(tmp_path):
    def make(seed: int) -> Sparrow:
        model = sparrow(tiny("glus", 1), "paper")
        model.adapt()
        model.train_stage(model.config.stage1)
        torch.manual_seed(seed)
        for p in model.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p)
        return model

    source, target = make(3), make(4)
    save(source, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    trained = {name for name, p in source.named_parameters() if p.requires_grad}
    assert set(stored) == trained
    assert any("lora_A" in name for name in trained)
    assert any("trainable_tokens" in name for name in trained)
    load(target, tmp_path)
    assert equal(values(source), values(target))
    assert describe(tmp_path)["host"] == "glus"
    with pytest.raises(ValueError, match=r"model\.adapt\.merge"):
        list(export_official(source, "glus"))


def test_a_whole_model_comes_back_onto_meta_with_its_tokenizer(tmp_path):
    source = sparrow(tiny("unipixel", 1), "release")
    save(source, tmp_path, "all")
    target = sparrow(build("unipixel", "tiny", "meta"), "release")
    target.host.tokenizer = None
    load(target, tmp_path)
    require_filled(target)
    assert equal(values(source), values(target))
    assert target.host.token_id("[BOX]") == source.host.token_id("[BOX]")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_save_that_has_changed_is_refused(tmp_path, name):
    """The second half of the weights is zero: every name and shape still fits."""
    source = sparrow(tiny("unipixel", 1), "release")
    save(source, tmp_path, "all")
    file = tmp_path / name
    data = file.read_bytes()
    half = len(data) // 2
    file.write_bytes(
        data[:half] + (b"x" if name == "config.json" else bytes(1)) * (len(data) - half)
    )
    with pytest.raises(CheckpointError, match=f"{name}"):
        load(source, tmp_path)


def test_a_save_of_another_model_is_refused_with_a_table(tmp_path):
    source = sparrow(tiny("glus", 1), "release")
    save(source, tmp_path, "all")
    other = sparrow(tiny("glus", 2), "release", **{"decode.mode": "memory", "loss.ce": 2.0})
    before = values(other)
    with pytest.raises(CheckpointError, match="2 fields differ") as error:
        load(other, tmp_path)
    assert "sparrow.decode.mode" in str(error.value)
    assert equal(before, values(other))
    load(other, tmp_path, differing=("sparrow.decode.mode", "sparrow.loss"))
    assert equal(values(source), values(other))
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        load(other, tmp_path)


def test_a_save_from_before_the_reported_head_says_which_field_builds_it(tmp_path):
    """Its config names no `filter.descriptor`; its head is the fused one."""
    source = sparrow(tiny("glus", 1), "reconstructed")
    save(source, tmp_path, "all")
    path = tmp_path / "config.json"
    about = load_checked(path)
    del about["sparrow"]["filter"]["descriptor"]
    path.write_text(dumps_checked(about, about[FILES]))
    other = sparrow(tiny("glus", 2), "paper")
    with pytest.raises(CheckpointError) as error:
        load(other, tmp_path, differing=FREE)
    first = str(error.value).splitlines()[0]
    assert first == (
        "saved with filter.descriptor=fused, and the model has concatenated: "
        "--set filter.descriptor=fused builds the one that was saved"
    )
    same = sparrow(tiny("glus", 2), "paper", **{"filter.descriptor": "fused"})
    load(same, tmp_path, differing=FREE)
    assert equal(values(source), values(same))
