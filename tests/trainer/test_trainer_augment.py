"""What the crops of an image look like: the distribution that is drawn, and two engines that agree on it."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from trainer.data.augment import VIEW, Augmentation, Crop, blur_kernel, cut_with_pillow, draw_views
from trainer.data.augment_torch import cut_with_torch

GLOBAL = Crop(56, (0.32, 1.0), 1.0, 0.0)
SECOND = Crop(56, (0.32, 1.0), 0.1, 0.2)
LOCAL = Crop(28, (0.05, 0.32), 0.5, 0.0)
REFERENCE = Augmentation((GLOBAL, SECOND, LOCAL, LOCAL))


def draw_many(augmentation: Augmentation, count: int, height: int = 300, width: int = 400) -> np.ndarray:
    """(count, V) views"""
    return np.stack([draw_views(np.random.default_rng((7, n)), height, width, augmentation) for n in range(count)])


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth colours with edges, as photos have."""
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC))


def neutral(count: int, height: int, width: int) -> np.ndarray:
    """Views of the whole image that change nothing."""
    views = np.zeros(count, VIEW)
    views["height"], views["width"] = height, width
    return views


@pytest.mark.slow
def test_probabilities_and_ranges_are_the_references() -> None:
    views = draw_many(REFERENCE, 4000)
    share = {name: views[name].mean(0) for name in ("flip", "jitter", "grey", "solarise")}
    assert np.allclose(share["flip"], 0.5, atol=0.03)
    assert np.allclose(share["jitter"], 0.8, atol=0.03)
    assert np.allclose(share["grey"], 0.2, atol=0.03)
    assert np.allclose(share["solarise"], [0, 0.2, 0, 0], atol=0.03)
    assert np.allclose((views["sigma"] > 0).mean(0), [1, 0.1, 0.5, 0.5], atol=0.03)
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ):
        values = views[name].ravel()
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high >= values.max() > high - 0.01 * (high - low)
        assert abs(values.mean() - (low + high) / 2) < 0.02 * (high - low)
    sigma = views["sigma"][:, 0]
    assert sigma.min() >= 0.1 and sigma.max() <= 2.0 and abs(sigma.mean() - 1.05) < 0.03
    for place in range(4):  # each step as often in each place
        assert np.allclose(
            np.bincount(views["order"][..., place].ravel()) / views["order"][..., place].size, 0.25, atol=0.02
        )


@pytest.mark.slow
def test_boxes_have_uniform_area_and_symmetric_aspect() -> None:
    small = Augmentation((Crop(28, (0.05, 0.32), 0, 0),))
    views = draw_many(small, 4000, 400, 400)[:, 0]  # in a square every such box fits, so that nothing is rejected
    area = views["height"] * views["width"] / 400**2
    assert abs(area.mean() - 0.185) < 0.005 and abs(area.std() - 0.27 / math.sqrt(12)) < 0.005
    aspect = np.log(views["width"] / views["height"])
    assert abs(aspect.mean()) < 0.01 and abs(aspect.std() - 2 * math.log(4 / 3) / math.sqrt(12)) < 0.01
    assert views["top"].min() == 0 and (views["top"] + views["height"]).max() == 400
    middle = (views["left"] + views["width"] / 2).mean()
    assert abs(middle - 200) < 5


@pytest.mark.parametrize("size", [(300, 400), (1, 1), (2, 900), (900, 2), (5, 3)])
def test_every_box_lies_in_the_image(size: tuple[int, int]) -> None:
    views = draw_many(REFERENCE, 300, *size)
    assert views["height"].min() >= 1 and views["width"].min() >= 1
    assert views["top"].min() >= 0 and (views["top"] + views["height"]).max() <= size[0]
    assert views["left"].min() >= 0 and (views["left"] + views["width"]).max() <= size[1]


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    first, again, other = (draw_views(np.random.default_rng((1, n)), 300, 400, REFERENCE) for n in (0, 0, 1))
    assert (first == again).all() and not (first == other).all()


def test_detail_is_enough_for_the_smallest_crop() -> None:
    augmentation = Augmentation((Crop(224, (0.32, 1.0), 0, 0), Crop(98, (0.05, 0.32), 0, 0)))
    side = augmentation.detail_px
    assert side * math.sqrt(0.05) >= 98 > (side - 2) * math.sqrt(0.05)
    assert Augmentation.from_json(augmentation.as_json()) == augmentation


def test_engines_agree_on_every_image() -> None:
    """The same table, carried out by both: less than a grey level apart on average, few pixels by more than four."""
    images = [
        photo(n, height, width) for n, (height, width) in enumerate([(90, 120), (200, 64), (40, 40), (77, 131)] * 6)
    ]
    views = np.stack(
        [draw_views(np.random.default_rng((3, n)), p.shape[0], p.shape[1], REFERENCE) for n, p in enumerate(images)]
    )
    views["solarise"] = False  # a level's difference at the threshold becomes a reversal; it has a test of its own
    by_pillow = [cut_with_pillow(image, table, REFERENCE.crops) for image, table in zip(images, views, strict=True)]
    for first, last, crop in ((0, 2, GLOBAL), (2, 4, LOCAL)):
        expected = np.stack([cuts[first:last] for cuts in by_pillow]).astype(float)  # (B, V, S, S, 3)
        by_torch = cut_with_torch(images, views[:, first:last], crop.size).movedim(2, -1).numpy()
        assert by_torch.shape == expected.shape
        difference = np.abs(by_torch - expected)
        assert difference.mean() < 1
        assert (difference > 4).mean() < 0.02
        assert abs(by_torch.mean() - expected.mean()) < 0.5
        assert abs(by_torch.std() - expected.std()) < 0.5


@pytest.mark.slow
def test_engines_have_the_same_statistics() -> None:
    """Drawn separately, means, deviations and sharpness agree."""
    augmentation = Augmentation((SECOND,), flip=0.5)
    image = photo(5, 80, 100)
    tables = [draw_many(augmentation, 400, 80, 100), draw_many(augmentation, 800, 80, 100)[400:]]
    by_pillow = np.stack([cut_with_pillow(image, table, augmentation.crops)[0] for table in tables[0]]).astype(float)
    by_torch = cut_with_torch([image] * 400, tables[1], SECOND.size)[:, 0].movedim(1, -1).numpy()
    for measure in (
        lambda x: x.mean((1, 2)),  # (n, 3)
        lambda x: x.std((1, 2)),
        lambda x: np.abs(np.diff(x, axis=2)).mean((1, 2)),
        lambda x: np.abs(x[..., 0] - x[..., 2]).mean((1, 2))[:, None],
    ):
        a, b = measure(by_pillow), measure(by_torch)
        noise = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        assert (np.abs(a.mean(0) - b.mean(0)) < 4 * noise).all()
        assert (np.abs(a.std(0) / b.std(0) - 1) < 0.2).all()


def test_pillow_engine_against_pillow_itself() -> None:
    image = photo(1, 60, 90)
    views = neutral(3, 60, 90)
    views["flip"][1] = True
    views["grey"][2] = True
    plain, flipped, grey = cut_with_pillow(image, views, [Crop(56, (1, 1), 0, 0)] * 3)
    resized = Image.fromarray(image).resize((56, 56), Image.Resampling.BICUBIC)
    assert (plain == np.asarray(resized)).all()
    assert (flipped == plain[:, ::-1]).all()
    assert (grey == np.asarray(resized.convert("L").convert("RGB"))).all()


def test_blur_is_gaussian_in_both_engines() -> None:
    """A sigma that nine pixels hold whole blurs as Pillow's own filter does."""
    image = photo(2, 56, 56)
    views = neutral(1, 56, 56)
    views["sigma"] = 1.0
    expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.0)))[8:-8, 8:-8].astype(float)
    by_pillow = cut_with_pillow(image, views, [GLOBAL])[0][8:-8, 8:-8]
    by_torch = cut_with_torch([image], views[None], 56)[0, 0].movedim(0, -1).numpy()[8:-8, 8:-8]
    assert np.abs(by_pillow - expected).mean() < 0.8
    assert np.abs(by_torch - expected).mean() < 0.8
    assert np.abs(image[8:-8, 8:-8] - expected).mean() > 1.5  # it did something
    assert blur_kernel(2.0).sum() == pytest.approx(1) and len(blur_kernel(0.1)) == 9


def test_solarise_inverts_from_128_up() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)[None].repeat(256, 0)  # (256, 256, 3)
    views = neutral(1, 256, 256)
    views["solarise"] = True
    expected = [*range(128), *range(127, -1, -1)]
    crop = Crop(256, (1, 1), 0, 1)
    assert cut_with_pillow(ramp, views, [crop])[0][0, :, 0].tolist() == expected
    assert cut_with_torch([ramp], views[None], 256)[0, 0, 0, 0].tolist() == expected


def test_hue_turns_red_to_yellow_side_alike() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    views = neutral(1, 8, 8)
    views["jitter"] = True
    views["order"] = [3, 0, 1, 2]
    for name in ("brightness", "contrast", "saturation"):
        views[name] = 1
    views["hue"] = 0.1
    by_pillow = cut_with_pillow(red, views, [Crop(8, (1, 1), 0, 0)])[0][0, 0].astype(int)
    by_torch = cut_with_torch([red], views[None], 8)[0, 0, :, 0, 0].numpy()
    assert by_pillow[1] > 100 and by_pillow[0] == 200 and by_pillow[2] == 0
    assert np.abs(by_pillow - by_torch).max() <= 4


def test_a_batch_of_very_different_images_is_cropped_as_one_by_one() -> None:
    images = [photo(n, *size) for n, size in enumerate([(30, 2000), (2000, 30), (40, 50), (41, 50)])]
    views = np.stack(
        [draw_views(np.random.default_rng(n), p.shape[0], p.shape[1], REFERENCE)[2:] for n, p in enumerate(images)]
    )
    together = cut_with_torch(images, views, LOCAL.size)
    alone = torch.cat([cut_with_torch([p], v[None], LOCAL.size) for p, v in zip(images, views, strict=True)])
    assert (together - alone).abs().mean() < 0.01
