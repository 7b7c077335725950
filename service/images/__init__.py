"""Image input: URLs and files, checked, fetched, decoded and resized."""
