"""The earlier name of `formats.lerobot`, for scripts that import it."""

from unified_video_action.dataset.formats.lerobot import LeRobotSource as LeRobotSource
