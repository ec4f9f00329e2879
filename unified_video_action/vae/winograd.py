"""3x3 convolutions on a CPU with a quarter of the multiplications: Winograd's F(4x4, 3x3) (Lavin & Gray, CVPR 2016).

An output tile of 4 x 4 pixels depends on an input tile of 6 x 6. Both, and the kernel, are taken to the values of
polynomials at six points along each axis; there the convolution is 36 products of (tiles, in) by (in, out) matrices.
Tiles are worked on in blocks that stay in cache, and blocks are shared out to threads that need not wait for each
other. The points are 0, +-5/8, +-3/2 and infinity: rounding is that of a direct convolution, an order of magnitude
below that of the customary 0, +-1, +-2 and infinity.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from threading import Barrier, local

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE, WINDOW = 4, 6  # pixels along the side of a tile of the output, of the input
POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)  # and infinity
BLOCK = 2**14  # tiles times channels of a block: its 36 positions take 2.25 MiB
LEAST_TILES = 64  # of an image: the products of fewer rows are slow
LEAST_CHANNELS = 64  # the transforms cost as much as the products at about this many

_own = local()  # each thread's buffers


def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis, float64: of the output (4, 6), of the kernel (6, 3), of the input (6, 6)."""
    points = torch.tensor(POINTS, dtype=torch.float64)
    differences = (points[:, None] - points).fill_diagonal_(1.0)
    powers = points[:, None] ** torch.arange(TILE)  # (5, 4)
    infinity = torch.eye(WINDOW, dtype=torch.float64)[-1:]
    output = torch.cat([powers.T, infinity[:, -TILE:].T], dim=1)  # (4, 6)
    kernel = torch.cat([powers[:, :3] / differences.prod(dim=1, keepdim=True), infinity[:, -3:]])  # (6, 3)
    # The one input transform for which the three together are a convolution: y[i] = sum over k of g[k] * x[i + k].
    products = (output[:, None] * kernel.T).flatten(0, 1)  # (4 * 3, 6)
    wanted = torch.stack([torch.eye(WINDOW)[i + k] for i in range(TILE) for k in range(3)]).double()  # (4 * 3, 6)
    return output, kernel, torch.linalg.lstsq(products, wanted).solution


def pays(conv: nn.Conv2d, height: int, width: int) -> bool:
    """Whether this is worth its while, for inputs of this size."""
    fits = conv.kernel_size == (3, 3) and conv.stride == conv.dilation == (1, 1) and conv.padding == (1, 1)
    wide = min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
    return fits and conv.groups == 1 and wide and -(-height // TILE) * -(-width // TILE) >= LEAST_TILES


class WinogradConv2d:
    """What a 3x3 convolution with stride 1 and padding 1 computes, from its weights at construction; float32, CPU.

    Images are (N, H, W, C), contiguous.
    """

    @torch.no_grad()
    def __init__(self, conv: nn.Conv2d) -> None:
        output, kernel, window = transforms()
        weight = torch.einsum("ia,ocab,jb->ijco", kernel, conv.weight.double(), kernel)  # (6, 6, in, out)
        self.weight = weight.flatten(0, 1).float().contiguous()  # (36, in, out)
        self.bias = None if conv.bias is None else conv.bias.float().clone()
        self.window = torch.kron(window, window).float()  # (36, 36)
        self.output = torch.kron(output, output).float()  # (16, 36)

    def __call__(self, x: Tensor, y: Tensor, affine: tuple[Tensor, Tensor] | None = None, add: bool = False) -> Tensor:
        """Convolve x (N, H, W, in), or silu(x * scale + shift), and write to y (N, H, W, out) or add to it.

        Args:
            affine: scale and shift, (N, in) each. They and the activation come with the copy that a block makes anyway.

        Returns:
            y
        """
        n, height, width, _ = x.shape
        down, across = -(-height // TILE), -(-width // TILE)  # tiles
        whole = y
        if height % TILE or width % TILE:  # tiles reach beyond the image
            whole = F.pad(y, (0, 0, 0, across * TILE - width, 0, down * TILE - height))
        rows = max(1, min(BLOCK // (across * max(x.shape[-1], y.shape[-1])), down))  # of tiles, in a block
        blocks = [(image, first) for image in range(n) for first in range(0, down, rows)]
        share_out(partial(self._block, x, whole, affine, add, rows), blocks)
        return y if whole is y else y.copy_(whole[:, :height, :width])

    def _block(
        self, x: Tensor, y: Tensor, affine: tuple[Tensor, Tensor] | None, add: bool, rows: int, image: int, first: int
    ) -> None:
        """`rows` rows of tiles of an image of y (N, TILE * down, TILE * across, out), from row `first` on."""
        (_, height, width, c_in), c_out = x.shape, y.shape[-1]
        rows, across = min(rows, y.shape[1] // TILE - first), y.shape[2] // TILE
        tiles = rows * across
        top, bottom = first * TILE - 1, (first + rows) * TILE + 1  # rows of pixels that the block reads
        padded = _buffer("padded", (bottom - top, across * TILE + 2, c_in))
        seen = slice(max(-top, 0), min(bottom, height) - top)
        padded[: seen.start], padded[seen.stop :], padded[:, 0], padded[:, 1 + width :] = 0, 0, 0, 0
        inner, source = padded[seen, 1 : 1 + width], x[image, top + seen.start : top + seen.stop]
        if affine is None:
            inner.copy_(source)
        else:
            scale, shift = affine
            F.silu(torch.addcmul(shift[image], source, scale[image], out=inner), inplace=True)

        windows = _tiles(padded, WINDOW, rows, across)  # (6, 6, rows, across, in)
        gathered = _buffer("even", windows.shape).copy_(windows)
        values = torch.mm(self.window, gathered.view(WINDOW**2, -1), out=_buffer("odd", (WINDOW**2, tiles * c_in)))
        products = _buffer("even", (WINDOW**2, tiles, c_out))
        torch.bmm(values.view(WINDOW**2, tiles, c_in), self.weight, out=products)
        made = torch.mm(self.output, products.view(WINDOW**2, -1), out=_buffer("odd", (TILE**2, tiles * c_out)))
        made = made.view(TILE, TILE, rows, across, c_out)
        if self.bias is not None:
            made += self.bias
        mine = _tiles(y[image, first * TILE : (first + rows) * TILE], TILE, rows, across)
        mine.add_(made) if add else mine.copy_(made)


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of images (N, H, W, C): mean and mean square deviation of every channel, (N, C) float64 each."""
    n, height, width, channels = x.shape
    rows = max(1, min(TILE**2 * BLOCK // (width * channels), height))
    blocks = [(image, first) for image in range(n) for first in range(0, height, rows)]
    counts = torch.tensor([min(rows, height - first) * width for _, first in blocks]).double()
    means, squares = torch.empty(2, len(blocks), channels)

    def work(image: int, first: int) -> None:
        pixels = x[image, first : first + rows].view(-1, channels)
        at = image * (len(blocks) // n) + first // rows
        torch.mean(pixels, dim=0, out=means[at])
        # From each block's own mean: squares of the values themselves would cancel.
        apart = torch.sub(pixels, means[at], out=_buffer("even", pixels.shape))
        torch.sum(apart.square_(), dim=0, out=squares[at])

    share_out(work, blocks)
    counts, means, squares = (each.double().unflatten(0, (n, -1)) for each in (counts.unsqueeze(1), means, squares))
    pixels = height * width
    mean = (counts * means).sum(1) / pixels  # (N, C)
    return mean, (squares + counts * (means - mean.unsqueeze(1)).square()).sum(1) / pixels


def group_affine(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (N, C), with which x * scale + shift is the norm of images x (N, H, W, C)."""
    mean, spread = (each.unflatten(1, (norm.num_groups, -1)) for each in channel_moments(x))  # (N, groups, C / groups)
    middle = mean.mean(2, keepdim=True)
    variance = (spread + (mean - middle).square()).mean(2, keepdim=True)
    scale = torch.rsqrt(variance + norm.eps).expand_as(mean).flatten(1) * norm.weight
    shift = norm.bias - middle.expand_as(mean).flatten(1) * scale
    return scale.float(), shift.float()


def _tiles(image: Tensor, side: int, rows: int, across: int) -> Tensor:
    """View of an image (H, W, C) as its (overlapping) tiles: (side, side, rows, across, C)."""
    down, right, channel = image.stride()
    shape = side, side, rows, across, image.shape[-1]
    return image.as_strided(shape, (down, right, TILE * down, TILE * right, channel), image.storage_offset())


def _buffer(name: str, shape: Iterable[int]) -> Tensor:
    """Memory of this thread, with anything in it; whoever asks by the same name gets the same memory."""
    shape = torch.Size(shape)
    memory = getattr(_own, name, None)
    if memory is None or memory.numel() < shape.numel():
        memory = torch.empty(shape.numel())
        setattr(_own, name, memory)
    return memory[: shape.numel()].view(shape)


def share_out(work: Callable[[int, int], None], blocks: list[tuple[int, int]]) -> None:
    """Do all blocks of a piece of work, on as many threads as torch may use."""
    threads = min(torch.get_num_threads(), len(blocks))
    left = iter(blocks)

    @torch.no_grad()
    def take() -> None:
        for block in left:  # under the interpreter's lock, each block goes to one thread
            work(*block)

    if threads == 1:
        take()
        return
    pool = _workers(torch.get_num_threads(), os.getpid())
    for done in [pool.submit(take) for _ in range(threads)]:
        done.result()


@lru_cache(maxsize=1)
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads in which a function of torch's stays in its thread; a forked process has to make its own."""
    ready = Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, "winograd", initializer=start)
    for _ in range(threads):
        pool.submit(int)  # a thread is started for each as long as none is idle
    ready.wait()
    torch.set_num_threads(threads)  # also what threads that anyone starts later have
    return pool
