"""Frames of a video as JPEG files, one every so many seconds. Needs the extra `video`."""

from pathlib import Path

from PIL import Image

from diptych_client.long_runs import RunError

VIDEOS = {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"}
MAX_FRAMES = 100_000
_JPEG_QUALITY = 92


def extract_frames(video: Path, folder: Path, every_s: float) -> None:
    """Write the frames as STEM-SECONDS.jpg; raise `RunError`."""
    try:
        import av
    except ImportError as error:
        raise RunError(f"{video} needs av: pip install 'diptych-client[video]'") from error
    num_frames = 0
    due_s = 0.0
    # a playlist in disguise must not open other files or URLs
    options = {"protocol_whitelist": "none"}
    try:
        with video.open("rb") as file, av.open(file, "r", options=options) as container:
            for frame in container.decode(container.streams.video[0]):
                time_s = frame.time or 0.0
                if num_frames and time_s < due_s:
                    continue
                num_frames += 1
                if num_frames > MAX_FRAMES:
                    raise RunError(f"{video} has more than {MAX_FRAMES:,} frames: use --every")
                path = folder / f"{video.stem}-{time_s:010.3f}.jpg"
                image = Image.fromarray(frame.to_ndarray(format="rgb24"))
                image.save(path, "JPEG", quality=_JPEG_QUALITY)
                due_s = time_s + every_s
    except (av.FFmpegError, IndexError) as error:
        raise RunError(f"{video} is not a readable video: {error}") from error
