"""Images as people have them: folders, patterns, archives, lists of URLs, videos.

files.py      images as files of a folder, which bounds what they may name
archives.py   zip and tar files, unpacked within limits
videos.py     frames of a video
downloads.py  images by URL
opened.py     any of these -> a folder of files
problems.py   input that was left out or changed, a line for each
"""

from diptych_client.inputs.files import Folder, ImageFile, ImageStore, NamedImage, find_images
from diptych_client.inputs.opened import Opened, Opening, open_images
from diptych_client.inputs.problems import Problems

__all__ = [
    "Folder",
    "ImageFile",
    "ImageStore",
    "NamedImage",
    "Opened",
    "Opening",
    "Problems",
    "find_images",
    "open_images",
]
