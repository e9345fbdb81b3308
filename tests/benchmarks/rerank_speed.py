"""What comparing candidates patch by patch costs besides the network and the store: 100 of them, a query in two views.

    python tests/benchmarks/rerank_speed.py

Tokens are random, half of each image's taken from the query, so that there are pairs to be agreed on.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from indexer.descriptor.config import DESCRIPTOR_CONFIGS, DescriptorConfig
from indexer.descriptor.features import CropFeatures
from indexer.descriptor.patch_codec import PatchTokens, pack_patches
from retrieval.rerank.evidence import Evidence
from retrieval.rerank.patches import batch_patches
from retrieval.rerank.rerank import Comparison, to_evidence

GRID = (16, 16)
PATCHES = GRID[0] * GRID[1]
SHOWN = 10  # results whose evidence is told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    views = [CropFeatures(np.zeros(1, np.float32), unit(rng, PATCHES, 192), GRID) for _ in range(2)]
    print(f"{arguments.candidates} candidates, two views of {PATCHES} patches; medians of {arguments.repeats}, ms")
    print("| tokens | bytes an image | unpack | compare, all | evidence of 10 |\n|---|---|---|---|---|")
    for name, descriptor_config in DESCRIPTOR_CONFIGS.items():
        packed = [candidate(rng, views[0], descriptor_config) for _ in range(arguments.candidates)]
        comparison = Comparison(views, packed)
        timed = [
            median(partial(batch_patches, packed), arguments.repeats),
            median(partial(Comparison, views, packed), arguments.repeats),
            median(partial(tell, comparison), arguments.repeats),
        ]
        print(f"| {name} | {len(packed[0]):,} | " + " | ".join(f"{1e3 * seconds:.1f}" for seconds in timed) + " |")


def tell(comparison: Comparison) -> list[Evidence]:
    return [to_evidence(comparison.match(n), 0.5) for n in range(SHOWN)]


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def candidate(rng: np.random.Generator, view: CropFeatures, descriptor_config: DescriptorConfig) -> bytes:
    """An image of which every second patch is the query's, where the query has it."""
    cells = np.sort(rng.choice(PATCHES, min(descriptor_config.num_tokens, PATCHES), replace=False))
    tokens = unit(rng, len(cells), descriptor_config.token_dim)
    tokens[::2] = view.tokens[cells[::2]]
    positions = np.stack(np.divmod(cells, GRID[1]), axis=1).astype(np.uint8)
    return pack_patches(PatchTokens(tokens, positions, GRID), descriptor_config.token_bits)


def median(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


if __name__ == "__main__":
    main()
