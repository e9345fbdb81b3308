"""Vectors mixed with those of their neighbours: query expansion and database-side augmentation.

Both are arithmetic on vectors at hand, (N, G) float32 with rows of length 1; whoever calls them reads the neighbours.
"""

from dataclasses import replace

import numpy as np

from ..query.query import EncodedQuery, unit_vector

ALPHA = 3  # power of the cosines; the value of Radenovic et al., 2018


def expand_query(query: EncodedQuery, neighbours: np.ndarray) -> EncodedQuery:
    """Alpha query expansion (Radenovic et al., 2018): each crop's vector plus its neighbours', by cosine ** ALPHA.

    neighbours  (N, G) the vectors of the first results; without any, the query stays as it is
    """
    if not len(neighbours):
        return query
    views = []
    for view in query.views:
        weights = np.maximum(neighbours @ view.vector, 0) ** ALPHA  # (N,)
        views.append(replace(view, vector=unit_vector(view.vector + weights @ neighbours)))
    return replace(query, views=tuple(views))


def augment_vector(vector: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Database-side augmentation (Arandjelovic and Zisserman, 2012): a vector (G,) mixed with those of its neighbours.

    neighbours  (N, G), the vector itself among them
    returns     (G,) of length 1

    It is done for the candidates at hand, so that an index need not be rebuilt as it grows.
    """
    return unit_vector((np.maximum(neighbours @ vector, 0) ** ALPHA) @ neighbours)


def best_cosine(query: EncodedQuery, vector: np.ndarray) -> float:
    """The cosine of the query's crop that is nearest to a vector (G,)."""
    return max(float(view.vector @ vector) for view in query.views)
