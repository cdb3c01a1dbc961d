"""Encodes teacher scores, each token's top-k distribution, as small integers for the store.

The k ids of a token are sorted and stored as gaps, the first gap from 0, which take fewer bits than ids. A probability
p is stored as its *root*, the integer nearest to 511·√p, and the left-out mass likewise: a root that is off by 1 moves
a distribution by the same Hellinger distance whatever p is. Decoding divides the squares of a token's k + 1 roots by
their sum, so that the result is a distribution again.
"""

import numpy as np

from masters_ray.errors import StoreError
from masters_ray.records import TokenScores

LEVELS = 511
_BLOCK = 2048  # tokens decoded at a time, so that their arrays stay in the processor's cache
_LOG = 2 * np.log(np.maximum(np.arange(LEVELS + 1), 0.25)).astype(np.float32)
"""float32 [LEVELS + 1], log of each root's square; root 0, a probability rounded to 0, counts as 0.25."""


def encode(scores: TokenScores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the scores of T tokens as (gaps uint32 [T, k], roots uint16 [T, k], left-out roots uint16 [T]).
    Raises StoreError when a token has an id twice or below 0, or a probability is not between 0 and 1."""
    order = np.argsort(scores.top_ids, axis=-1)
    gaps = np.diff(np.take_along_axis(scores.top_ids, order, axis=-1), axis=-1, prepend=0)
    if (gaps[:, 1:] <= 0).any() or (gaps[:, :1] < 0).any():
        raise StoreError("scores to store: expected k different token ids of 0 and more at each token")
    roots = _roots(np.exp(np.take_along_axis(scores.top_logprobs, order, axis=-1)))
    return gaps.astype(np.uint32), roots, _roots(scores.left_out)


def decode(gaps: np.ndarray, roots: np.ndarray, left_out_roots: np.ndarray) -> TokenScores:
    """Inverts ``encode``; ids ascend. gaps and roots may be flat, [T·k]. Raises StoreError when sizes do not match."""
    tokens = len(left_out_roots)
    k = roots.size // tokens if tokens else 0
    if gaps.size != tokens * k or roots.size != tokens * k:
        raise StoreError(f"stored scores: {gaps.size} ids and {roots.size} probabilities for {tokens} tokens")
    gaps, roots = gaps.reshape(tokens, k).view(np.int32), roots.reshape(tokens, k)
    top_ids, top_logprobs = np.empty((tokens, k), np.int32), np.empty((tokens, k), np.float32)
    left_out = np.empty(tokens, np.float32)
    for start in range(0, tokens, _BLOCK):
        part = slice(start, start + _BLOCK)
        np.cumsum(gaps[part], axis=-1, out=top_ids[part])
        wide, rest = roots[part].astype(np.float32), np.square(left_out_roots[part], dtype=np.float32)
        total = np.einsum("tk,tk->t", wide, wide) + rest
        np.take(_LOG, roots[part], mode="clip", out=top_logprobs[part])
        top_logprobs[part] -= np.log(total)[:, None]
        left_out[part] = rest / total
    return TokenScores(top_ids=top_ids, top_logprobs=top_logprobs, left_out=left_out)


def _roots(probabilities: np.ndarray) -> np.ndarray:
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all() and (probabilities <= 1.001).all()):
        raise StoreError("scores to store: expected probabilities between 0 and 1")
    return np.rint(LEVELS * np.sqrt(np.minimum(probabilities, 1))).astype(np.uint16)
