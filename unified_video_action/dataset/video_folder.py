"""The earlier name of `formats.video_folder`, for scripts that import it."""

from unified_video_action.dataset.formats.video_folder import VideoFolderSource as VideoFolderSource
