"""A backbone as an ONNX file, for runtimes other than torch: any number of images of any size in whole patches.

Surprising: the position embeddings are stretched by two matrix products instead of torch's bicubic resize, which ONNX
cannot say with torch's arithmetic: each row of the matrices holds the bicubic weights of one row or column of patches.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..atomic_file import atomic_path
from ..errors import SeenitError, first_line, os_reason
from .backbone import Backbone
from .checkpoint import build_model, load_checkpoint
from .layouts import Preprocessing
from .vit import VisionTransformer

OPSET = 18
_CUBIC, _CUBIC_ANTIALIASED = -0.75, -0.5  # the kernel's parameter as torch has it


class OnnxBackbone(nn.Module):
    """The network with tensors alone for its input and outputs.

    images   (B, 3, H, W) float32, mean and deviation taken out; H and W multiples of the patch size
    returns  x_norm_clstoken (B, D), x_norm_patchtokens (B, N, D)
    """

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        model, architecture = self.model, self.model.architecture
        size, side = architecture.patch_size, architecture.pretrained_grid
        rows, cols = images.shape[-2] // size, images.shape[-1] // size
        positions = model.pos_embed[0, 1:].unflatten(0, (side, side))  # (G, G, D)
        of_rows, of_cols = stretching(rows, cols, model)  # (rows, G), (cols, G)
        stretched = torch.einsum("rg,gwd,cw->rcd", of_rows, positions, of_cols).flatten(0, 1)  # (N, D)
        patches = model.patch_embed(images) + stretched
        cls = (model.cls_token + model.pos_embed[:, :1]).expand(images.shape[0], -1, -1)
        first = (
            [cls] if not architecture.num_registers else [cls, model.register_tokens.expand(images.shape[0], -1, -1)]
        )
        tokens = torch.cat([*first, patches], dim=1)  # (B, L, D)
        batch, length = tokens.shape[0], tokens.shape[1]
        flat = tokens.flatten(0, 1)  # (T, D)
        for block in model.blocks:
            flat = block(flat, ((batch, length),))
        normed = model.norm(flat).unflatten(0, (batch, length))
        return normed[:, 0], normed[:, 1 + architecture.num_registers :]


def stretching(rows: int, cols: int, model: VisionTransformer) -> tuple[Tensor, Tensor]:
    """The weights (rows, G) and (cols, G) that stretch the pretrained grid as `VisionTransformer.positions` does."""
    architecture = model.architecture
    side, offset = architecture.pretrained_grid, architecture.interpolate_offset
    counts = [torch.arange(count, device=model.pos_embed.device, dtype=torch.float32) for count in (rows, cols)]
    lengths = [count[-1] + 1 for count in counts]
    as_trained = (lengths[0] == side) & (lengths[1] == side)  # the grid is taken as it is then, offset or not
    weights = antialiased_weights if architecture.interpolate_antialias else bicubic_weights
    scales = [torch.where(as_trained, 1.0, side / (length + (offset or 0.0))) for length in lengths]
    return weights(counts[0], scales[0], side), weights(counts[1], scales[1], side)


def bicubic_weights(index: Tensor, scale: Tensor, side: int) -> Tensor:
    """index (n,), where each output stands; scale: grid steps an output. (n, G); beyond the edge the edge counts."""
    around = torch.arange(-2, side + 2, device=index.device, dtype=torch.float32)
    weights = _cubic((index[:, None] + 0.5) * scale - 0.5 - around, _CUBIC)  # (n, G + 4)
    inner = weights[:, 2:-2]
    before, behind = weights[:, :2].sum(1, keepdim=True), weights[:, -2:].sum(1, keepdim=True)
    return torch.cat([inner[:, :1] + before, inner[:, 1:-1], inner[:, -1:] + behind], dim=1)


def antialiased_weights(index: Tensor, scale: Tensor, side: int) -> Tensor:
    """The same where a shrunk grid is averaged; weights beyond the edge are left out and the rest adds up to 1."""
    grid = torch.arange(side, device=index.device, dtype=torch.float32)
    wide = torch.clamp(scale, min=1.0)
    weights = _cubic((grid + 0.5 - (index[:, None] + 0.5) * scale) / wide, _CUBIC_ANTIALIASED)
    return weights / weights.sum(1, keepdim=True)


def _cubic(x: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel (1981)."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def export_onnx(backbone: Backbone, file: str | Path) -> Path:
    """Write the backbone in float32 to an ONNX file, and return its path.

    Its input is `images`, (B, 3, H, W) float32; its outputs are `x_norm_clstoken` (B, D) and `x_norm_patchtokens`
    (B, N, D). B, H and W may change from call to call; H and W are multiples of the patch size. The file's own
    description tells the preprocessing.
    SeenitError where `onnxscript` is missing, or where the file is there or cannot be written.

    >>> from indexer import Backbone
    >>> export_onnx(Backbone.load("auto"), "backbone.onnx").name
    'backbone.onnx'
    """
    file = Path(file)
    if file.exists() or file.is_symlink():
        raise SeenitError(f"{file} is there already and is not overwritten; name another file")
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise SeenitError(
            "exporting needs onnx and onnxscript; install them with: pip install onnx onnxscript"
        ) from None
    from .resolve import choose_backbone

    network = OnnxBackbone(build_model(load_checkpoint(choose_backbone(backbone.spec, offline=True).path))).eval()
    size = backbone.patch_size
    batch, rows, cols = torch.export.Dim("batch"), torch.export.Dim("rows", min=2), torch.export.Dim("cols", min=2)
    try:
        with atomic_path(file) as temporary, _quietly():
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 3, 5 * size, 3 * size),),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["x_norm_clstoken", "x_norm_patchtokens"],
                dynamic_shapes={"images": {0: batch, 2: size * rows, 3: size * cols}},
                verbose=False,
            )
            assert program is not None
            proto = program.model_proto
            proto.doc_string = preprocessing_note(backbone.preprocessing, size)
            onnx.helper.set_model_props(proto, {"backbone": backbone.name, "sha256": backbone.hash})
            temporary.write_bytes(proto.SerializeToString())
    except OSError as error:
        raise SeenitError(f"cannot write {file}: {os_reason(error)}; name another file") from None
    except ValueError as error:  # protobuf's own limit
        raise SeenitError(
            f"{backbone.name} cannot be one ONNX file ({first_line(error)}); take a smaller one"
        ) from None
    return file


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's words on torchvision, whose operators no backbone has, and on names that torch itself uses."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*treespec")
            yield
    finally:
        log.setLevel(before)


def preprocessing_note(preprocessing: Preprocessing, patch_size: int) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    return (
        f"images: RGB in sRGB, upright, values / 255, minus mean ({mean}), divided by deviation ({std});"
        f" (B, 3, H, W) float32, H and W multiples of {patch_size}"
    )
