"""How good frozen features are, by every probe that the trainer has, for random weights and for given backbones.

    python tests/benchmarks/feature_quality.py ../shared/data [BACKBONE ...] [--images 400] [--json]

k-NN, linear probe and few shots on `imagenette_probe`; linear segmentation on `coco_seg`, in 5 folds; linear depth on
rooms that are drawn here, with boxes and balls in them, whose depth is known at every pixel.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from indexer.backbone.backbone import Backbone
from indexer.backbone.vit import Architecture, VisionTransformer
from trainer.evaluate.dense import depth, embed_pairs, segmentation
from trainer.evaluate.dense_sets import ImagePairs, read_pairs
from trainer.evaluate.labelled import LabelledImages, as_backbone, embed_labelled, read_labelled
from trainer.evaluate.probes import few_shot, format_table, knn, linear

FIELD_OF_VIEW = 0.9  # half the image's side over the distance of its plane

# Paints a surface where it is the nearest: distances (S, S), normals (S, S, 3) or (3,), colours (S, S, 3)
Put = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def draw_room(seed: int, size: int = 224) -> tuple[np.ndarray, np.ndarray]:
    """A room with balls and boxes, seen from inside by casting a ray through each pixel.

    returns  (S, S, 3) uint8, and (S, S) float32 depth in metres along the camera's axis
    """
    rng = np.random.default_rng(seed)
    half_width, eye_height, room_height, room_length = rng.uniform([1.5, 1.2, 2.3, 4], [3.5, 1.8, 3.2, 9])
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis * FIELD_OF_VIEW, axis * FIELD_OF_VIEW)  # y points down
    pitch, yaw = rng.uniform([-0.15, -0.4], [0.25, 0.4])
    rays = np.stack([x, y, np.ones_like(x)], -1)  # (S, S, 3); a hit's parameter is its depth
    rays = rays @ _turn(0, pitch).T @ _turn(1, yaw).T

    nearest = np.full((size, size), np.inf)
    colours = np.zeros((size, size, 3))
    light = rng.normal(size=3) * 0.5 + np.array([0, -1, -0.5])
    light /= np.linalg.norm(light)

    def put(distance: np.ndarray, normal: np.ndarray, colour: np.ndarray) -> None:
        closer = (distance > 0.05) & (distance < nearest)
        shade = 0.45 + 0.55 * np.abs((normal * light).sum(-1))
        colours[closer] = (colour * shade[..., None])[closer]
        nearest[closer] = distance[closer]

    planes = [
        (1, eye_height),
        (1, eye_height - room_height),
        (0, half_width),
        (0, -half_width),
        (2, room_length),
        (2, -1.0),
    ]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for number, (dimension, offset) in enumerate(planes):
            distance = offset / rays[..., dimension]
            points = rays * distance[..., None]
            u, v = (points[..., d] for d in range(3) if d != dimension)
            put(distance, np.eye(3)[dimension], _pattern(rng, u, v, plain=number == 1))
        for _ in range(rng.integers(2, 7)):
            middle = rng.uniform([-half_width * 0.8, 0, 1.2], [half_width * 0.8, 0, room_length * 0.9])
            radius = rng.uniform(0.15, 0.6)
            middle[1] = eye_height - radius
            (_put_ball if rng.random() < 0.5 else _put_box)(rng, put, rays, middle, radius)
    noise = rng.normal(scale=4, size=colours.shape)
    return (colours * 255 + noise).clip(0, 255).astype(np.uint8), nearest.astype(np.float32)


def _put_ball(rng: np.random.Generator, put: Put, rays: np.ndarray, middle: np.ndarray, radius: float) -> None:
    a, b = (rays * rays).sum(-1), rays @ middle
    discriminant = b * b - a * (middle @ middle - radius**2)
    distance = np.where(discriminant > 0, (b - np.sqrt(np.maximum(discriminant, 0))) / a, np.inf)
    normal = (rays * distance[..., None] - middle) / radius
    put(distance, np.nan_to_num(normal), _pattern(rng, normal[..., 0] * 2, normal[..., 1] * 2))


def _put_box(rng: np.random.Generator, put: Put, rays: np.ndarray, middle: np.ndarray, radius: float) -> None:
    turn = _turn(1, rng.uniform(0, np.pi))
    local, start = rays @ turn, -middle @ turn
    first, second = ((sign * radius - start) / local for sign in (-1, 1))
    entry, leaving = np.minimum(first, second), np.maximum(first, second).min(-1)
    distance = np.where(entry.max(-1) < leaving, entry.max(-1), np.inf)
    side = entry.argmax(-1)
    points = local * distance[..., None] + start
    u = np.where(side == 0, points[..., 1], points[..., 0])
    v = np.where(side == 2, points[..., 1], points[..., 2])
    put(distance, np.eye(3)[side] @ turn.T, _pattern(rng, u * 2, v * 2))


def _pattern(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, plain: bool = False) -> np.ndarray:
    """Boards, tiles, waves or one colour, over a surface measured in metres.  (S, S, 3)"""
    one, other = rng.uniform(0.1, 0.95, (2, 3))
    kind, period = rng.integers(0, 4), rng.uniform(0.15, 0.8)
    if plain or kind == 0:
        mixed = np.zeros(u.shape)
    elif kind == 1:
        mixed = (np.floor(u / period) % 2).astype(float)
    elif kind == 2:
        mixed = ((np.floor(u / period) + np.floor(v / period)) % 2).astype(float)
    else:
        mixed = 0.5 + 0.5 * np.sin(u / period * 3) * np.cos(v / period * 2)
    mixed = np.nan_to_num(mixed)[..., None]
    return one * (1 - mixed) + (0.6 * one + 0.4 * other) * mixed


def _turn(around: int, angle: float) -> np.ndarray:
    """A rotation (3, 3) about an axis."""
    a, b = ((1, 2), (2, 0))[around]
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def write_rooms(folder: Path, count: int) -> None:
    """FOLDER/images/*.png and FOLDER/depth/*.npy."""
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        pixels, metres = draw_room(seed)
        Image.fromarray(pixels).save(folder / "images" / f"{seed:04d}.png")
        np.save(folder / "depth" / f"{seed:04d}.npy", metres)


def random_backbone() -> Backbone:
    torch.manual_seed(0)
    model = VisionTransformer(Architecture()).eval().requires_grad_(False)
    return as_backbone(model.to(torch.bfloat16), "random ViT-S/14")


def first_of_each_class(images: LabelledImages, count: int) -> LabelledImages:
    """About `count` of the images, as many of each class."""
    each = max(1, count // len(images.classes))
    kept: list[int] = []
    for label in range(len(images.classes)):
        kept += [n for n, own in enumerate(images.labels) if own == label][:each]
    return LabelledImages(tuple(images.paths[n] for n in kept), tuple(images.labels[n] for n in kept), images.classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("backbones", nargs="*", default=["seenit_vits14"])
    parser.add_argument("--images", type=int, default=800, help="training images of the class probes")
    parser.add_argument("--dense-images", type=int, default=100)
    parser.add_argument("--resolution", type=int, default=336, help="of the dense probes, pixels")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()

    probe = asked.data / "imagenette_probe"
    train = first_of_each_class(read_labelled(probe / "train"), asked.images)
    val = first_of_each_class(read_labelled(probe / "val", train.classes), asked.images // 2)
    masks = read_pairs(asked.data / "coco_seg", "masks")
    masks = ImagePairs(masks.images[: asked.dense_images], masks.targets[: asked.dense_images])
    rows, results = [], []
    with tempfile.TemporaryDirectory() as rooms:
        write_rooms(Path(rooms), asked.dense_images)
        depths = read_pairs(rooms, "depth")
        for spec in [None, *asked.backbones]:
            backbone = random_backbone() if spec is None else Backbone.load(spec)
            features = [embed_labelled(backbone, images) for images in (train, val)]
            neighbours, probe_scores, shots = knn(*features), linear(*features), few_shot(*features)
            classes = segmentation(embed_pairs(backbone, masks, resolution=asked.resolution))
            metres = depth(embed_pairs(backbone, depths, resolution=asked.resolution))
            result: dict[str, Any] = {"backbone": backbone.name}
            for score in (neighbours, probe_scores, shots, classes, metres):
                print(f"\n{backbone.name}: {type(score).__name__}\n{score.table()}", file=sys.stderr, flush=True)
                result[type(score).__name__] = asdict(score)
            results.append(result)
            rows.append(
                [
                    backbone.name,
                    f"{100 * neighbours.best:.1f}",
                    f"{100 * probe_scores.best.accuracy:.1f}",
                    ", ".join(f"{s.shots}: {100 * s.accuracy:.0f} ± {100 * s.interval:.1f}" for s in shots.scores),
                    f"{100 * classes.mean_iou:.1f}",
                    f"{metres.rmse:.2f}",
                    f"{100 * metres.within_25_percent:.1f}",
                ]
            )
    if asked.json:
        print(json.dumps(results))
    else:
        heads = ["backbone", "k-NN %", "linear %", "shots: %", "mIoU %", "depth RMSE m", "delta<1.25 %"]
        print(format_table(heads, rows))


if __name__ == "__main__":
    main()
