"""What each step of the descriptor and of the reranking gains or costs, on photos with known answers.

    python tests/benchmarks/descriptor_ablation.py DATA_FOLDER
    python tests/benchmarks/descriptor_ablation.py DATA_FOLDER --prior-from FOLDER_OF_OTHER_PHOTOS

DATA_FOLDER holds one folder for each set and `distractors`, each with a manifest.csv. Every image goes through the
backbone once (twice for queries); all rows of the table are made from those features, with every distance computed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from indexer.backbone.backbone import Backbone
from indexer.descriptor.config import DESCRIPTOR_CONFIGS as OFFERED
from indexer.descriptor.config import DescriptorConfig
from indexer.descriptor.embedder import Embedder
from indexer.descriptor.features import CropFeatures
from indexer.descriptor.patch_codec import PatchTokens, pack_patches
from indexer.descriptor.pooling import PooledFeatures, pool
from indexer.descriptor.viewed_images import ViewedImages
from indexer.descriptor.whitening import Whitening, apply_whitening
from indexer.descriptor.whitening_fit import fit_whitening, prior_from
from indexer.images.decode import decode_file, is_image
from indexer.images.find import FoundFile, find_files
from indexer.images.metadata import content_id
from indexer.images.preprocess import detail_px, preprocess
from retrieval.evaluate.ground_truth import Task, make_task, read_ground_truth_csv
from retrieval.evaluate.metrics import Quality, evaluate_ranking
from retrieval.query.crops import query_crops
from retrieval.query.encoder import read_query
from retrieval.rerank import geometry as match
from retrieval.rerank.fuse import DISTINCTIVENESS_SCALE, INLIER_SCALE, fuse_scores
from retrieval.rerank.patches import batch_patches
from retrieval.rerank.rerank import Comparison

X = TypeVar("X")
SETS = ("smvs_dvd_covers", "mcv_paintings", "smvs_landmarks", "paris", "grocery")
FULL = DescriptorConfig()
CONFIGS = {
    "last CLS": DescriptorConfig(cls_depths=(1.0,), mean_depths=()),
    "two CLS": DescriptorConfig(mean_depths=()),
    "full": FULL,
    "compact": OFFERED["compact"],
    "every patch": OFFERED["full"],
}
RERANKED = 100
COUNTS = (1, 10, 30, 100)  # images that statistics are fitted on
EXPANDED = 3  # neighbours


@dataclass(frozen=True)
class Features:
    """One set as the steps see it: for each descriptor config the pooled images, one batch each."""

    task: Task
    gallery: dict[str, list[PooledFeatures]]
    queries: dict[str, list[PooledFeatures]]
    looks: list[list[PooledFeatures]]  # of each query, with every patch: the whole, its middle, that turned level


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--prior-from", type=Path, help="photos that are in none of the sets")
    arguments = parser.parse_args()
    backbone = Backbone.load(arguments.backbone)
    prior = backbone.prior
    if arguments.prior_from:
        found = [one for one in find_files([arguments.prior_from]) if isinstance(one, FoundFile)]
        photos = [Path(one.path) for one in found if is_image(one.path)]
        prior = prior_from(pool_all(backbone, photos, arguments.resolution)["full"], FULL)
    distractors = read_ground_truth_csv(arguments.data / "distractors" / "manifest.csv")
    shared = pool_all(backbone, make_task([], distractors).gallery, arguments.resolution)
    table: dict[str, list[Quality]] = {}
    for name in arguments.sets:
        images = read_ground_truth_csv(arguments.data / name / "manifest.csv")
        own = pool_all(backbone, make_task(images).gallery, arguments.resolution)
        task = make_task(images, distractors)
        asked = [query.path for query in task.queries]
        features = Features(
            task=task,
            gallery={step: own[step] + shared[step] for step in CONFIGS},
            queries=pool_all(backbone, asked, arguments.resolution),
            looks=[pool_looks(backbone, path, arguments.resolution) for path in asked],
        )
        for step, similarity in steps(features, backbone, prior, arguments.resolution).items():
            table.setdefault(step, []).append(rank(similarity, task))
    print_table(table, arguments.sets)


def pool_all(backbone: Backbone, paths: Sequence[Path], resolution: int) -> dict[str, list[PooledFeatures]]:
    """Each image's pooled features by every descriptor config."""
    layers = sorted(
        {layer for descriptor_config in CONFIGS.values() for layer in descriptor_config.layers_of(backbone.depth)}
    )
    pooled: dict[str, list[PooledFeatures]] = {step: [] for step in CONFIGS}
    for path in paths:
        pixels = decode_file(path, target_px=detail_px(resolution)).pixels
        seen = preprocess(pixels, resolution=resolution, patch_size=backbone.patch_size)
        outputs = dict(zip(layers, backbone.intermediate(seen[None], layers), strict=True))
        for step, descriptor_config in CONFIGS.items():
            given = [outputs[layer] for layer in descriptor_config.layers_of(backbone.depth)]
            pooled[step].append(pool(given, descriptor_config, backbone.depth))
    return pooled


def pool_looks(backbone: Backbone, path: Path, resolution: int) -> list[PooledFeatures]:
    """Every crop of one query, with every patch."""
    descriptor_config = CONFIGS["every patch"]
    pooled = []
    for cut in query_crops(read_query(path, None, resolution).pixels):
        seen = preprocess(cut.pixels, resolution=resolution, patch_size=backbone.patch_size)
        outputs = backbone.intermediate(seen[None], descriptor_config.layers_of(backbone.depth))
        pooled.append(pool(outputs, descriptor_config, backbone.depth))
    return pooled


def steps(
    features: Features, backbone: Backbone, prior: dict[str, torch.Tensor] | None, resolution: int
) -> dict[str, np.ndarray]:
    """Each step's similarity (queries, gallery)."""
    raw = [
        torch.cat([pooled.parts for pooled in side["last CLS"]]).flatten(1).numpy()
        for side in (features.queries, features.gallery)
    ]
    made = {"last CLS, raw": raw[0] @ raw[1].T}
    for step in ("last CLS", "two CLS", "full"):
        made[f"{step}, whitened on the corpus"] = compare(features, step, CONFIGS[step], len(features.gallery[step]))
    for count in COUNTS:
        made[f"full, whitened on {count} of it"] = compare(features, "full", FULL, count)
    for count in (*COUNTS, whole := len(features.gallery["full"])):
        of_corpus = rendered(features, backbone, count, resolution)
        share = "all" if count == whole else count  # one name for all sets
        made[f"full, views and {share} of it"] = compare(features, "full", FULL, count, views=of_corpus)
    if prior is None:
        print("this backbone has no prior: the rows with one are left out (see --prior-from)")
    else:
        for count in COUNTS:
            made[f"full, prior and {count} of it"] = compare(features, "full", FULL, count, prior)
    whitening = fit_whitening(features.gallery["full"], FULL, prior)
    gallery = describe(features.gallery["full"], whitening)[0]
    views = [views_of(looks, whitening) for looks in features.looks]
    wholes, with_middles, all_looks = (cosines([of_query[:n] for of_query in views], gallery) for n in (1, 2, None))
    made["full, prior and the corpus"] = wholes
    made["+ the query's middle"] = with_middles
    made["+ turned level"] = all_looks
    packed = pack(features.gallery["full"], whitening, FULL)
    made["+ patches, anywhere"] = rerank(all_looks, views, packed, pairs_alone)
    made["+ patches, one geometry"] = rerank(all_looks, views, packed, support_alone)
    made["+ patches, distinct"] = rerank(all_looks, views, packed, geometry)
    made["  patches of the whole query only"] = rerank(all_looks, [looks[:1] for looks in views], packed, geometry)
    made["  nothing turned level"] = rerank(with_middles, [looks[:2] for looks in views], packed, geometry)
    for step in ("compact", "every patch"):
        of_step = fit_whitening(features.gallery[step], CONFIGS[step], prior)
        seen = [views_of(looks, of_step) for looks in features.looks]
        stored = pack(features.gallery[step], of_step, CONFIGS[step])
        made[f"  tokens: {step}"] = rerank(all_looks, seen, stored, geometry)
    made["+ expansion"] = rerank(expanded(made["+ patches, distinct"], views, gallery), views, packed, geometry)
    return made


def views_of(pooled: list[PooledFeatures], whitening: Whitening) -> list[CropFeatures]:
    """The crops of one query."""
    seen = []
    for one in pooled:
        vectors, tokens = apply_whitening(one, whitening)
        grid = (int(one.positions[0, :, 0].max()) + 1, int(one.positions[0, :, 1].max()) + 1)
        seen.append(CropFeatures(vectors[0], tokens[0], grid))
    return seen


def pack(pooled: list[PooledFeatures], whitening: Whitening, descriptor_config: DescriptorConfig) -> list[bytes]:
    """Each image's patches as an index stores them; positions outside of the true grid's last patch do not matter."""
    packed = []
    for one in pooled:
        tokens = apply_whitening(one, whitening)[1][0]
        positions = one.positions[0].numpy()
        grid = (int(positions[:, 0].max()) + 1, int(positions[:, 1].max()) + 1)
        packed.append(pack_patches(PatchTokens(tokens, positions, grid), descriptor_config.token_bits))
    return packed


def compare(
    features: Features,
    step: str,
    descriptor_config: DescriptorConfig,
    count: int,
    prior: dict[str, torch.Tensor] | None = None,
    views: Sequence[PooledFeatures] = (),
) -> np.ndarray:
    """Similarities with the statistics fitted on `count` images of the gallery, drawn at random."""
    sample = shuffled(features.gallery[step])[:count]
    whitening = fit_whitening(sample, descriptor_config, prior, views)
    return describe(features.queries[step], whitening)[0] @ describe(features.gallery[step], whitening)[0].T


def rendered(features: Features, backbone: Backbone, count: int, resolution: int) -> list[PooledFeatures]:
    """Views of `count` images of the gallery as an index of a backbone without a prior renders them."""
    embedder = Embedder(replace(backbone, prior=None), resolution, OFFERED["balanced"])
    viewed = ViewedImages(embedder)
    paths, pooled = shuffled(features.task.gallery)[:count], shuffled(features.gallery["full"])[:count]
    for path, one in zip(paths, pooled, strict=True):
        pixels = decode_file(path, target_px=detail_px(resolution)).pixels
        seen = preprocess(pixels, resolution=resolution, patch_size=backbone.patch_size)
        viewed.add([content_id(path.read_bytes())], [seen], one)
    return viewed.render()


def shuffled(items: Sequence[X]) -> list[X]:
    return [items[n] for n in np.random.default_rng(0).permutation(len(items))]


def describe(pooled: list[PooledFeatures], whitening: Whitening) -> tuple[np.ndarray, list[np.ndarray]]:
    described = [apply_whitening(one, whitening) for one in pooled]
    return np.concatenate([vectors for vectors, _ in described]), [tokens[0] for _, tokens in described]


Agreement = tuple[np.ndarray, np.ndarray]  # support and distinct support of each candidate


def geometry(views: list[CropFeatures], packed: list[bytes]) -> Agreement:
    comparison = Comparison(views, packed)
    return comparison.inlier_weight, comparison.distinctiveness


def support_alone(views: list[CropFeatures], packed: list[bytes]) -> Agreement:
    """Without what is distinct: support on the scale of either, so that the patches' weight stays."""
    support = Comparison(views, packed).inlier_weight
    return support, support * (DISTINCTIVENESS_SCALE / INLIER_SCALE)


def pairs_alone(views: list[CropFeatures], packed: list[bytes]) -> Agreement:
    """What all mutual pairs are worth, wherever they point; a third of them, for the scale of inliers ofes."""
    candidates = batch_patches(packed)
    of_views = [match.mutual_pairs(torch.from_numpy(view.tokens), candidates.tokens) for view in views]
    support = torch.stack([(one.cosine - match.FLOOR).clamp(min=0).sum(1) for one in of_views]).amax(0).numpy() / 3
    return support, support * (DISTINCTIVENESS_SCALE / INLIER_SCALE)


def rerank(
    similarity: np.ndarray,
    queries: list[list[CropFeatures]],
    packed: list[bytes],
    agreement: Callable[[list[CropFeatures], list[bytes]], Agreement],
) -> np.ndarray:
    """The first candidates by the fused score; they stay before the rest."""
    reranked = similarity.copy()
    for row, views in enumerate(queries):
        first = np.argsort(-similarity[row])[:RERANKED]
        reranked[row, first] = fuse_scores(similarity[row, first], *agreement(views, [packed[n] for n in first])) + 3
    return reranked


def cosines(views: list[list[CropFeatures]], gallery: np.ndarray) -> np.ndarray:
    """Of each query the best view's with each image of the gallery, (Q, G)."""
    return np.stack([(np.stack([view.vector for view in looks]) @ gallery.T).max(0) for looks in views])


def expanded(similarity: np.ndarray, views: list[list[CropFeatures]], gallery: np.ndarray) -> np.ndarray:
    """Cosines of the queries with their first neighbours mixed in, of the best view."""
    mixed = []
    for row, looks in zip(similarity, views, strict=True):
        near = gallery[np.argsort(-row)[:EXPANDED]]  # (E, G)
        vectors = np.stack([view.vector for view in looks])  # (V, G)
        vectors = vectors + np.maximum(vectors @ near.T, 0) ** 3 @ near
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        mixed.append([replace(view, vector=vector) for view, vector in zip(looks, vectors, strict=True)])
    return cosines(mixed, gallery)


def rank(similarity: np.ndarray, task: Task) -> Quality:
    order = np.argsort(-similarity, axis=1, kind="stable")
    rankings = {query.path: [task.gallery[n] for n in row] for query, row in zip(task.queries, order, strict=True)}
    return evaluate_ranking(rankings, task.queries)


def print_table(table: dict[str, list[Quality]], sets: Sequence[str]) -> None:
    print("recall@1, recall@10, mAP;  (+/-) mAP against the row before")
    print(f"{'':34}" + "".join(f"{name:>26}" for name in sets))
    before: list[Quality] = []
    for step, qualities in table.items():
        cells = []
        for number, quality in enumerate(qualities):
            mean = quality.mean_average_precision
            change = f" ({mean - before[number].mean_average_precision:+.2f})" if before else ""
            cells.append(f"{quality.recall[1]:.2f} {quality.recall[10]:.2f} {mean:.3f}{change:8}".rjust(26))
        print(f"{step:34}" + "".join(cells))
        before = qualities


if __name__ == "__main__":
    main()
