"""The agent's way round the T: shortest paths over points that keep off the T's corners."""

from __future__ import annotations

import heapq

import numpy as np

from unified_video_action.env.pusht.geometry import CONVEX_CORNERS, OUTLINE, Pose, clearance, to_table

REACH = (14.0, 498.0)  # the agent's centre stays between these, in x and y
BEVEL = np.tan(np.pi / 8)  # paths cut a right corner as an octagon's side does
SAMPLE = 6.0  # pixels between the points at which a straight piece of a path is checked


def inside_reach(points: np.ndarray) -> np.ndarray:
    """Whether the agent can be at points (..., 2): (...)."""
    return ((points > REACH[0]) & (points < REACH[1])).all(axis=-1)


def find_path(start: np.ndarray, end: np.ndarray, pose: Pose, margin: float) -> np.ndarray | None:
    """The shortest way from `start` to `end` whose points keep `margin` pixels from the T; None when there is none.

    `start` and `end` themselves may be closer: a piece that touches one of them may be as close as that point is.
    Returns (K, 2), K >= 2, both ends included.
    """
    corners = to_table(bypass_points(margin), pose)
    nodes = np.concatenate([[start, end], corners[inside_reach(corners)]])
    neighbours = visible_pairs(nodes, pose, margin)
    lengths = np.linalg.norm(nodes[:, None] - nodes[None], axis=-1)

    best = {0: 0.0}
    came_from: dict[int, int] = {}
    queue = [(0.0, 0)]
    while queue:
        length, node = heapq.heappop(queue)
        if node == 1:
            break
        if length > best[node]:
            continue
        for other in np.flatnonzero(neighbours[node]):
            longer = length + lengths[node, other]
            if longer < best.get(int(other), np.inf):
                best[int(other)], came_from[int(other)] = longer, node
                heapq.heappush(queue, (longer, int(other)))
    if 1 not in best:
        return None
    path = [1]
    while path[-1] != 0:
        path.append(came_from[path[-1]])
    return nodes[path[::-1]]


def bypass_points(margin: float) -> np.ndarray:
    """Two points round each convex corner, such that a path over them stays `margin` away: (12, 2) in the T's frame."""
    points = []
    for index in CONVEX_CORNERS:
        corner = OUTLINE[index]
        before = unit(corner - OUTLINE[index - 1])
        after = unit(corner - OUTLINE[(index + 1) % len(OUTLINE)])
        points += [corner + margin * (before + BEVEL * after), corner + margin * (BEVEL * before + after)]
    return np.array(points)


def visible_pairs(nodes: np.ndarray, pose: Pose, margin: float) -> np.ndarray:
    """Which of the points (N, 2) see each other past the T: bool (N, N)."""
    first, second = np.triu_indices(len(nodes), k=1)  # (P,)
    longest = np.linalg.norm(nodes[first] - nodes[second], axis=1).max()
    along = np.linspace(0, 1, max(2, int(np.ceil(longest / SAMPLE))))[:, None, None]  # (S, 1, 1)
    samples = nodes[first] + along * (nodes[second] - nodes[first])  # (S, P, 2)
    distances = clearance(samples, pose)  # (S, P)
    allowed = np.minimum(margin, np.minimum(distances[0], distances[-1])) - 1.0  # the piece's own ends: (P,)
    visible = np.zeros((len(nodes), len(nodes)), bool)
    visible[first, second] = (distances >= allowed).all(axis=0)
    return visible | visible.T


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def waypoints(path: np.ndarray, spacing: float) -> np.ndarray:
    """Points along a path (K, 2), `spacing` apart at most, the start left out: (M, 2)."""
    pieces = []
    for start, end in zip(path[:-1], path[1:], strict=True):
        count = max(1, int(np.ceil(np.linalg.norm(end - start) / spacing)))
        pieces.append(start + np.arange(1, count + 1)[:, None] / count * (end - start))
    return np.concatenate(pieces)
