"""Vectors that tell kinds of images, from those that tell single images: most of the whitening taken back.

Whitening plays down what many images share, which is what copies are found by, and what a kind is. A `Whitening` is
one affine map, so its stretching can be undone where the vectors are. On a pool of ten classes at 100:1, with the
shipped backbone, 60 images drawn at random are worth 4.8 equal classes, drawn from clusters of the whitened vectors
5.0, from clusters of these 6.1 (means of 5 and more draws; 16 clusters, 10 resamplings).
"""

from pathlib import Path

import torch

from indexer.descriptor.whitening import Whitening

from .embeddings import Embeddings, unit_rows
from .whole_files import claim_work_folder, read_array, write_array

TAKEN_BACK = 0.75  # exponent of the whitening's inverse; 1 takes it back wholly


# N vectors, G numbers each
def vectors_of_kinds(embeddings: Embeddings, whitening: Whitening, folder: Path) -> Embeddings:
    """The vectors (N, G) without most of their whitening, in shards in `folder`; shards that are there are kept.

    whitening  the statistics that made the vectors

    With the whitening's projection P, unit(x P) becomes unit(x P (P^T P)^-t): for t = 1 its lengths are those before.
    """
    claim_work_folder(folder, f"kinds {TAKEN_BACK} fit {whitening.id} of {embeddings.digest()}")
    back = unstretch(whitening.projection).numpy()  # (G, G)
    shards = []
    for number, (_, block) in enumerate(embeddings.blocks()):
        path = folder / f"{number:05d}.npy"
        if not path.is_file():
            write_array(path, unit_rows(block @ back)[0])
        shards.append(read_array(path))
    return Embeddings(tuple(shards))


def unstretch(projection: torch.Tensor) -> torch.Tensor:
    """(L * D, G) -> (G, G) float32, symmetric: (P^T P)^-t."""
    values, vectors = torch.linalg.eigh((projection.T @ projection).double())
    values = values.clamp(min=float(values.max()) * 1e-9)  # a direction without variance in the sample
    return ((vectors * values.pow(-TAKEN_BACK)) @ vectors.T).float()
