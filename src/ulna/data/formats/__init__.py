"""Reading and writing images, one file a format."""
