"""The page that shows an image with its mask: served by `ulna serve`, and by `ulna view` for files at hand."""
