"""The earlier name of `formats.zarr`, for scripts that import it."""

from unified_video_action.dataset.formats.zarr import ReplayBuffer as ReplayBuffer
