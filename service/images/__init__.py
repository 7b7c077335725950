"""Image files and URLs: fetched, checked, decoded, resized."""
