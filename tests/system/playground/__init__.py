"""The page in a real browser; a package, so that one browser serves its tests and no others."""
